"""Locks on the files behind virtual devices: one writer or many readers, as other programs see it, too.

Three kinds of locks are taken together, because no program asks for all of them:

    flock(2)                      older servers of ours, and util-linux's `flock`
    byte 0 (F_OFD_SETLK)          libvirt's virtlockd: a write lock of a writer, read locks of readers
    bytes 100 and 200 (likewise)  QEMU's image locking: a read lock at 100 + N says "I do N", one at 200 + N "nobody
                                  else may do N"; whoever comes looks at the other range before it begins

N is the number of a permission of QEMU's block layer. None of them keeps out a program that does not ask.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable

_FLOCK = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
_READS, _WRITES, _RESIZES = 0, 1, 3
_DOES, _FORBIDS = 100, 200
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(fd: int, *, exclusive: bool) -> None:
    """Lock an open file, for writing if `exclusive`; whoever closes `fd` unlocks it. `fd` can be read, and written if
    `exclusive`. Does not wait: raises BlockingIOError if somebody else has a lock that does not go with it, OSError.

    A file system without locks is the user's choice; failing would take the file away for nothing.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    does = (_READS, _WRITES) if exclusive else (_READS,)
    forbids = (_WRITES, _RESIZES)
    try:
        _set(fd, fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, 0)
        for number in does:
            _set(fd, fcntl.F_RDLCK, _DOES + number)
        for number in forbids:
            _set(fd, fcntl.F_RDLCK, _FORBIDS + number)
        # Only now: of two that begin at once, one at least sees the other.
        _check(fd, [*(_FORBIDS + number for number in does), *(_DOES + number for number in forbids)])
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        if error.errno not in _UNSUPPORTED:
            raise


def unlock(fd: int) -> None:
    """Let others have it, though it is still open. Does not wait."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _set(fd: int, kind: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _check(fd: int, bytes_: Iterable[int]) -> None:
    """Raise BlockingIOError if anybody else has a lock on one of these."""
    for byte in bytes_:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        if _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
