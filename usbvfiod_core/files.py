"""Files that options name, opened with the rights of whoever has asked for the device.

A device that is configured opens what the server's user may. One that a client of the control socket attaches may have
been given open files, by their paths; and if that client is another user, nothing else is opened for it but what is
below the directories that the configuration names. So whatever opens a file for a device does it with `open_path`,
while the device is being opened; see `Backend.open`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Final

from . import rights
from .errors import DeviceError

_OPENAT2: Final = 437  # on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08
_OPEN_HOW: Final = Struct("@QQQ")
"""struct open_how (linux/openat2.h): flags, mode, resolve."""
_SETTABLE: Final = os.O_APPEND | os.O_NONBLOCK

_libc = ctypes.CDLL(None, use_errno=True)


class Descriptor:
    """An open file descriptor that is closed when nobody has this object any more, by `close`: that of somebody else's
    file can take long."""

    def __init__(self, fd: int, close: Callable[[int], object] = os.close) -> None:
        self.fd: Final = fd
        self._close = close

    def __del__(self) -> None:
        self._close(self.fd)


@dataclass(frozen=True, slots=True)
class Grant:
    """What may be opened for a device: `given` is open already, by path; the rest must be below one of `directories`,
    or, where these are None, is opened with the server's rights."""

    given: Mapping[str, Descriptor] = field(default_factory=dict)
    directories: tuple[Path, ...] | None = None


_grant: ContextVar[Grant | None] = ContextVar("grant", default=None)


@contextmanager
def granted(grant: Grant | None) -> Iterator[None]:
    """What this thread opens inside is opened under `grant`; None for the server's rights."""
    token = _grant.set(grant)
    try:
        yield
    finally:
        _grant.reset(token)


def open_path(path: str, flags: int, mode: int = 0o666) -> int:
    """As os.open with O_CLOEXEC, of a file that an option names. May block as long as the file system does.

    Of one that was given, the descriptor shares its offset and its locks with whoever has opened it. Raises OSError;
    DeviceError if it was opened for less than `flags` say, or may not be opened for this device.
    """
    grant = _grant.get()
    given = None if grant is None else grant.given.get(path)
    if given is not None:
        return _again(given.fd, path, flags)
    if grant is None or grant.directories is None:
        try:
            return os.open(path, flags | os.O_CLOEXEC, mode)
        except PermissionError:
            if not rights.has_opener() or flags & os.O_CREAT:
                raise
            return rights.ask(path, flags)
    return open_beneath(grant.directories, path, flags, mode)


def mode_of(path: str) -> int:
    """The kind and the permissions of such a file, st_mode, without opening it. Raises OSError and DeviceError."""
    grant = _grant.get()
    given = None if grant is None else grant.given.get(path)
    if given is not None:
        return os.fstat(given.fd).st_mode
    if grant is None or grant.directories is None:
        try:
            return os.stat(path).st_mode
        except PermissionError:
            fd = rights.ask(path, os.O_RDONLY)
    else:
        fd = open_beneath(grant.directories, path, os.O_PATH)
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def open_beneath(directories: tuple[Path, ...], path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file below one of the directories; neither `..` nor a link on the way leads out of it. Raises OSError, and
    DeviceError if it is below none of them."""
    for directory in directories:
        try:
            below = Path(path).relative_to(directory)
        except ValueError:
            continue
        top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _openat2(top, str(below), flags, mode)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise DeviceError(f"{path} leads out of {directory}, below which this server opens files") from None
            raise
        finally:
            os.close(top)
    allowed = ", ".join(map(str, directories))
    where = f", only files below {allowed}" if allowed else ""
    raise DeviceError(
        f"{path} is not opened by this server for another user{where}; pass it open, as `usbvfiod attach` does, "
        "or name its directory in [control] directories"
    )


def _openat2(top: int, below: str, flags: int, mode: int) -> int:
    mode = mode if flags & os.O_CREAT else 0
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    fd = int(_libc.syscall(_OPENAT2, top, os.fsencode(below), how, len(how)))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), below)
    return fd


def _again(fd: int, path: str, flags: int) -> int:
    """Another descriptor of an open file, for what `flags` say."""
    if flags & os.O_EXCL:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    has, wanted = fcntl.fcntl(fd, fcntl.F_GETFL), flags & os.O_ACCMODE
    if has & os.O_PATH or (has & os.O_ACCMODE not in (os.O_RDWR, wanted)):
        needed = {os.O_RDONLY: "reading", os.O_WRONLY: "writing"}.get(wanted, "reading and writing")
        raise DeviceError(f"{path} has to be opened for {needed} before it is passed")
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & _SETTABLE)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
