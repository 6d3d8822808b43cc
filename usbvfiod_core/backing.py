"""Files of guest memory: how they are mapped, and what may happen to them under the mapping."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mapping import Owner, Place
    from .sigbus import Guard

_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 0x0002
_GAP = 4096
"""Numbers of descriptors in a row that are not open, behind which none is looked for."""


class Backing:
    """A file mapped as a whole, shared by the regions that lie in it. Raises OSError, ValueError, OverflowError.

    `map` is its first mapping, `view` what is handed out now, `regions` how many regions lie in it. `sealed` says that
    the file cannot shrink; if it can, `guard` is what makes an access harmless, None if there is no such thing here.
    """

    __slots__ = (
        "_entries",
        "_fd",
        "_in_memory",
        "_page",
        "_place",
        "guard",
        "key",
        "map",
        "regions",
        "sealed",
        "view",
        "writable",
    )

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
        known = seals(fd)
        self._in_memory = known is not None
        self.sealed = bool((known or 0) & _F_SEAL_SHRINK)
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

    def descriptor(self) -> int:
        """Another descriptor of the file, for whoever maps it anew; it belongs to the caller. Raises OSError.

        A mapping of Python's keeps one of its own (`trackfd` of mmap.mmap), which is looked for: so nothing is kept
        open twice for the sake of an upgrade that may never come.
        """
        if self._fd >= 0:
            return os.dup(self._fd)
        wanted = os.O_RDWR if self.writable else os.O_RDONLY
        fd = missing = 0
        while missing < _GAP:
            try:
                mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
                missing = 0
                # First, because a file that is not in memory may keep whoever asks it for anything else.
                if in_memory(fd) is self._in_memory and mode in (os.O_RDWR, wanted):
                    status = os.fstat(fd)
                    if (status.st_dev, status.st_ino) == self.key:
                        return os.dup(fd)
            except OSError:
                missing += 1
            fd += 1
        raise OSError(errno.EBADF, "the file of a mapping is not open any more")

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
