"""A bound on how often something is done: some at once, and then one at a pace."""

from __future__ import annotations


class Bucket:
    """`burst` at once, and one more each `pace` seconds; `left` is how many now, as of the last `refill`."""

    __slots__ = ("burst", "last", "left", "pace")

    def __init__(self, burst: float, pace: float, now: float) -> None:
        self.burst = self.left = burst
        self.pace = pace
        self.last = now

    def refill(self, now: float) -> None:
        """It is `now`, by a clock in seconds; one that goes back takes nothing away."""
        self.left = min(self.burst, self.left + max(now - self.last, 0.0) / self.pace)
        self.last = now
