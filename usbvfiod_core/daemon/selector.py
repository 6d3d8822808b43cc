"""The selector of asyncio's loop: its descriptors are in the epoll set of a `Poller`, which does the waiting."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE, EpollSelector, SelectorKey

from .poller import IN, OUT, Poller

SPIN = 100e-6
"""Seconds for which it polls at most before it sleeps."""


class PollingSelector(EpollSelector):
    """An epoll selector for an asyncio loop, with a `poller` for the same set.

    `failed` is told of exceptions of those that the poller calls. `spin` is in seconds; 0 turns polling off, as does a
    machine with one processor.
    """

    def __init__(self, failed: Callable[[BaseException], object], spin: float = SPIN) -> None:
        super().__init__()
        # Two objects for one set in the kernel: the other one closes its descriptor, too.
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        os.set_inheritable(self._epoll.fileno(), False)
        self.poller = Poller(self._epoll, spin if len(os.sched_getaffinity(0)) > 1 else 0.0, failed)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """As `selectors.BaseSelector.select`; `timeout` in seconds. Also returns when the poller is `due`."""
        ready = []
        keys = self.get_map()
        for fd, mask in self.poller.wait(timeout):
            key = keys.get(fd)
            if key is not None:
                events = (EVENT_READ if mask & ~OUT else 0) | (EVENT_WRITE if mask & ~IN else 0)
                ready.append((key, events & key.events))
        return ready

    def close(self) -> None:
        self._epoll.close()
        super().close()
