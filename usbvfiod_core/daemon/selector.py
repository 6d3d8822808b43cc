"""A selector that polls for a moment before it sleeps, and that sleeps to the microsecond.

A vCPU that has had its answer mostly comes back within some tens of microseconds. Going to sleep and being woken costs
about as much again on each side, so while the traffic is dense it is cheaper to look a few times more. Where that
does not pay this finds out and stops: the next message comes later than that, there is only one processor, or somebody
else wants the one that polling keeps busy, the VMM's own threads first of all.
"""

from __future__ import annotations

import os
import select
from selectors import EpollSelector, SelectorKey
from time import perf_counter

SPIN = 100e-6
"""Seconds for which it polls at most before it sleeps."""

FULL_CREDIT = 16
PROBE_EVERY = 64
PREEMPTED = 40e-6
"""Seconds between two looks after which somebody else has had the processor in between."""
PAUSE = 5000
"""Sleeps without polling after that."""

_COARSE = 0.005
_FD_SETSIZE = 1024

Events = list[tuple[SelectorKey, int]]


class SpinningSelector(EpollSelector):
    """An epoll selector for an asyncio loop.

    It polls while polling has paid lately: a poll that finds something earns credit, up to FULL_CREDIT, one that does
    not loses it, and without credit only every PROBE_EVERYth sleep is preceded by one, to see whether that has
    changed. So a burst of messages is met awake, and a device that reports every millisecond costs no polling.
    A poll that was preempted is the last one for PAUSE sleeps. `spin` is in seconds; 0 turns it off, as does a machine
    with one processor.
    """

    def __init__(self, spin: float = SPIN) -> None:
        super().__init__()
        self.spin = spin if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._poll = super().select
        self._credit = FULL_CREDIT
        self._until_probe = PROBE_EVERY

    def select(self, timeout: float | None = None) -> Events:
        """As `selectors.BaseSelector.select`; `timeout` in seconds."""
        if timeout is not None and timeout <= 0:
            return self._poll(0)
        if self.spin and (self._credit or self._probing()):
            start = perf_counter()
            events = self._spin(start, self.spin if timeout is None else min(self.spin, timeout))
            if events:
                return events
            if timeout is not None:
                timeout -= perf_counter() - start
                if timeout <= 0:
                    return events
        if timeout is None or timeout >= _COARSE or self.fileno() >= _FD_SETSIZE:
            return self._poll(timeout)
        # epoll_wait counts in milliseconds, which is 25 times the interval of interrupt moderation that Linux asks for.
        try:
            select.select([self.fileno()], (), (), timeout)
        except InterruptedError:
            return []
        return self._poll(0)

    def _spin(self, now: float, seconds: float) -> Events:
        """Look again and again for `seconds` from `now` on, and learn from what comes of it."""
        poll = self._poll
        end = now + seconds
        while True:
            events = poll(0)
            before, now = now, perf_counter()
            if now - before > PREEMPTED:
                self._credit = 0
                self._until_probe = PAUSE
                return events
            if events:
                if self._credit < FULL_CREDIT:
                    self._credit += 1
                return events
            if now >= end:
                if self._credit:
                    self._credit -= 1
                return events

    def _probing(self) -> bool:
        self._until_probe -= 1
        if self._until_probe:
            return False
        self._until_probe = PROBE_EVERY
        return True
