"""Landlock (landlock(7)): which files this thread, and all that it starts, can open, and which TCP ports it connects.

Which rights there are depends on the kernel's ABI: `handled` says it as a function of the number, from 1 up. A right
that the kernel does not know yet is not restricted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from struct import pack
from typing import Final, NamedTuple

from .kernel import checked, libc

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(13, 16))
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 1, 2

READ: Final = READ_FILE | READ_DIR
CREATE: Final = READ_DIR | REMOVE_FILE | MAKE_DIR | REMOVE_DIR | MAKE_REG | MAKE_SOCK | MAKE_SYM
WRITE: Final = READ | WRITE_FILE | TRUNCATE | IOCTL_DEV | CREATE
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What can be allowed of something that is no directory."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION: Final = 1
_PATH_BENEATH, _NET_PORT = 1, 2


class Handled(NamedTuple):
    """struct landlock_ruleset_attr, and how many bytes of it a kernel knows."""

    files: int
    network: int
    scopes: int
    size: int


def handled(abi: int, *, abstract: bool = False) -> Handled:
    """What a kernel with `abi` can restrict. `abstract`: sockets with abstract names are connected."""
    files = (1 << 13) - 1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        if abi >= since:
            files |= right
    network = BIND_TCP | CONNECT_TCP if abi >= 4 else 0
    scopes = (SCOPE_SIGNAL | (0 if abstract else SCOPE_ABSTRACT_UNIX)) if abi >= 6 else 0
    return Handled(files, network, scopes, 24 if abi >= 6 else 16 if abi >= 4 else 8)


def lacking(abi: int) -> list[str]:
    """What a kernel with `abi` lets through that a newer one would not, for people."""
    parts = ((3, "truncating files"), (4, "TCP connections"), (5, "ioctls of devices"), (6, "abstract sockets"))
    return [what for since, what in parts if abi < since]


def abi() -> int:
    """The kernel's ABI; 0 without Landlock."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    except OSError:
        return 0


def restrict(
    rights: Mapping[Path, int],
    ports: Iterable[int] = (),
    own_ports: Iterable[int] = (),
    *,
    version: int,
    abstract: bool = False,
) -> None:
    """Allow `rights` at and below each path, connections to `ports`, listening at `own_ports`, and nothing else from
    now on. The thread must have given up new privileges before. Paths that are not there are left out. Raises
    OSError."""
    what = handled(version, abstract=abstract)
    attributes = pack("=QQQ", what.files, what.network, what.scopes)[: what.size]
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(what.size), ctypes.c_uint32(0))
    try:
        for path, right in rights.items():
            _allow(ruleset, path, right & what.files)
        if what.network:
            for port in ports:
                _add(ruleset, _NET_PORT, pack("=QQ", CONNECT_TCP, port))
            for port in own_ports:
                _add(ruleset, _NET_PORT, pack("=QQ", BIND_TCP, port))
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


# -- own ---------------------------------------------------------------------------------------------------------------


def _allow(ruleset: int, path: Path, right: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENXIO):
            return
        raise
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            right &= _OF_FILES
        if right:
            _add(ruleset, _PATH_BENEATH, pack("=Qi", right, fd))
    finally:
        os.close(fd)


def _add(ruleset: int, kind: int, attributes: bytes) -> None:
    _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_uint32(kind), attributes, ctypes.c_uint32(0))


def _call(number: int, *arguments: object) -> int:
    return checked(libc.syscall(ctypes.c_long(number), *arguments), "landlock")
