"""What has come from a client, where a process finds it that goes on if this one is killed.

A request that was received and not answered is lost with its process, and the client waits for ever. So what is
received goes into an area that survives, and a mark says up to where it has been answered. Nobody says how much has
come: what nothing has come to holds FILLER. The area has two halves, which take turns; the mark says which one counts,
so one store changes over.

A reply may or may not have gone out when the process ends between the two marks: `doubtful`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .wire import HEADER, HEADER_SIZE, MAX_MESSAGE_SIZE, REGISTER_MESSAGE

HALF: Final = 0x20_0000
"""Bytes of one half: room for what is received at a time, and for the longest message."""
AREA_SIZE: Final = 2 * HALF
MARKS: Final = 3
FILLER: Final = 0xA5
"""A byte that seldom ends a message."""

_ANSWERED, _EXECUTED, _IN_PARTS = range(MARKS)
_PIECE: Final = 4
"""No client sends a message in pieces that are shorter; less than that is missing only because it looks like FILLER."""


class KeptInput:
    """`marks`: MARKS words of 64 bits. `area`: AREA_SIZE bytes. One client's, from its first byte on."""

    def __init__(self, marks: memoryview, area: memoryview) -> None:
        self._marks = marks
        self._area = area
        self._base = 0
        self._filled = [0, 0]  # up to where each half holds FILLER, or what has come
        marks[_ANSWERED] = marks[_EXECUTED] = marks[_IN_PARTS] = 0

    def window(self, size: int) -> memoryview:
        """Where to receive to at first: `size` bytes, and room for a register message behind them."""
        return self._fill(0, size)

    def turn(self, left: memoryview, used: int, size: int) -> memoryview:
        """Receive to the other half from now on, which begins with `left`, what is not answered of this one, of which
        `used` bytes have been received."""
        new = HALF - self._base
        window = self._fill(new, size)
        window[: len(left)] = left
        self._marks[_EXECUTED] = 0
        self._marks[_ANSWERED] = new
        old, self._base = self._base, new
        self._area[old : old + used] = bytes([FILLER]) * used
        return window

    def executed(self, position: int, *, in_parts: bool) -> None:
        """Replies to what is before `position` of the window are about to be sent, `in_parts` if not by one call."""
        self._marks[_IN_PARTS] = in_parts
        self._marks[_EXECUTED] = self._base + position

    def answered(self, position: int) -> None:
        """They have been sent, or there are none."""
        self._marks[_ANSWERED] = self._base + position

    def _fill(self, base: int, size: int) -> memoryview:
        """A window at the beginning of a half, in which nothing has come."""
        window = self._area[base : base + size + REGISTER_MESSAGE.size]
        half = base // HALF
        more = len(window) - self._filled[half]
        if more > 0:
            window[-more:] = bytes([FILLER]) * more
            self._filled[half] = len(window)
        return window


class FoundInput(NamedTuple):
    """What had come: `data` begins with the first message that was not surely answered, and `doubtful` of its bytes are
    messages that were executed, and answered or not."""

    data: bytes
    doubtful: int


def found(marks: memoryview, area: memoryview) -> FoundInput:
    """What there is of a process that was killed. Raises ValueError if it makes no sense, or a part of a reply may have
    been sent."""
    answered, executed, in_parts = marks[:MARKS]
    base = HALF if answered >= HALF else 0
    if answered >= AREA_SIZE:
        raise ValueError("the client's messages are answered up to where there are none")
    half = bytes(area[answered : base + HALF])
    data = half.rstrip(b"\0").rstrip(bytes([FILLER]))  # what nobody has received to yet is 0
    doubtful = max(executed - answered, 0) if base <= executed < base + HALF else 0
    if doubtful and in_parts:
        raise ValueError("a reply to the client may have been sent in part")
    at = 0
    while len(data) - at >= HEADER_SIZE:
        size = HEADER.unpack_from(data, at)[2]
        if not HEADER_SIZE <= size <= MAX_MESSAGE_SIZE:
            break  # told when it is executed
        at += size
        if at > len(data):
            if at - len(data) < _PIECE:
                data = half[:at]
            break
    if doubtful > len(data):
        raise ValueError("more was executed of the client's messages than has come")
    return FoundInput(data, doubtful)
