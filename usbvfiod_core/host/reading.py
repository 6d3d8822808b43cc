"""Reading what the host may keep one waiting for, without that the rest waits as well."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock, Thread
from typing import Final, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE: Final = 1.0
"""Seconds for which whoever wants a result waits for it, from the moment in which the reading began."""

_listeners: list[Callable[[], object]] = []
_lock = Lock()


class Reading(Generic[T]):
    """`read` in a thread of its own, which does not keep the process from ending, or at once if that need not wait.
    `read` raises nothing.

    Whoever asks within `PATIENCE` waits until then at most. A result that comes later is told of: see `when_late`.
    """

    def __init__(self, name: str, read: Callable[[], T], *, may_wait: bool = True) -> None:
        self._name = name
        self._read = read
        self._results: list[T] = []
        self._deadline = time.monotonic() + PATIENCE
        self._missed = False
        if may_wait:
            self._thread = Thread(target=self._run, name=f"usbvfiod-{name}", daemon=True)
            self._thread.start()
        else:
            self._results.append(read())

    def result(self) -> T | None:
        """What was read; None if it is not there yet."""
        if not self._results:
            self._thread.join(max(0.0, self._deadline - time.monotonic()))
        with _lock:
            if self._results:
                return self._results[0]
            known, self._missed = self._missed, True
        if not known:
            log.warning("%s: the host is still busy with it; it is looked at afterwards", self._name)
        return None

    @property
    def done(self) -> bool:
        """Whether `result` is what was read."""
        return bool(self._results)

    def _run(self) -> None:
        result = self._read()
        with _lock:
            self._results.append(result)
            if self._missed:
                for listener in _listeners:
                    listener()


def when_late(listener: Callable[[], object]) -> Callable[[], None]:
    """Call `listener`, on any thread, whenever something is read that somebody did not wait for; it must be quick and
    raise nothing. Returns what ends that: `listener` is not called once it has returned."""
    with _lock:
        _listeners.append(listener)

    def end() -> None:
        with _lock:
            _listeners.remove(listener)

    return end
