"""Installing a filter of system calls for every thread of this process (seccomp(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .bpf import Instruction, assembled
from .calls import AUDIT_ARCH, numbers
from .kernel import libc

_SET_MODE_FILTER: Final = 1
_TSYNC: Final = 1
_LOG: Final = 2
_ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def machine() -> str:
    """What this process runs on, as `AUDIT_ARCH` names it; empty if there is no table for that."""
    name = os.uname().machine
    return name if name in AUDIT_ARCH and ctypes.sizeof(ctypes.c_void_p) == 8 else ""


def missing() -> str:
    """Why no filter can be installed here; empty if one can."""
    if not machine():
        return f"there is no table of system calls for {os.uname().machine}"
    try:
        actions = _ACTIONS.read_text().split()
    except OSError:
        return "" if libc.prctl(21, 0, 0, 0, 0) == 0 else "the kernel has none"  # PR_GET_SECCOMP
    return "" if "errno" in actions else "the kernel cannot refuse system calls"


def install(instructions: Sequence[Instruction], *, logged: bool = True) -> None:
    """Filter the system calls of all threads from now on; those that are refused are `logged` by the kernel. The
    process must have given up new privileges before. Raises OSError."""
    text = assembled(instructions)
    program = _Program(len(instructions), text)
    call = numbers(machine())["seccomp"]
    for flags in (_TSYNC | _LOG * logged, _TSYNC):  # kernels before 4.14 log nothing
        code = libc.syscall(
            ctypes.c_long(call), ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(flags), ctypes.byref(program)
        )
        if code == 0:
            return
        number = ctypes.get_errno()
        if code > 0:
            raise OSError(0, f"thread {code} has a filter of its own")
        if number != 22:  # EINVAL
            break
    raise OSError(number, os.strerror(number))
