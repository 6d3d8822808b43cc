"""How late the loop comes to what is due: measured while somebody looks, so that an idle server sleeps."""

from __future__ import annotations

from typing import Final

from ..usb.device import Loop, Timer
from ..xhci.statistics import trimmed

EVERY: Final = 0.1
"""Seconds between two measurements."""
LOOKED_AT: Final = 30.0
"""Seconds for which it is measured after somebody has looked: longer than between two scrapes."""
_BUCKETS: Final = 65
"""Bit lengths of a time in nanoseconds, 0 for none."""


class Lateness:
    """Measures a loop. All on its thread.

    histogram     measurements by the bit length of the nanoseconds, as `EndpointStatistics.latency`
    nanoseconds   the sum of these times
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._until = 0.0
        self._timer: Timer | None = None
        self.histogram = [0] * _BUCKETS
        self.nanoseconds = 0

    def look(self) -> dict[str, object]:
        """What was measured, for people; somebody looks, so it goes on for a while."""
        self._until = self._loop.time() + LOOKED_AT
        if self._timer is None:
            self._wait()
        return {"latency": trimmed(self.histogram), "nanoseconds": self.nanoseconds}

    def close(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._due = self._loop.time() + EVERY
        self._timer = self._loop.call_later(EVERY, self._measure)

    def _measure(self) -> None:
        self._timer = None
        now = self._loop.time()
        ns = max(int((now - self._due) * 1e9), 0)
        self.histogram[ns.bit_length()] += 1
        self.nanoseconds += ns
        if now < self._until:
            self._wait()
