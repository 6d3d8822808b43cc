"""A selector that polls for a moment before it sleeps, and that sleeps to the microsecond.

A vCPU that has rung a doorbell mostly comes back within some tens of microseconds. Going to sleep and being woken
costs about as much again on each side, so while the traffic is dense it is cheaper to look a few times more. Where
that does not pay (the next message comes later than that, there is only one processor) this finds out and stops.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from selectors import EpollSelector, SelectorKey
from time import perf_counter

SPIN = 100e-6
"""Seconds for which it polls at most before it sleeps."""

_FULL_CREDIT = 16
_PROBE_EVERY = 64
_COARSE = 0.005
_FD_SETSIZE = 1024

Events = list[tuple[SelectorKey, int]]


class SpinningSelector(EpollSelector):
    """An epoll selector for an asyncio loop.

    It polls only while `expecting()` is true and polling has paid lately: a poll that finds something earns credit, one
    that does not loses it, and without credit only every 64th sleep is preceded by one, to see whether that
    has changed. `spin` is in seconds; 0 turns it off, as does a machine with one processor.
    """

    def __init__(self, spin: float = SPIN) -> None:
        super().__init__()
        self.spin = spin if len(os.sched_getaffinity(0)) > 1 else 0.0
        self.expecting: Callable[[], bool] = _never
        self._credit = _FULL_CREDIT
        self._sleeps = 0

    def select(self, timeout: float | None = None) -> Events:
        """As `selectors.BaseSelector.select`; `timeout` in seconds."""
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self.spin and self.expecting() and self._may_spin():
            start = perf_counter()
            spin = self.spin if timeout is None else min(self.spin, timeout)
            end = start + spin
            while perf_counter() < end:
                events = super().select(0)
                if events:
                    self._credit = min(self._credit + 1, _FULL_CREDIT)
                    return events
            self._credit = max(self._credit - 1, 0)
            if timeout is not None:
                timeout -= spin
                if timeout <= 0:
                    return events
        if timeout is None or timeout >= _COARSE or self.fileno() >= _FD_SETSIZE:
            return super().select(timeout)
        # epoll_wait counts in milliseconds, which is 25 times the interval of interrupt moderation that Linux asks for.
        try:
            select.select([self.fileno()], (), (), timeout)
        except InterruptedError:
            return []
        return super().select(0)

    def _may_spin(self) -> bool:
        if self._credit:
            return True
        self._sleeps += 1
        return self._sleeps % _PROBE_EVERY == 0


def _never() -> bool:
    return False
