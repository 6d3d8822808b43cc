"""A serial adapter as FTDI's FT232R: vendor requests, and two bytes of status at the head of every packet it sends."""

from __future__ import annotations

from collections.abc import Sequence

from tests.classes.serial_line import RATE, ROOM, LoopPlug
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.device import Loop, Timer
from usbvfiod_core.usb.requests import DIRECTION_IN, TYPE_VENDOR, SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint

DATA_IN, DATA_OUT = 0x81, 0x02
PACKET = 64
STATUS_BYTES = 2
CLOCK = 3_000_000

RESET, SET_MODEM_CONTROL, SET_FLOW_CONTROL, SET_BAUD_RATE, SET_DATA, GET_MODEM_STATUS = range(6)
SET_EVENT_CHARACTER, SET_ERROR_CHARACTER, SET_LATENCY, GET_LATENCY, SET_BIT_MODE, READ_PINS = 6, 7, 9, 10, 11, 12
READ_EEPROM = 0x90
_IGNORED = (RESET, SET_FLOW_CONTROL, SET_EVENT_CHARACTER, SET_ERROR_CHARACTER, SET_BIT_MODE)

CTS, DSR, CARRIER = 0x10, 0x20, 0x80
FIXED = 0x01  # of the first byte of status
SENT = 0x60  # of the second: both registers of the transmitter are empty


class Ftdi(VirtualDevice):
    """The adapter with a loop plug."""

    vendor_id, product_id, device_version = 0x0403, 0x6001, 0x0600
    manufacturer, product, serial = "FTDI", "FT232R USB UART", "A50285BI"

    def __init__(self, loop: Loop) -> None:
        super().__init__(Speed.FULL)
        self.plug = LoopPlug()
        self._loop = loop
        self._latency = 16  # milliseconds
        self._timer: Timer | None = None

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = (bulk_endpoint(DATA_IN, speed), bulk_endpoint(DATA_OUT, speed))
        return [Configuration((Interface(0, 0xFF, 0xFF, 0xFF, endpoints),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.request_type == TYPE_VENDOR | DIRECTION_IN:
            answers = {GET_MODEM_STATUS: self._status(), GET_LATENCY: bytes((self._latency,)), READ_PINS: b"\0"}
            return b"\0\0" if setup.request == READ_EEPROM else answers.get(setup.request)
        if setup.request_type != TYPE_VENDOR:
            return None
        if setup.request == SET_MODEM_CONTROL:  # the high byte says which of the did you mean two
            if setup.value & 0x100:
                self.plug.dtr = bool(setup.value & 1)
            if setup.value & 0x200:
                self.plug.rts = bool(setup.value & 2)
        elif setup.request == SET_BAUD_RATE:
            divisor = setup.value & 0x3FFF  # above it are eighths
            near = divisor != 0 and abs(CLOCK / divisor - RATE) < RATE * 0.02
            self.plug.rate = RATE if near else 0
        elif setup.request == SET_DATA:
            self.plug.is_8n1 = setup.value & 0x7FFF == 8
        elif setup.request == SET_LATENCY:
            self._latency = max(1, setup.value & 0xFF)
        elif setup.request not in _IGNORED:
            return None
        return b""

    def process(self, endpoint: VirtualEndpoint) -> None:
        if endpoint.address == DATA_OUT:
            self._take(endpoint)
            reading = self.endpoints.get(DATA_IN)
            if reading is not None:
                self._answer(reading)
        else:
            self._answer(endpoint)

    def _take(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue and self.plug.count < ROOM:
            transfer = endpoint.queue.popleft()
            self.plug.send(transfer.read())
            transfer.complete(TransferStatus.COMPLETED, transfer.length)

    def _answer(self, endpoint: VirtualEndpoint) -> None:
        """Data as it comes; without any, the status when the latency timer has run down."""
        while endpoint.queue and self.plug.count:
            transfer = endpoint.queue.popleft()
            packets = b""
            while self.plug.count and len(packets) + PACKET <= transfer.length:
                packets += self._status() + self.plug.receive(PACKET - STATUS_BYTES)
            transfer.complete(TransferStatus.COMPLETED, transfer.write(packets))
            self._take(self.endpoints[DATA_OUT])
        if endpoint.queue and self._timer is None:
            self._timer = self._loop.call_later(self._latency / 1000, self._run_down)

    def _run_down(self) -> None:
        self._timer = None
        endpoint = self.endpoints.get(DATA_IN)
        if endpoint is not None and endpoint.queue:
            transfer = endpoint.queue.popleft()
            transfer.complete(TransferStatus.COMPLETED, transfer.write(self._status()))
            self.serve(endpoint)

    def _status(self) -> bytes:
        modem = FIXED | (CTS if self.plug.rts else 0) | (DSR | CARRIER if self.plug.dtr else 0)
        return bytes((modem, SENT))

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self._stop()

    def closed(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
