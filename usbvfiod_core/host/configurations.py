"""Which part of a device's descriptors belongs to which configuration, as Linux lists them.

sysfs's `descriptors` is the device descriptor, then each configuration with all that belongs to it. The kernel has read
as many bytes as wTotalLength says, or as the device had, and lists as many of them as are whole descriptors
(usb_parse_configuration): what cannot be read is left out with all that follows it, and wTotalLength is still the
device's. So a configuration is never longer than wTotalLength, may be shorter, and may have descriptors of any kind in
it, such as that of a configuration.
"""

from __future__ import annotations

from functools import cache

from ..usb.descriptors import CONFIGURATION, Configuration, Endpoint, walk

_DEVICE_LENGTH = 18
_HEADER_LENGTH = 9
_MOST_CONFIGURATIONS = 8  # Linux reads no more (USB_MAXCONFIG)
_MOST_HEADERS = 64
_IMPOSSIBLE = 1 << 16


def configurations(descriptors: bytes) -> list[bytes]:
    """The configurations behind a device descriptor, each with all that belongs to it, as long as they can be read.

    Where there is more than one way to divide them into as many as the device says it has, it is the one in which the
    most total lengths are right, and then the one with the longest.
    """
    data = descriptors[_DEVICE_LENGTH:]
    heads, end = [], 0
    for kind, part in walk(data):
        if kind == CONFIGURATION and len(part) >= _HEADER_LENGTH:
            heads.append(end)
        end += len(part)
    if not heads:
        return []
    count = min(max(descriptors[17], 1), len(heads), _MOST_CONFIGURATIONS)
    starts = _divided(data, heads, end, count) if len(heads) <= _MOST_HEADERS else _in_turn(data, heads, end)
    return [data[start:stop] for start, stop in zip(starts, [*starts[1:], end], strict=True)]


def endpoints(descriptors: bytes) -> list[Endpoint]:
    """Those of all configurations behind a device descriptor."""
    found = [Configuration.unpack(raw) for raw in configurations(descriptors)]
    return [each for configuration in found for interface in configuration.interfaces for each in interface.endpoints]


def _total(data: bytes, start: int) -> int:
    """How many bytes the kernel has asked for at most."""
    return max(int.from_bytes(data[start + 2 : start + 4], "little"), _HEADER_LENGTH)


def _divided(data: bytes, heads: list[int], end: int, count: int) -> list[int]:
    """Where the configurations start, if there are `count`; fewer, if so many are not possible."""

    @cache
    def best(index: int, count: int) -> tuple[int, tuple[int, ...]]:
        """How many total lengths are wrong from a start on, and the starts."""
        start = heads[index]
        total = _total(data, start)
        if count == 1:
            return (int(end - start != total) if end - start <= total else _IMPOSSIBLE), (start,)
        found: tuple[int, tuple[int, ...]] = _IMPOSSIBLE, ()
        for following in range(len(heads) - 1, index, -1):
            length = heads[following] - start
            if length <= total:
                wrong, starts = best(following, count - 1)
                if wrong + (length != total) < found[0]:
                    found = wrong + (length != total), (start, *starts)
        return found

    for number in range(count, 0, -1):
        wrong, starts = best(0, number)
        if wrong < _IMPOSSIBLE:
            return list(starts)
    return _in_turn(data, heads, end)


def _in_turn(data: bytes, heads: list[int], end: int) -> list[int]:
    """Where the configurations start, if each total length is right that can be, and ends at the next header if not."""
    starts, known = [], {*heads, end}
    position = heads[0]
    while position < end:
        starts.append(position)
        following = position + _total(data, position)
        if following not in known:
            following = next((head for head in heads if head > position), end)
        position = following
    return starts
