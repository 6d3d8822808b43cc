"""One at a time in a directory of sockets: finding out that a socket is stale and taking its place are two steps, and
another server could take it between them.

The lock is one on the directory itself (flock(2)), held for that moment. So nothing is left behind that could be stale,
and by whatever name a server reaches the directory, it is the same.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger(__name__)

_PACE: Final = 0.002


class Directory:
    """The directory of `path`, kept open: a server that has confined itself may not open it again."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name: Final = os.path.dirname(os.fspath(path)) or "."
        try:
            self._fd = os.open(self._name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # what is to be done there says what is wrong

    @contextmanager
    def alone(self, patience: float) -> Iterator[bool]:
        """While no other server changes what is in it; False where that could not be had: it cannot be read, or
        somebody has kept it locked for `patience` seconds, as whoever may read it can."""
        locked = self._fd >= 0 and self._lock(time.monotonic() + patience)
        try:
            yield locked
        finally:
            if locked:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Nothing more is done there."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self, deadline: float) -> bool:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    log.warning(
                        "somebody keeps %s locked (see lslocks); the directory is used all the same", self._name
                    )
                    return False
            except OSError as error:
                log.debug("the directory %s cannot be locked: %s", self._name, error.strerror)
                return False
            time.sleep(_PACE)


@contextmanager
def alone_beside(path: str | os.PathLike[str], patience: float) -> Iterator[bool]:
    """`Directory.alone` in the directory of `path`, once."""
    directory = Directory(path)
    try:
        with directory.alone(patience) as alone:
            yield alone
    finally:
        directory.close()
