"""The doors to the kernel that Python has no functions for."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

libc: Final[Any] = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a function of `libc`. Raises OSError if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
