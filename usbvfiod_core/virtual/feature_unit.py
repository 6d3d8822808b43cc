"""A feature unit of the USB Audio Class 1.0: mute for all channels, volume for each (Audio 1.0 4.3.2.5, 5.2.2.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..usb.class_descriptors import audio_feature_unit
from ..usb.requests import SetupPacket

SET_CUR, GET_CUR, GET_MIN, GET_MAX, GET_RES = 0x01, 0x81, 0x82, 0x83, 0x84
MUTE, VOLUME = 0x01, 0x02
"""Control selectors."""
MASTER, ALL = 0x00, 0xFF
"""Channel numbers; the channels themselves count from 1."""

MINIMUM, MAXIMUM, RESOLUTION = -60 * 256, 0, 256
"""Volumes are in units of 1/256 dB: -60 dB to 0 dB in steps of 1 dB."""
SILENCE = -0x8000
"""Minus infinity dB."""

_TO_INTERFACE, _FROM_INTERFACE = 0x21, 0xA1


@dataclass
class FeatureState:
    """What the driver has set of one unit."""

    muted: bool
    volume: list[int]


class FeatureUnit:
    """`muted` is for all channels, `volume` has one for each, in units of 1/256 dB. They are what the driver has set;
    nobody here listens to them."""

    def __init__(self, channels: int) -> None:
        self.volume = [0] * channels
        self.power_on()

    def power_on(self) -> None:
        """As at first, whatever a driver has set."""
        self.muted = False
        self.volume[:] = [MAXIMUM] * len(self.volume)

    def descriptor(self, entity: int, source: int) -> bytes:
        """Its descriptor, as entity number `entity` behind the entity `source`."""
        return audio_feature_unit(entity, source, [1 << MUTE - 1, *(1 << VOLUME - 1 for _ in self.volume)])

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        """Answer a request to the unit, as `VirtualDevice.control_request`."""
        selector, channel = setup.value >> 8, setup.value & 0xFF
        if selector == MUTE and channel in (MASTER, ALL):
            return self._mute(setup, data)
        if selector == VOLUME and channel == ALL:
            return self._volume(setup, data, range(len(self.volume)))
        if selector == VOLUME and 1 <= channel <= len(self.volume):
            return self._volume(setup, data, range(channel - 1, channel))
        return None

    def _mute(self, setup: SetupPacket, data: bytes) -> bytes | None:
        request = (setup.request_type, setup.request)
        if request == (_FROM_INTERFACE, GET_CUR):
            return bytes((self.muted,))
        if request == (_TO_INTERFACE, SET_CUR) and len(data) == 1:
            self.muted = bool(data[0])
            return b""
        return None

    def _volume(self, setup: SetupPacket, data: bytes, channels: range) -> bytes | None:
        if (setup.request_type, setup.request) == (_TO_INTERFACE, SET_CUR) and len(data) == 2 * len(channels):
            for place, channel in enumerate(channels):
                self.volume[channel] = _nearest(int.from_bytes(data[2 * place : 2 * place + 2], "little", signed=True))
            return b""
        attribute = _ATTRIBUTES.get(setup.request) if setup.request_type == _FROM_INTERFACE else None
        if attribute is None:
            return None
        return b"".join(attribute(self.volume[channel]).to_bytes(2, "little", signed=True) for channel in channels)


def _nearest(volume: int) -> int:
    """The volume that there is for one that was asked for."""
    if volume == SILENCE:
        return volume
    return min(max((volume + RESOLUTION // 2) // RESOLUTION * RESOLUTION, MINIMUM), MAXIMUM)


_ATTRIBUTES: dict[int, Callable[[int], int]] = {
    GET_CUR: lambda volume: volume,
    GET_MIN: lambda volume: MINIMUM,
    GET_MAX: lambda volume: MAXIMUM,
    GET_RES: lambda volume: RESOLUTION,
}
