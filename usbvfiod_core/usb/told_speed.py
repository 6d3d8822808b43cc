"""At which speed a device of another machine runs, where what that machine says does not fit the device's descriptors.

Servers tell the speed of a device, some of them wrongly: of a SuperSpeed device that it has high speed, and of one of
full speed as well, since it keeps to USB 2.0; of a device whose speed their system does not tell them, nothing, or the
number that happens to mean low. A guest's driver believes the port, and gives up a device whose endpoint 0 cannot be of
its speed (Linux: "Invalid ep0 maxpacket") or whose bulk endpoints cannot (Windows).
"""

from __future__ import annotations

from collections.abc import Iterable

from .descriptors import DeviceDescriptor, Endpoint
from .speed import Speed
from .transfer import TransferType

_SUPER_SIZE, _LOW_SIZE = 9, 8
_FULL_SIZES = (8, 16, 32)
"""bMaxPacketSize0 (USB 3.2 table 9-11, USB 2.0 5.5.3): 64 is the only one at high speed, and one of those at full."""


def by_endpoint(endpoint: Endpoint) -> Speed | None:
    """Which of full and high speed a device has for which this endpoint is described; None if both are possible."""
    longest = 1023 if endpoint.type is TransferType.ISOCHRONOUS else 64  # at full speed (USB 2.0 5.6.3, 5.7.3, 5.8.3)
    if endpoint.packet_size > longest:
        return Speed.HIGH
    return Speed.FULL if endpoint.type is TransferType.BULK and endpoint.packet_size else None


def believable(told: Speed | None, device: DeviceDescriptor, endpoints: Iterable[Endpoint]) -> Speed:
    """The speed that was told, or the one that the descriptors show if that one is impossible or was not told."""
    size = device.max_packet_size_0
    if size == _SUPER_SIZE:
        return told if told is not None and told.is_usb3 else Speed.SUPER
    shown = {by_endpoint(each) for each in endpoints}
    if told is Speed.FULL or (told is Speed.LOW and size == _LOW_SIZE):
        return told
    is_full = Speed.HIGH not in shown and (Speed.FULL in shown or size in _FULL_SIZES)
    return Speed.FULL if is_full else Speed.HIGH
