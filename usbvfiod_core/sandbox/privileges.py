"""What a process gives up for good without any module of the kernel: new privileges, capabilities, being looked into,
and more memory, descriptors and core files than it needs."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Collection
from struct import pack
from typing import Final

from ..descriptors import DESCRIPTORS
from .kernel import checked, libc

MEMORY: Final = 4 << 30
"""Bytes of the process's own memory, the stacks of hundreds of threads included; guest memory is not part of it."""

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 24, 38, 47
_AMBIENT_CLEAR_ALL: Final = 4
_LAST_CAPABILITY: Final = 63
_CAPABILITY_VERSION: Final = 0x20080522


def no_new_privileges() -> None:
    """Nothing that is executed gets more rights; landlock and seccomp ask for it. Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def not_dumpable() -> None:
    """No core file, and no other process of the same user looks into this one. Raises OSError."""
    _prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def drop_capabilities(kept: Collection[int] = ()) -> None:
    """Give up every capability of this thread but those that are `kept`, as far as it has them. Raises OSError."""
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    for number in range(_LAST_CAPABILITY + 1):
        if number not in kept and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) and ctypes.get_errno() == 22:
            break  # the kernel has no more; what may not be dropped, without CAP_SETPCAP, cannot be gained either
    header = pack("=Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    checked(libc.capget(header, data), "capget")
    effective, permitted, _, more_effective, more_permitted, _ = memoryview(data).cast("B").cast("I").tolist()
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    wanted = (effective & low, permitted & low, 0, more_effective & high, more_permitted & high, 0)
    checked(libc.capset(header, pack("=6I", *wanted)), "capset")


def limit() -> None:
    """Limit memory and descriptors for good; processes are seccomp's. Raises OSError."""
    _lower(resource.RLIMIT_DATA, MEMORY)
    _lower(resource.RLIMIT_NOFILE, DESCRIPTORS)


# -- own ---------------------------------------------------------------------------------------------------------------


def _lower(kind: int, most: int) -> None:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (_least(soft, most), _least(hard, most)))


def _least(limit: int, most: int) -> int:
    return most if limit == resource.RLIM_INFINITY else min(limit, most)


def _prctl(what: int, value: int) -> None:
    checked(libc.prctl(what, value, 0, 0, 0), "prctl")
