"""Opening the files behind virtual devices: only what is a file, without waiting for anybody, and locked.

A FIFO, a socket or a terminal can keep whoever opens or writes it waiting for ever, and opening some devices does
something (a tape rewinds, a watchdog starts). So what is not a file is not even opened.
"""

from __future__ import annotations

import os
import stat

from ..errors import ConfigError, DeviceError
from ..files import mode_of, open_path
from .locks import lock

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def open_file(path: str, flags: int, *, what: str, block_device: bool = False) -> int:
    """Open what is there; the descriptor. `what`, such as `image disk.img`, begins every message. May block as
    long as the file system does.

    Raises ConfigError if it is no regular file (nor a block device, where that will do), OSError.
    """
    _check(mode_of(path), what, block_device)
    fd = open_path(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check(os.fstat(fd).st_mode, what, block_device)  # it may be another one by now
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_or_open(path: str, flags: int, *, what: str) -> int:
    """Open a regular file, or make it: whoever gets an old one looks at what is in it, and empties nothing. Raises
    ConfigError, OSError."""
    try:
        return open_path(path, flags | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return open_file(path, flags, what=what)


def claim(fd: int, *, exclusive: bool, what: str, remedy: str) -> None:
    """Lock an open file; on any error it is closed. Raises DeviceError, which ends with the `remedy`."""
    try:
        lock(fd, exclusive=exclusive)
    except BlockingIOError:
        os.close(fd)
        raise DeviceError(f"{what} is in use by another process or device; {remedy}") from None
    except OSError as error:
        os.close(fd)
        raise DeviceError(f"{what} cannot be locked: {error.strerror}") from None


def _check(mode: int, what: str, block_device: bool) -> None:
    if stat.S_ISREG(mode) or (block_device and stat.S_ISBLK(mode)):
        return
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    wanted = "a regular file or a block device" if block_device else "a regular file"
    raise ConfigError(f"{what} is {kind}; name {wanted}")
