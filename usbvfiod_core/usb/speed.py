"""Speeds of USB devices."""

from __future__ import annotations

from enum import IntEnum


class Speed(IntEnum):
    """A device's speed; the value is the default Protocol Speed ID of xHCI (7.2.2.1.1)."""

    FULL = 1
    LOW = 2
    HIGH = 3
    SUPER = 4
    SUPER_PLUS = 5

    @property
    def word(self) -> str:
        """For people: "high", "super plus"."""
        return self.name.lower().replace("_", " ")

    @property
    def is_usb3(self) -> bool:
        """Whether the device sits on a USB 3 root-hub port."""
        return self >= Speed.SUPER

    @property
    def frame(self) -> float:
        """Seconds of a frame, or of a microframe from high speed on, in which endpoints count (USB 2.0 9.6.6)."""
        return 0.000125 if self >= Speed.HIGH else 0.001

    @property
    def control_max_packet_size(self) -> int:
        """The packet size of endpoint 0 that a driver assumes before it has read a descriptor (USB 2.0 5.5.3)."""
        return {1: 8, 2: 8, 3: 64, 4: 512, 5: 512}[self.value]
