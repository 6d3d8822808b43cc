"""Whose turn it is: the endpoints that have something to do, and how a run's time is shared among them.

An endpoint that has just become ready, by a doorbell or a completion, comes before those that had more on their rings
than their share of the last run was enough for. So what a guest puts on one ring, however long, makes a transfer on
another wait for the TD that is being fetched and no longer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from time import monotonic_ns
from typing import Final

from .interrupters import Interrupters

RUN_NS: Final = 500_000
"""Time after which the loop looks at its sockets again. A driver makes some ten accesses for a transfer, and each may
have to wait for the turns of other endpoints."""

MORE: Final = 32
"""Endpoints that become ready in a run and have their turn in it too, so that what a device has ended while it was
given something is told at once."""


class Runnable(ABC):
    """An endpoint, for whoever gives it its turn."""

    queued: bool
    """Whether it waits for its turn; kept by `Turns`."""

    @property
    @abstractmethod
    def draining(self) -> bool:
        """Whether somebody waits for its transfers to come back."""

    @abstractmethod
    def settle(self) -> bool:
        """Finish what can be finished, and begin nothing; returns whether there is more, which has to wait."""

    @abstractmethod
    def run(self, deadline: int) -> bool:
        """Work until `deadline` (time.monotonic_ns); returns whether there may be more to do at once."""


class Turns:
    """The endpoints that are ready; `waiting` while there are any."""

    def __init__(self, interrupters: Interrupters) -> None:
        self._interrupters = interrupters
        self._new: deque[Runnable] = deque()
        self._unfinished: deque[Runnable] = deque()
        self.waiting = False

    def add(self, endpoint: Runnable) -> None:
        """An endpoint has something to do."""
        endpoint.queued = self.waiting = True
        self._new.append(endpoint)

    def settle(self) -> None:
        """Let each endpoint finish what can be finished, and wait for nobody's turn."""
        waiting: list[Runnable] = []
        for queue in (self._new, self._unfinished):
            while queue:
                endpoint = queue.popleft()
                endpoint.queued = False
                if endpoint.settle():
                    waiting.append(endpoint)
        for endpoint in waiting:
            if not endpoint.queued:
                self.add(endpoint)
        self.waiting = bool(self._new)

    def run(self, *, fetching: bool) -> None:
        """Give each endpoint its turn while there is time, and one of the unfinished ones in any case.

        Without `fetching` only those have one whose transfers are awaited: a command, a reset or an unplugging goes on
        when they are back, whatever the state of the controller.
        """
        new, unfinished = self._new, self._unfinished
        now = monotonic_ns()
        deadline = now + RUN_NS
        first, second = len(new), len(unfinished)
        share = RUN_NS // (first + second or 1)
        for queue, most in ((new, first + MORE), (unfinished, second)):
            passed_over: list[Runnable] = []
            try:
                for index in range(most):
                    if not queue:
                        break
                    if not now:
                        now = monotonic_ns()
                    endpoint = queue.popleft()
                    late = now > deadline and not (queue is unfinished and index == 0)
                    if (not fetching or late or self._interrupters.blocked) and not endpoint.draining:
                        passed_over.append(endpoint)
                        continue
                    endpoint.queued = False
                    if endpoint.run(now + share) and not endpoint.queued:
                        endpoint.queued = True
                        unfinished.append(endpoint)
                    now = 0
            finally:
                # In front of those that have become ready meanwhile, and in the same order: behind them, a machine on
                # which a run is over after one turn would never come to some.
                if passed_over:
                    queue.extendleft(reversed(passed_over))
        self.waiting = bool(new or unfinished)
