"""What a controller says all the time for a process that goes on if this one is killed; `recovery` reads it.

It is little: most of a controller's state is in its registers, which live where that process finds them, and in the
guest's memory.
"""

from __future__ import annotations

from typing import Final

from ..shared_area import Home

DEQUEUE: Final = 0
"""The address of the next command, or of the one under way, and its cycle bit."""
EVENTS: Final = 1
"""Where the primary event ring stood before that command."""
POINTER: Final = 2
"""CRCR as the driver has written it, in two halves."""
STOPPING: Final = 3
"""CRCR.CS and CRCR.CA, if they were written and not answered yet, and IGNORED."""
IGNORED: Final = 1 << 32
"""An upper half of CRCR that is written next belongs to a lower half that was ignored."""

_WORDS: Final = 4
_SLOTS: Final = 256


class Kept:
    """`home` of the registers, None if nobody is to find them; `command`, 64 bits each, of the command ring; and for
    each slot in `slots` whether it is enabled."""

    __slots__ = ("command", "home", "slots")

    def __init__(self, home: Home | None, command: memoryview, slots: memoryview) -> None:
        self.home: Final = home
        self.command: Final = command
        self.slots: Final = slots


def within(home: Home | None, area: memoryview) -> Kept:
    """With all but the registers at the beginning of an area."""
    slots = 8 * _WORDS
    return Kept(home, area[:slots].cast("Q"), area[slots : slots + _SLOTS])


def nowhere() -> Kept:
    """Where nobody looks for it."""
    return within(None, memoryview(bytearray(8 * _WORDS + _SLOTS)))
