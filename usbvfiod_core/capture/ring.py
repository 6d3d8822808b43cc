"""A ring of bytes between the loop, which puts records in, and the thread that writes them out."""

from __future__ import annotations

from contextlib import suppress
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap


class Ring:
    """A buffer of `size` bytes. One thread reserves and commits, one other reads and releases; neither ever waits.

    What is committed at once stays in one piece.
    """

    __slots__ = ("_at", "_before", "_end", "_size", "_tail", "head", "view")

    def __init__(self, size: int) -> None:
        memory = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without them
            memory.madvise(MADV_HUGEPAGE)  # to look up a page for each few records costs more than to copy them
        self.view = memoryview(memory)
        # All of it at once: a page that is touched for the first time costs more than what is put into it.
        self.view[::PAGESIZE] = bytes(-(-size // PAGESIZE))
        self._size = size
        self.head = 0
        """Where the next bytes go. Equal to `_tail` if there are none."""
        self._tail = 0
        self._before = 0
        """Bytes that were committed in earlier rounds."""
        self._end = size
        """Where the bytes that are read end, if those behind them are at the start of the buffer."""
        self._at = 0

    def reserve(self, length: int, spare: int = 0) -> int:
        """Where in `view` so many bytes may be put, before `commit`, with `spare` bytes left; -1 if there is no room.

        What is spared must be a small part of the whole, since it lies in one piece as well."""
        head, tail = self.head, self._tail
        needed = length + spare
        if head >= tail:
            if head + needed < self._size:
                self._at = head
                return head
            if needed < tail:
                self._at = 0
                return 0
        elif head + needed < tail:
            self._at = head
            return head
        return -1

    def commit(self, length: int) -> None:
        """The bytes that were reserved last are there."""
        at = self._at
        if at != self.head:
            self._end = self.head
            self._before += self.head
        self.head = at + length

    @property
    def committed(self) -> int:
        """All bytes that were ever committed."""
        return self._before + self.head

    def limit(self, spare: int) -> int:
        """Up to where bytes may be put from `head` on, without `reserve`: `head` moved behind them commits them."""
        tail = self._tail
        return (self._size if self.head >= tail else tail) - 1 - spare

    def readable(self) -> memoryview:
        """The oldest bytes, as far as they lie in one piece; empty if there are none."""
        head, tail = self.head, self._tail
        if head < tail:
            if tail < self._end:
                return self.view[tail : self._end]
            self._tail = tail = 0
        return self.view[tail:head]

    def release(self, length: int) -> None:
        """So many of the bytes that `readable` has given are done with."""
        self._tail += length
