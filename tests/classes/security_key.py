"""A security key (FIDO CTAPHID 11.2): a HID device whose reports are packets of a protocol of its own."""

from __future__ import annotations

from struct import pack, unpack_from

from tests.classes.pipes import Pipes
from usbvfiod_core.usb import descriptors, requests
from usbvfiod_core.usb.descriptors import Configuration, Interface, hid_descriptor, interrupt_endpoint
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed

REPORTS_IN, REPORTS_OUT = 0x81, 0x01
REPORT_BYTES = 64
# Usage page FIDO alliance, usage authenticator device: reports of 64 bytes in and out (11.2.8.2).
REPORT_DESCRIPTOR = bytes.fromhex(
    "06 d0 f1 09 01 a1 01 09 20 15 00 26 ff 00 75 08 95 40 81 02 09 21 15 00 26 ff 00 75 08 95 40 91 02 c0"
)

BROADCAST = 0xFFFFFFFF
PING, INIT, WINK, ERROR = 0x81, 0x86, 0x88, 0xBF
INVALID_COMMAND, INVALID_CHANNEL = 0x01, 0x0B
SET_IDLE = (0x21, 0x0A)


class SecurityKey(Pipes):
    """Gives channels, echoes and winks; it has no keys."""

    product_id = 0x00F1
    product = "Security key"

    def __init__(self, loop: Loop) -> None:
        super().__init__(Speed.FULL)
        self.channels = 0
        self._message = b""
        self._expected = 0
        self._command = 0

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = tuple(
            interrupt_endpoint(each, speed, packet_size=REPORT_BYTES, period=5) for each in (REPORTS_IN, REPORTS_OUT)
        )
        report = hid_descriptor(len(REPORT_DESCRIPTOR))
        return [Configuration((Interface(0, 0x03, endpoints=endpoints, extra=report),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if (setup.request_type, setup.request) == SET_IDLE:
            return b""
        if (setup.request_type, setup.request) == (0x81, requests.GET_DESCRIPTOR):
            return REPORT_DESCRIPTOR if setup.value >> 8 == descriptors.HID_REPORT else None
        return None

    def received(self, address: int, data: bytes) -> None:
        """One packet: the first of a message has the command and the length, the others a count (11.2.4)."""
        channel, head = unpack_from(">IB", data)
        if head & 0x80:
            self._command = head
            (self._expected,) = unpack_from(">H", data, 5)
            self._message = data[7:]
        else:
            self._message += data[5:]
        if len(self._message) >= self._expected:
            self._answer(channel, self._command, self._message[: self._expected])

    def _answer(self, channel: int, command: int, message: bytes) -> None:
        if command == INIT:
            self.channels += 1
            self._reply(channel, INIT, message[:8] + pack(">IBBBBB", self.channels, 2, 1, 0, 0, 1))
        elif not 1 <= channel <= self.channels:
            self._reply(channel, ERROR, bytes((INVALID_CHANNEL,)))
        elif command == PING:
            self._reply(channel, PING, message)
        elif command == WINK:
            self._reply(channel, WINK, b"")
        else:
            self._reply(channel, ERROR, bytes((INVALID_COMMAND,)))

    def _reply(self, channel: int, command: int, message: bytes) -> None:
        first = pack(">IBH", channel, command, len(message)) + message[: REPORT_BYTES - 7]
        self.send(REPORTS_IN, first.ljust(REPORT_BYTES, b"\0"))
        rest = message[REPORT_BYTES - 7 :]
        for number, start in enumerate(range(0, len(rest), REPORT_BYTES - 5)):
            packet = pack(">IB", channel, number) + rest[start : start + REPORT_BYTES - 5]
            self.send(REPORTS_IN, packet.ljust(REPORT_BYTES, b"\0"))
