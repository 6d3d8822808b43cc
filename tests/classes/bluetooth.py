"""A Bluetooth 2.0 adapter (Bluetooth Core, volume 4, parts B and E) with one other device in reach, which echoes voice.

Commands come over endpoint 0, events go out by interrupts, and voice goes over isochronous endpoints, whose size the
alternate setting of interface 1 decides: none at all in setting 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from struct import Struct, pack

from tests.classes.pipes import Pipes
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface, bulk_endpoint, interrupt_endpoint
from usbvfiod_core.usb.device import DeviceEvents, Loop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferType
from usbvfiod_core.virtual.endpoint import VirtualEndpoint
from usbvfiod_core.virtual.isochronous import IsochronousSchedule, contents, fill, finish

ADDRESS = "02:1D:6B:00:00:07"
REMOTE = "02:1D:6B:00:00:08"
"""The device in reach."""
VOICE_PACKETS = (0, 9, 17, 25, 33, 49, 63)
"""Bytes of a voice packet, by alternate setting (part B 2.1.1)."""

EVENTS, ACL_IN, ACL_OUT, VOICE_IN, VOICE_OUT = 0x81, 0x82, 0x02, 0x83, 0x03
EVENT_BYTES = 16

SEND_COMMAND = (0x20, 0x00)  # part B 2.2
_OPCODE = Struct("<HB")

# Opcodes (part E 7) and events (7.7)
CREATE_CONNECTION, DISCONNECT, ADD_SCO, READ_REMOTE_FEATURES, REMOTE_NAME = 0x0405, 0x0406, 0x0407, 0x041B, 0x0419
CONNECTION_COMPLETE, DISCONNECTED, NAME_COMPLETE, FEATURES_COMPLETE = 0x03, 0x05, 0x07, 0x0B
COMMAND_COMPLETE, COMMAND_STATUS = 0x0E, 0x0F
UNKNOWN_COMMAND = 0x01
LINK, VOICE = 1, 2
"""Connection handles."""

FEATURES = bytes((0, 0x08, 0, 0, 0, 0, 0, 0))  # voice links
SUPPORTED = bytes((0, 0, 0, 0, 0, 0, 0, 0, 0, 0x04)).ljust(64, b"\0")  # Read Voice Setting


def packed(address: str) -> bytes:
    """An address as it is sent: the last byte first."""
    return bytes(reversed(bytes.fromhex(address.replace(":", ""))))


ANSWERS = {
    0x0C03: b"",  # Reset
    0x0C01: b"",  # Set Event Mask
    0x0C16: b"",  # Write Connection Accept Timeout
    0x0C1A: b"",  # Write Scan Enable
    0x1001: pack("<BHBHH", 3, 0, 3, 0xFFFF, 0),  # Read Local Version: 2.0 + EDR
    0x1002: SUPPORTED,
    0x1003: FEATURES,
    0x1005: pack("<HBHH", 1021, 48, 8, 8),  # Read Buffer Size: of data and of voice, bytes and packets
    0x1009: packed(ADDRESS),
    0x0C14: b"usbvfiod".ljust(248, b"\0"),  # Read Local Name
    0x0C23: bytes(3),  # Read Class of Device
    0x0C25: pack("<H", 0x0060),  # Read Voice Setting: linear, 16 bits
    0x0C38: b"\x01",  # Read Number Of Supported IAC
    0x0C39: b"\x01\x33\x8b\x9e",  # Read Current IAC LAP: the general one
}
"""What commands give that are complete at once."""


class Bluetooth(Pipes):
    """The adapter; `commands` has the opcodes that have come."""

    product_id = 0x00B0
    device_class = (0xE0, 0x01, 0x01)
    product = "Bluetooth adapter"

    def __init__(self, loop: Loop) -> None:
        super().__init__(Speed.FULL)
        self.commands: list[int] = []
        self._voice: deque[bytes] = deque()
        self._schedule = IsochronousSchedule(self.speed, loop, self._interval_over)
        self._handlers: dict[int, Callable[[bytes], None]] = {
            CREATE_CONNECTION: lambda _: self._connected(LINK, 1),
            ADD_SCO: lambda _: self._connected(VOICE, 0),
            DISCONNECT: lambda given: self._event(DISCONNECTED, b"\0" + given[:2] + b"\x16"),
            READ_REMOTE_FEATURES: lambda _: self._event(FEATURES_COMPLETE, pack("<BH", 0, LINK) + FEATURES),
            REMOTE_NAME: lambda _: self._event(NAME_COMPLETE, b"\0" + packed(REMOTE) + b"echo".ljust(248, b"\0")),
        }

    def describe(self, speed: Speed) -> list[Configuration]:
        events = interrupt_endpoint(EVENTS, speed, packet_size=EVENT_BYTES, period=1)
        interfaces = [
            Interface(0, 0xE0, 1, 1, (events, bulk_endpoint(ACL_IN, speed), bulk_endpoint(ACL_OUT, speed))),
        ]
        for alternate, size in enumerate(VOICE_PACKETS):
            voice = tuple(Endpoint(each, TransferType.ISOCHRONOUS, size, 1) for each in (VOICE_IN, VOICE_OUT))
            interfaces.append(Interface(1, 0xE0, 1, 1, voice, alternate))
        return [Configuration(tuple(interfaces))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if (setup.request_type, setup.request) != SEND_COMMAND:
            return None
        opcode, _ = _OPCODE.unpack_from(data)
        self.commands.append(opcode)
        handler = self._handlers.get(opcode)
        if handler is not None:
            self._event(COMMAND_STATUS, pack("<BBH", 0, 1, opcode))
            handler(data[_OPCODE.size :])
        elif opcode in ANSWERS:
            self._event(COMMAND_COMPLETE, pack("<BHB", 1, opcode, 0) + ANSWERS[opcode])
        else:
            self._event(COMMAND_COMPLETE, pack("<BHB", 1, opcode, UNKNOWN_COMMAND))
        return b""

    def _event(self, code: int, parameters: bytes) -> None:
        self.send(EVENTS, bytes((code, len(parameters))) + parameters)

    def _connected(self, handle: int, kind: int) -> None:
        self._event(CONNECTION_COMPLETE, pack("<BH", 0, handle) + packed(REMOTE) + bytes((kind, 0)))

    # -- voice ---------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self._schedule.attach(events)

    def process(self, endpoint: VirtualEndpoint) -> None:
        if endpoint.descriptor.type == TransferType.ISOCHRONOUS:
            self._schedule.process(endpoint)
        else:
            super().process(endpoint)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        super().restart(endpoints)
        if any(endpoint.address == VOICE_IN for endpoint in endpoints):
            self._schedule.restart()
            self._voice.clear()

    def _interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
        for packet in transfer.packets:
            if endpoint.address == VOICE_OUT:
                packet.actual = packet.length
                self._voice.append(bytes(contents(transfer, packet)))
            else:
                fill(transfer, packet, self._voice.popleft() if self._voice else b"")
        finish(transfer)

    def closed(self) -> None:
        self._schedule.close()
