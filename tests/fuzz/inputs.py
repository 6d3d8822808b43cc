"""An input is bytes; a target reads from them what to do. So a mutation of the bytes is another story, and the same
bytes are the same story with a fuzzing engine and without one."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

EDGES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 64, 255, 256, 512, 1024, 4095, 4096, 0xFFFF, 0x10000, 0x1FFFF, 1 << 31)
LARGE = ((1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 16, (1 << 64) - 1)


class Actions:
    """Reads choices and numbers. At the end of the input everything is 0, the first choice, or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        at = self._at
        if at >= len(self._data):
            return 0
        self._at = at + 1
        return self._data[at]

    def below(self, limit: int) -> int:
        """0 to `limit` - 1."""
        if limit <= 256:
            return self.byte() % limit
        return int.from_bytes(self.blob(4 if limit <= 1 << 32 else 8), "little") % limit

    def flag(self) -> bool:
        """True as often as False."""
        return bool(self.byte() & 1)

    def rarely(self) -> bool:
        """True once in sixteen times."""
        return self.byte() % 16 == 15

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def number(self, size: int) -> int:
        """Of `size` bytes: one that is on the edge of something, or any."""
        kind = self.byte()
        if kind < len(EDGES) * 4:
            value = EDGES[kind >> 2]
        elif kind < len(EDGES) * 4 + len(LARGE) * 4:
            value = LARGE[kind - len(EDGES) * 4 >> 2]
        else:
            value = int.from_bytes(self.blob(size), "little")
        return value & (1 << 8 * size) - 1

    def blob(self, length: int) -> bytes:
        """The next `length` bytes, with zeros behind the end of the input."""
        data = self._data[self._at : self._at + length]
        self._at += len(data)
        return data.ljust(length, b"\0")

    def some(self, most: int) -> bytes:
        """At most so many bytes, as many as the input says, and no zeros behind its end."""
        length = self.below(most + 1)
        data = self._data[self._at : self._at + length]
        self._at += len(data)
        return data

    def rest(self) -> bytes:
        """All that is left."""
        data = self._data[self._at :]
        self._at = len(self._data)
        return data

    def dwords(self, most: int) -> tuple[int, ...]:
        """1 to `most` numbers of 32 bits."""
        count = 1 + self.below(most)
        return struct.unpack(f"<{count}I", self.blob(4 * count))
