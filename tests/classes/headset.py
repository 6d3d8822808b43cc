"""A headset of the USB Audio Class 2.0 at high speed: what is played is kept, what is recorded counts.

Playback is asynchronous with explicit feedback (USB 2.0 5.12.4.2): the driver sends as many samples as the feedback
endpoint says. Both streams go by one clock, whose rate the driver chooses among RATES.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack, unpack

from usbvfiod_core.usb.descriptors import INTERFACE_ASSOCIATION, Configuration, Endpoint, Interface
from usbvfiod_core.usb.device import DeviceEvents, Loop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferType
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint
from usbvfiod_core.virtual.isochronous import IsochronousSchedule, contents, fill, finish

RATES = (16_000, 48_000)
"""In hertz; the first is that of a device that was just plugged in."""
FRAME = 4  # bytes of an audio frame: two channels of 16 bits

PLAYBACK, CAPTURE, FEEDBACK = 0x01, 0x82, 0x81
INTERVAL = 4  # bInterval: a millisecond
FEEDBACK_INTERVAL = 8  # 16 ms
_MICROFRAMES = 8000  # in a second

CLOCK, STREAM_OUT, LOUDSPEAKER, MICROPHONE, STREAM_IN = 1, 2, 3, 4, 5

# Audio 2.0 appendix A
_AUDIO, _CONTROL, _STREAMING, _VERSION_2 = 0x01, 0x01, 0x02, 0x20
_HEADSET = 0x04
CUR, RANGE = 0x01, 0x02
FREQUENCY, VALID = 0x01, 0x02
# bmAttributes: an asynchronous endpoint, and one for feedback (USB 2.0 9.6.6)
_ASYNCHRONOUS, _FEEDBACK = TransferType.ISOCHRONOUS | 1 << 2, TransferType.ISOCHRONOUS | 1 << 4
# Terminal types (Terminal Types 2.0 2.1 and 2.4), left and right (Audio 2.0 4.1)
_USB, _HEADSET_TERMINAL, _LEFT_RIGHT = 0x0101, 0x0402, 0x3

HEARD = (0xC0, 0x01)
"""The request for what was played, from byte wValue + (wIndex << 16) on: what every test asks, of no class."""


def frames(first: int, count: int) -> bytes:
    """Audio frames that are numbered, so that a lost one shows."""
    return pack(f"<{count}I", *range(first, first + count))


def _class_specific(body: bytes, kind: int = 0x24) -> bytes:
    return bytes((2 + len(body), kind)) + body


class Headset(VirtualDevice):
    """The device; recording begins with frame 1 each time a setting with an endpoint is chosen."""

    product_id = 0x00D2
    device_class = (0xEF, 0x02, 0x01)
    product = "Headset"

    def __init__(self, loop: Loop) -> None:
        super().__init__(Speed.HIGH)
        self.rate = RATES[0]
        self._heard = bytearray()
        self._next = 1
        self._schedule = IsochronousSchedule(self.speed, loop, self._interval_over)

    # -- descriptors (Audio 2.0 4) -------------------------------------------------------------------------------------

    def describe(self, speed: Speed) -> list[Configuration]:
        most = (max(RATES) // 1000 + 1) * FRAME
        extra = _class_specific(pack("<BBBBH", 0x01, 0, 0, 0, 0), 0x25)
        playback = Endpoint(PLAYBACK, _ASYNCHRONOUS, most, INTERVAL, extra=extra)
        feedback = Endpoint(FEEDBACK, _FEEDBACK, 4, FEEDBACK_INTERVAL)
        capture = Endpoint(CAPTURE, _ASYNCHRONOUS, most, INTERVAL, extra=extra)
        association = bytes((8, INTERFACE_ASSOCIATION, 0, 3, _AUDIO, 0, _VERSION_2, 0))
        interfaces = [Interface(0, _AUDIO, _CONTROL, _VERSION_2, before=association, extra=_topology())]
        for number, terminal, endpoints in ((1, STREAM_OUT, (playback, feedback)), (2, STREAM_IN, (capture,))):
            format_ = _class_specific(pack("<BBBBIBIB", 0x01, terminal, 0, 1, 1, 2, _LEFT_RIGHT, 0)) + _class_specific(
                pack("<BBBB", 0x02, 1, 2, 16)
            )
            interfaces.append(Interface(number, _AUDIO, _STREAMING, _VERSION_2))
            interfaces.append(Interface(number, _AUDIO, _STREAMING, _VERSION_2, endpoints, alternate=1, extra=format_))
        return [Configuration(tuple(interfaces))]

    # -- requests (Audio 2.0 5.2) --------------------------------------------------------------------------------------

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if (setup.request_type, setup.request) == HEARD:
            start = setup.value | setup.index << 16
            return bytes(self._heard[start : start + setup.length])
        if setup.request_type & 0x7F != 0x21 or setup.index != CLOCK << 8:
            return None
        asked = (setup.is_in, setup.request, setup.value)
        if asked == (True, CUR, VALID << 8):
            return b"\x01"
        if asked == (True, RANGE, FREQUENCY << 8):
            return pack("<H", len(RATES)) + b"".join(pack("<III", rate, rate, 0) for rate in RATES)
        if asked == (True, CUR, FREQUENCY << 8):
            return pack("<I", self.rate)
        if asked == (False, CUR, FREQUENCY << 8) and len(data) == 4 and unpack("<I", data)[0] in RATES:
            (self.rate,) = unpack("<I", data)
            return b""
        return None

    # -- streams -------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self._schedule.attach(events)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        """One stream begins or ends while the other goes on."""
        self._schedule.forget(each for each in (PLAYBACK, CAPTURE, FEEDBACK) if each not in self.endpoints)
        for endpoint in endpoints:
            self._schedule.forget((endpoint.address,))
            if endpoint.address == PLAYBACK:
                self._heard.clear()
            elif endpoint.address == CAPTURE:
                self._next = 1

    def process(self, endpoint: VirtualEndpoint) -> None:
        self._schedule.process(endpoint)

    def _interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
        count = self.rate // 1000
        for packet in transfer.packets:
            if endpoint.address == PLAYBACK:
                packet.actual = packet.length
                self._heard += contents(transfer, packet)
            elif endpoint.address == CAPTURE:
                fill(transfer, packet, frames(self._next, count))
                self._next += count
            else:  # audio frames in a microframe, 16.16 (USB 2.0 5.12.4.2)
                fill(transfer, packet, pack("<I", (self.rate << 16) // _MICROFRAMES))
        finish(transfer)

    def closed(self) -> None:
        self._schedule.close()


def _topology() -> bytes:
    """A clock, from the stream to the loudspeaker, from the microphone to the stream (Audio 2.0 4.7.2)."""
    entities = _class_specific(pack("<BBBBBB", 0x0A, CLOCK, 0x03, 0x07, 0, 0))
    for entity, kind, output, output_kind in (
        (STREAM_OUT, _USB, LOUDSPEAKER, _HEADSET_TERMINAL),
        (MICROPHONE, _HEADSET_TERMINAL, STREAM_IN, _USB),
    ):
        entities += _class_specific(
            pack("<BBHBBBIBHB", 0x02, entity, kind, 0, CLOCK, 2, _LEFT_RIGHT, 0, 0, 0)
        ) + _class_specific(pack("<BBHBBBHB", 0x03, output, output_kind, 0, entity, CLOCK, 0, 0))
    return _class_specific(pack("<BHBHB", 0x01, 0x0200, _HEADSET, 9 + len(entities), 0)) + entities
