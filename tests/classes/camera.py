"""A camera of the USB Video Class 1.0: each size of its pictures wants another alternate setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack, unpack_from

from usbvfiod_core.usb.class_descriptors import ASSOCIATION_DEVICE_CLASS, class_specific, interface_association
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.device import DeviceEvents, Loop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferType
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint
from usbvfiod_core.virtual.isochronous import IsochronousSchedule, fill, finish


@dataclass(frozen=True, slots=True)
class Picture:
    """A size in pixels of two bytes, and wMaxPacketSize of the setting for it."""

    width: int
    height: int
    max_packet_size: int

    @property
    def size(self) -> int:
        """Bytes of a picture."""
        return self.width * self.height * 2

    @property
    def payload(self) -> int:
        """Bytes of a packet."""
        return (self.max_packet_size & 0x7FF) * ((self.max_packet_size >> 11) + 1)


PICTURES = (
    Picture(64, 32, 128),
    Picture(128, 64, 512),
    Picture(176, 96, 1024),
    Picture(256, 128, 1024 | 1 << 11),
    Picture(320, 160, 1024 | 2 << 11),
)
"""Of alternate settings 1 and up; the last two move two and three packets a microframe."""
FRAME_INTERVAL = 333_333  # 100 ns each
STREAM = 0x81
INTERVAL = 4  # bInterval: eight microframes

_VIDEO, _CONTROL, _STREAMING = 0x0E, 0x01, 0x02
_YUY2 = bytes.fromhex("59555932 0000 1000 8000 00aa00389b71")
CAMERA, PROCESSING, OUTPUT = 1, 2, 3

# Requests (4.1.1) and selectors (appendix A.9)
SET_CUR, GET_CUR, GET_MIN, GET_MAX, GET_RES, GET_LEN, GET_INFO, GET_DEF = (
    *(0x01, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87),
)
PROBE, COMMIT = 0x01, 0x02
BRIGHTNESS = 0x02
BRIGHTNESSES = {GET_MIN: -64, GET_MAX: 64, GET_RES: 1, GET_DEF: 0}
_HEADER_BYTES = 2
_END_OF_HEADER, _END_OF_PICTURE, _PICTURE_BIT = 0x80, 0x02, 0x01

_COUNT = bytes(range(256))


def picture(number: int, size: int) -> bytes:
    """The bytes of a picture: they count from its number on."""
    start = number & 0xFF
    return (_COUNT * (size // 256 + 2))[start : start + size]


class Camera(VirtualDevice):
    """Sends pictures one behind the other while a setting with an endpoint is chosen."""

    product_id = 0x00CA
    device_class = ASSOCIATION_DEVICE_CLASS
    product = "Camera"

    def __init__(self, loop: Loop) -> None:
        super().__init__(Speed.HIGH)
        self.brightness = 0
        self._chosen = 1  # bFrameIndex
        self._number = 0
        self._left = b""
        self._schedule = IsochronousSchedule(self.speed, loop, self._interval_over)

    def describe(self, speed: Speed) -> list[Configuration]:
        units = (
            class_specific(pack("<BBHBBHHHB3s", 0x02, CAMERA, 0x0201, 0, 0, 0, 0, 0, 3, bytes(3)))
            + class_specific(pack("<BBBHBHB", 0x05, PROCESSING, CAMERA, 0, 2, 1, 0))
            + class_specific(pack("<BBHBBB", 0x03, OUTPUT, 0x0101, 0, PROCESSING, 0))
        )
        header = class_specific(pack("<BHHIBB", 0x01, 0x0100, 13 + len(units), 48_000_000, 1, 1))
        association = interface_association(0, 2, _VIDEO, 0x03, name=self.string(self.product))
        interfaces = [
            Interface(0, _VIDEO, _CONTROL, before=association, name=self.string(self.product), extra=header + units),
            Interface(1, _VIDEO, _STREAMING, extra=self._formats()),
        ]
        for alternate, each in enumerate(PICTURES, start=1):
            endpoint = Endpoint(STREAM, TransferType.ISOCHRONOUS | 1 << 2, each.max_packet_size, INTERVAL)
            interfaces.append(Interface(1, _VIDEO, _STREAMING, endpoints=(endpoint,), alternate=alternate))
        return [Configuration(tuple(interfaces))]

    def _formats(self) -> bytes:
        """One format, uncompressed, with a frame descriptor for each size (Uncompressed 1.0 3.1)."""
        body = class_specific(pack("<BBB16sBBBBBB", 0x04, 1, len(PICTURES), _YUY2, 16, 1, 0, 0, 0, 0))
        for index, each in enumerate(PICTURES, start=1):
            bits = each.size * 8 * 10_000_000 // FRAME_INTERVAL
            sizes = pack("<BBBHHIII", 0x05, index, 0, each.width, each.height, bits, bits, each.size)
            body += class_specific(sizes + pack("<IBI", FRAME_INTERVAL, 1, FRAME_INTERVAL))
        body += class_specific(bytes((0x0D, 1, 1, 4)))
        head = pack("<BBHBBBBBBBB", 0x01, 1, 14 + len(body), STREAM, 0, OUTPUT, 0, 0, 0, 1, 0)
        return class_specific(head) + body

    # -- requests ------------------------------------------------------------------------------------------------------

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.request_type & 0x7F != 0x21:
            return None
        selector = setup.value >> 8
        if setup.index == PROCESSING << 8 and selector == BRIGHTNESS:
            return self._brightness(setup.request, data)
        if setup.index == 1 and selector in (PROBE, COMMIT):
            return self._negotiate(setup.request, data)
        return None

    def _brightness(self, request: int, data: bytes) -> bytes | None:
        if request == SET_CUR:
            (self.brightness,) = unpack_from("<h", data)
            return b""
        if request in (GET_INFO, GET_LEN):
            return b"\x03" if request == GET_INFO else b"\x02\x00"
        value = self.brightness if request == GET_CUR else BRIGHTNESSES.get(request)
        return None if value is None else pack("<h", value)

    def _negotiate(self, request: int, data: bytes) -> bytes | None:
        """Probe and commit (4.3.1.1): the driver names a size, the answer has what it takes."""
        if request == SET_CUR:
            self._chosen = min(max(data[3], 1), len(PICTURES))
            return b""
        if request in (GET_INFO, GET_LEN):
            return b"\x03" if request == GET_INFO else pack("<H", 26)
        if request not in (GET_CUR, GET_MIN, GET_MAX, GET_DEF):
            return None
        index = self._chosen if request == GET_CUR else 1
        each = PICTURES[index - 1]
        return pack("<HBBIHHHHHII", 0, 1, index, FRAME_INTERVAL, 0, 0, 0, 0, 0, each.size, each.payload)

    # -- pictures ------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self._schedule.attach(events)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self._schedule.restart()
        self._left = b""

    def process(self, endpoint: VirtualEndpoint) -> None:
        self._schedule.process(endpoint)

    def _interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
        """Each packet has a header and a part of the picture (2.4.3.2)."""
        each = PICTURES[self.alternates[1] - 1]
        for packet in transfer.packets:
            if not self._left:
                self._number += 1
                self._left = picture(self._number, each.size)
            part = self._left[: each.payload - _HEADER_BYTES]
            self._left = self._left[len(part) :]
            bits = _END_OF_HEADER | self._number & _PICTURE_BIT | (0 if self._left else _END_OF_PICTURE)
            fill(transfer, packet, bytes((_HEADER_BYTES, bits)) + part)
        finish(transfer)

    def closed(self) -> None:
        self._schedule.close()
