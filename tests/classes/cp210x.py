"""A serial adapter as Silicon Labs' CP2102 (their application note AN571): vendor requests to its interface."""

from __future__ import annotations

from struct import pack, unpack_from

from tests.classes.serial_line import ROOM, LoopPlug
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.requests import DIRECTION_IN, RECIPIENT_INTERFACE, TYPE_VENDOR, SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint

DATA_IN, DATA_OUT = 0x81, 0x01

ENABLE, SET_LINE, GET_LINE, SET_MODEM_LINES, GET_MODEM_STATUS = 0x00, 0x03, 0x04, 0x07, 0x08
GET_STATUS, PURGE, SET_FLOW, GET_FLOW, SET_CHARACTERS, SET_RATE = 0x10, 0x12, 0x13, 0x14, 0x19, 0x1E
VENDOR_SPECIFIC, PART_NUMBER = 0xFF, 0x370B
CP2102 = 0x02
LINE_8N1 = 0x0800
CTS, DSR, CARRIER = 0x10, 0x20, 0x80

_SET, _GET = TYPE_VENDOR | RECIPIENT_INTERFACE, TYPE_VENDOR | RECIPIENT_INTERFACE | DIRECTION_IN


class Cp210x(VirtualDevice):
    """The adapter with a loop plug; `enabled` is what the driver has switched."""

    vendor_id, product_id = 0x10C4, 0xEA60
    manufacturer, product, serial = "Silicon Labs", "CP2102 USB to UART Bridge Controller", "0001"

    def __init__(self, loop: Loop) -> None:
        super().__init__(Speed.FULL)
        self.plug = LoopPlug()
        self.enabled = False
        self._line = LINE_8N1
        self._flow = bytes(16)

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = (bulk_endpoint(DATA_IN, speed), bulk_endpoint(DATA_OUT, speed))
        return [Configuration((Interface(0, 0xFF, endpoints=endpoints),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.request_type == TYPE_VENDOR | DIRECTION_IN:
            known = (setup.request, setup.value) == (VENDOR_SPECIFIC, PART_NUMBER)
            return bytes((CP2102,)) if known else None
        if setup.request_type == _GET:
            return self._tell(setup.request)
        if setup.request_type != _SET:
            return None
        if setup.request == ENABLE:
            self.enabled = bool(setup.value)
        elif setup.request == SET_LINE:
            self._line = setup.value
            self.plug.is_8n1 = setup.value == LINE_8N1
        elif setup.request == SET_RATE:
            (self.plug.rate,) = unpack_from("<I", data)
        elif setup.request == SET_MODEM_LINES:
            if setup.value & 0x100:
                self.plug.dtr = bool(setup.value & 1)
            if setup.value & 0x200:
                self.plug.rts = bool(setup.value & 2)
        elif setup.request == SET_FLOW:
            self._flow = data
        elif setup.request not in (PURGE, SET_CHARACTERS):
            return None
        return b""

    def _tell(self, request: int) -> bytes | None:
        if request == GET_LINE:
            return pack("<H", self._line)
        if request == GET_FLOW:
            return self._flow
        if request == GET_STATUS:
            return bytes(19)
        if request == GET_MODEM_STATUS:
            plug = self.plug
            return bytes((plug.dtr | plug.rts << 1 | (DSR | CARRIER) * plug.dtr | CTS * plug.rts,))
        return None

    def process(self, endpoint: VirtualEndpoint) -> None:
        taking, giving = self.endpoints[DATA_OUT], self.endpoints[DATA_IN]
        while True:
            if taking.queue and self.plug.count < ROOM:
                transfer = taking.queue.popleft()
                if self.enabled:
                    self.plug.send(transfer.read())
                transfer.complete(TransferStatus.COMPLETED, transfer.length)
            elif giving.queue and self.plug.count:
                transfer = giving.queue.popleft()
                transfer.complete(TransferStatus.COMPLETED, transfer.write(self.plug.receive(transfer.length)))
            else:
                return
