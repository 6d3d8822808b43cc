"""Where a capture is written: a descriptor that somebody has opened, or several files that are filled in turn."""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Iterable, Sequence

_PATIENCE_MS = 1000


class Outlet:
    """Open descriptors of files, which belong to it. More than one are written in turn, and over again. `replaces`:
    what is in them goes when the first of them is begun.

    Used by the thread that writes: everything may block as long as whoever reads likes.
    """

    def __init__(
        self, fds: Sequence[int], current: int = 0, named: Iterable[int] = (), *, replaces: bool = False
    ) -> None:
        self.fds = tuple(fds)
        self._current = current
        self._replaces = replaces
        self._named = {self.fds[each] for each in named}

    @property
    def current(self) -> int:
        """Which of them is written."""
        return self._current

    @property
    def named(self) -> list[int]:
        """Which of them are known to have had a name."""
        return [number for number, fd in enumerate(self.fds) if fd in self._named]

    @property
    def takes_turns(self) -> bool:
        """Whether there is another file to go on in."""
        return len(self.fds) > 1

    def begin(self) -> None:
        """Called before anything is written. Raises OSError."""
        if self._replaces:
            for fd in self.fds:
                empty(fd)

    def write(self, data: memoryview) -> int:
        """Write, and return how much. Raises OSError."""
        fd = self.fds[self._current]
        try:
            return os.write(fd, data)
        except BlockingIOError:  # a flag of the file, which its owner has set
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll(_PATIENCE_MS)
            return 0

    def lost(self) -> str:
        """Why nobody will ever see what is written; empty if somebody may."""
        fd = self.fds[self._current]
        if _links(fd):
            self._named.add(fd)
        elif fd in self._named:
            return "the file was removed"
        return ""

    def close(self) -> None:
        """Give them back."""
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def turn(self) -> None:
        """Go on in the next file, in the place of what is in it. Raises OSError."""
        self._current = (self._current + 1) % len(self.fds)
        empty(self.fds[self._current])


def empty(fd: int) -> None:
    """Take what is in a file out of it, and go to its start; a pipe or a device keeps nothing. Raises OSError."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)


def _links(fd: int) -> int:
    """Names of a regular file; a pipe has none."""
    status = os.fstat(fd)
    return status.st_nlink if stat.S_ISREG(status.st_mode) else 0
