"""What Linux makes of an endpoint whose descriptor says what its speed does not allow (usb_parse_endpoint).

Devices that say so are many, and work: the kernel that has one schedules it, and cuts its data, by the numbers that it
has put in their place. What a guest sees is the device's own word; its system does the same with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..usb.descriptors import Endpoint
from ..usb.speed import Speed
from ..usb.transfer import TransferType

_CONTROL, _ISOCHRONOUS = TransferType.CONTROL, TransferType.ISOCHRONOUS
_BULK, _INTERRUPT = TransferType.BULK, TransferType.INTERRUPT

_LONGEST: Final = {
    Speed.LOW: {_CONTROL: 8, _ISOCHRONOUS: 0, _BULK: 8, _INTERRUPT: 8},
    Speed.FULL: {_CONTROL: 64, _ISOCHRONOUS: 1023, _BULK: 64, _INTERRUPT: 64},
    Speed.HIGH: {_CONTROL: 64, _ISOCHRONOUS: 1024, _BULK: 512, _INTERRUPT: 1024},
}
"""Bytes of a packet at most (USB 2.0 5.5.3 to 5.8.3); above, it is 512 for control transfers and 1024 for others.
Linux lets a bulk endpoint at high speed have 1024, and its driver of xHCI has packets of 512 all the same."""

_TRANSACTIONS: Final = 3 << 11
"""Bits of wMaxPacketSize that only periodic endpoints at high speed have (USB 2.0 table 9-13)."""


_MOST_BURST: Final = 15
_MOST_MULT: Final = 2
_FASTER_COMPANION: Final = 0x80
"""Of an isochronous endpoint's companion (USB 3.2 table 9-28): another descriptor has the bytes of an interval."""


def as_taken(endpoint: Endpoint, speed: Speed) -> Endpoint:
    """The endpoint as the kernel treats it. At low speed one of type bulk is an interrupt endpoint (USB 2.0 5.8.3)."""
    if speed is Speed.LOW and endpoint.type is _BULK:
        endpoint = replace(endpoint, attributes=endpoint.attributes & ~3 | _INTERRUPT, interval=1)
    type = endpoint.type
    size, transactions = endpoint.max_packet_size, 0
    if speed is Speed.HIGH and type in (_INTERRUPT, _ISOCHRONOUS):
        size, transactions = size & ~_TRANSACTIONS, size & _TRANSACTIONS
    longest = _LONGEST[speed][type] if speed in _LONGEST else 512 if type is _CONTROL else 1024
    interval = _interval(endpoint, speed)
    if size <= longest and interval == endpoint.interval:
        return endpoint
    return replace(endpoint, max_packet_size=min(size, longest) | transactions, interval=interval)


def longest_packet(endpoint: Endpoint, speed: Speed) -> int:
    """Bytes in a service interval of an isochronous endpoint, at most, which is as it is taken: Linux refuses
    a request with a packet that has room for more (usb_submit_urb). 0 where its descriptors do not tell."""
    companion = endpoint.companion
    if speed < Speed.SUPER:
        return endpoint.packet_size * endpoint.transactions
    if companion is None or companion.attributes & _FASTER_COMPANION:
        return 0
    burst, mult = min(companion.max_burst, _MOST_BURST), min(companion.attributes & 3, _MOST_MULT)
    return endpoint.packet_size * (burst + 1) * (mult + 1)


def serves(endpoint: TransferType, transfer: TransferType) -> bool:
    """Whether an endpoint of this type takes such a transfer of a guest: its system may have made an interrupt endpoint
    of a bulk endpoint, or not, and the kernel takes the one for the other."""
    return endpoint is transfer or {endpoint, transfer} == {_BULK, _INTERRUPT}


def _interval(endpoint: Endpoint, speed: Speed) -> int:
    """bInterval, or what takes its place: 8 or 10 milliseconds, or what a device means that counts milliseconds at high
    speed."""
    interval = endpoint.interval
    if endpoint.type is _ISOCHRONOUS:
        most, other = 16, 7 if speed is Speed.HIGH else 4
    elif endpoint.type is not _INTERRUPT:
        return interval
    elif speed < Speed.HIGH:
        most, other = 255, 10
    else:
        most, other = 16, (interval * 8).bit_length() or 7
    return interval if 1 <= interval <= most else other
