"""The C library's heap: what a server holds of it beside what it uses. Only glibc's has something to set (mallopt(3),
malloc_trim(3)); with another one nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

_libc = ctypes.CDLL(None)
_mallopt: Callable[[int, int], int] | None = getattr(_libc, "mallopt", None)
_malloc_trim: Callable[[int], int] | None = getattr(_libc, "malloc_trim", None)

_M_ARENA_MAX: Final = -8


def share() -> None:
    """Have all threads use one heap; called before there are any. Otherwise each gets one of its own and touches a
    hundred kilobytes of it at least, so that threads need not wait for each other; Python's do anyway."""
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what is free to the kernel, not only what is free at the end. It takes a millisecond or two."""
    if _malloc_trim is not None:
        _malloc_trim(0)
