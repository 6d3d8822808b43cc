"""Files of guest memory: how they are mapped, and what may happen to them under the mapping."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mapping import Owner, Place
    from .sigbus import Guard

_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 0x0002


class Backing:
    """A file mapped as a whole, shared by the regions that lie in it. Raises OSError, ValueError, OverflowError.

    `map` is its first mapping, `view` what is handed out now, `regions` how many regions lie in it. `sealed` says that
    the file cannot shrink; if it can, `guard` is what makes an access harmless, None if there is no such thing here.
    """

    __slots__ = ("_entries", "_fd", "_page", "_place", "guard", "key", "map", "regions", "sealed", "view", "writable")

    def __init__(self, fd: int, key: tuple[int, int], size: int) -> None:
        self.key = key
        self._fd = -1
        self._place: Place | None = None
        self._entries: list[int] = []
        self.guard: Guard | None = None
        try:
            self.map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self.writable = True
        except PermissionError:
            self.map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
            self.writable = False
        self.view = memoryview(self.map)
        self.regions = 0
        # What huge pages are behind is mapped once more by its descriptor only.
        self._page = max(os.fstatvfs(fd).f_bsize, mmap.PAGESIZE)
        if self._page > mmap.PAGESIZE:
            self._fd = os.dup(fd)
        self.sealed = bool((seals(fd) or 0) & _F_SEAL_SHRINK)
        if not self.sealed:
            from .sigbus import guard

            self.guard = guard()
            self._protect(self.map)

    @property
    def place(self) -> Place:
        """Where `view` is."""
        from .mapping import Place

        if self._place is None:
            self._place = Place(self.map, self._page)
        return self._place

    def move(self) -> None:
        """Have `view` at another place from now on. Raises OSError."""
        from .mapping import Place

        owner = self.place.again(self._fd)
        self.view = memoryview(owner).cast("B")
        self._place = Place(owner, self._page)
        if not self.sealed:
            self._protect(owner)

    @property
    def has_faulted(self) -> bool:
        """Whether something was accessed that the file does not have any more."""
        return self.guard is not None and any(map(self.guard.has_faulted, self._entries))

    def _protect(self, owner: Owner) -> None:
        if self.guard is not None:
            self._entries.append(self.guard.protect(owner, self._page))

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def in_memory(fd: int) -> bool:
    """Whether a descriptor is one of a file in memory; see NOT_IN_MEMORY. Never blocks."""
    return seals(fd) is not None


def seals(fd: int) -> int | None:
    """The seals of a file (memfd_create(2)); None if it is not in memory: the kernel knows them only of files on tmpfs
    and hugetlbfs, and answers without asking the file system."""
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return None
