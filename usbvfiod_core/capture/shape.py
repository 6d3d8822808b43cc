"""What records of a file have in common: made once, since most are records of the same endpoints and lengths."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from . import pcapng, usbmon
from .numbered import Numbered

PACKET: Final = Struct("<IIIIIII" + usbmon.HEADER.format[1:])
"""The start of an Enhanced Packet Block, and of the record in it."""
_HEADER: Final = usbmon.HEADER.size
BLOCK: Final = PACKET.size - _HEADER
"""Bytes of the block in front of the record."""
_BEHIND: Final = Struct("<I8siiII")
"""A record behind the length: bytes that are kept, setup bytes, interval, start frame, flags, descriptors."""
_START: Final = Struct("<III")
_SIZES: Final = Struct("<II")
_WITH_DATA: Final = Struct("<12sII8sQ8sqiiI28s")
"""The start of such a block, with what is the same for many of them in four pieces."""
_BARE: Final = Struct("<12sII8sQ8sqiiI32s")
"""A whole block without data."""
_LENGTHS: Final = 128
"""Lengths of data for which the pieces are kept."""


class Shape:
    """What all submissions of one bulk or interrupt endpoint have in common, or all completions.

    `what` is the part of the record from the kind to the data flag, `carries` whether data go with it, `interval` and
    `flags` are its fields.
    """

    __slots__ = ("_behind", "_carries", "made", "numbered", "what")

    def __init__(self, numbered: Numbered, what: bytes, *, carries: bool, interval: int, flags: int) -> None:
        self.numbered = numbered
        self.what = what
        self._carries = carries
        self._behind = bytes(8), interval, 0, flags, 0
        self.made: dict[int, tuple[Callable[..., None], int, bytes, bytes, bytes, int]] = {}
        """What is the same for all of one length; see `Recorder.plain`."""

    def make(self, length: int, snap_length: int) -> tuple[Callable[..., None], int, bytes, bytes, bytes, int]:
        """Make it for a length."""
        captured = length if self._carries else 0
        whole = _HEADER + captured
        kept = min(whole, snap_length)
        size = BLOCK + kept + (-kept & 3) + 4
        start, sizes = _START.pack(pcapng.ENHANCED_PACKET, size, self.numbered.index), _SIZES.pack(kept, whole)
        behind = _BEHIND.pack(captured, *self._behind)
        if kept == _HEADER:
            made = _BARE.pack_into, size, start, sizes, behind + size.to_bytes(4, "little"), 0
        else:
            made = _WITH_DATA.pack_into, size, start, sizes, behind, kept - _HEADER
        if len(self.made) >= _LENGTHS:
            self.made.clear()
        self.made[length] = made
        return made
