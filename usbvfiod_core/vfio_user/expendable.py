"""Calls that may never return, because somebody else has a file in hand: they are made in threads that are expendable.

A descriptor that a peer has passed may be one of a file whose server does not answer (FUSE, NFS), or of a socket that
lingers. Asking such a file for its size, and even closing it, can take for ever; the same goes for looking at another
process. The loop waits for a moment at most. What is stuck then keeps its thread, and a bounded number of descriptors,
until the other side has answered or is gone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread
from typing import Final, Generic, TypeVar

from ..backing import in_memory

T = TypeVar("T")

MOMENT: Final = 0.01
"""Seconds to wait for what takes microseconds if nobody is in the way."""
MAX_STUCK: Final = 4
"""Threads that may be stuck at a time."""
MAX_UNCLOSED: Final = 64
"""Descriptors that may wait for them in `unclosed`; while there are more, no others should be taken."""


def ask(call: Callable[[], T], seconds: float, otherwise: T) -> T:
    """What `call` returns, if it does within so many seconds, and `otherwise` if not; also if it raises, or too many
    such calls are stuck already."""
    if len(_stuck) >= MAX_STUCK:
        return otherwise
    asking: _Asking[T] = _Asking(call)
    try:
        asking.start()
    except RuntimeError:  # as many threads as this user may have
        return otherwise
    asking.join(seconds)
    with _lock:
        if asking.answer is None:
            _stuck.add(asking)
            return otherwise
    return asking.answer[0] if asking.answer else otherwise


def close(*fds: int) -> None:
    """Close descriptors that somebody else has passed: at once, or as soon as that is possible."""
    others = [fd for fd in fds if not _closes_at_once(fd)]
    for fd in fds:
        if fd not in others:
            os.close(fd)
    if not others:
        return
    unclosed.extend(others)
    ask(_close_all, 0.0 if _stuck else MOMENT, None)


class _Asking(Thread, Generic[T]):
    """`answer` is None until there is one; empty if it was an exception."""

    def __init__(self, call: Callable[[], T]) -> None:
        # A daemon thread, because it must not keep the process from ending.
        super().__init__(name="usbvfiod-expendable", daemon=True)
        self._call = call
        self.answer: tuple[()] | tuple[T] | None = None

    def run(self) -> None:
        try:
            answer: tuple[()] | tuple[T] = (self._call(),)
        except Exception:
            answer = ()
        with _lock:
            self.answer = answer
            _stuck.discard(self)
        _close_all()  # what has come meanwhile, and no thread was there for


def _closes_at_once(fd: int) -> bool:
    """Whether it is one of a memory file, pipe or eventfd. The name of any other file begins with a slash."""
    try:
        return in_memory(fd) or os.readlink(f"/proc/self/fd/{fd}").startswith(("pipe:[", "anon_inode:[eventfd]"))
    except OSError:
        return False


def _close_all() -> None:
    while unclosed:
        try:
            os.close(unclosed.popleft())
        except (IndexError, OSError):
            pass  # another thread was faster, or the file has an error to tell that nobody waits for


_lock: Final = Lock()
_stuck: Final[set[Thread]] = set()
unclosed: Final[deque[int]] = deque()
"""Descriptors that wait to be closed."""
