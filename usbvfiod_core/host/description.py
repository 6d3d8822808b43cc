"""What is known of a device before one of ours is made of it, from the kernel that has enumerated it."""

from __future__ import annotations

from dataclasses import dataclass

from ..usb.speed import Speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One device, as this host's kernel or the other end of a connection describes it.

    name            manufacturer and product, for people
    serial          empty where it has no serial number
    descriptors     the device descriptor, followed by all configurations, as sysfs and usbfs give them
    configuration   the value of the configuration that is set there; None for none, as 0 is a value, too
    max_streams     how many streams the controller there gives its endpoints; 0 for none
    reset_quirk     it is known there that the device does not survive a reset
    """

    name: str
    serial: str = ""
    speed: Speed
    descriptors: bytes
    configuration: int | None = None
    max_streams: int = 0
    reset_quirk: bool = False
