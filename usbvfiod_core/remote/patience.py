"""How long a conversation with another end is waited for, before there is a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_SLOWEST: Final = 1 << 12
"""Bytes a second at least, as long as something is on its way: less than that carries no device."""
_LONGEST: Final = 120.0
"""Seconds, beyond those of silence, that a conversation takes at most, whatever the other end says and asks for."""


class Patience:
    """Of one conversation. `seconds` of silence are too long, and so is whatever comes too slowly; a far network and a
    long answer are not.

    `ask` is called at each question, `moved` for what has been sent or received. `clock` is for tests.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._deadline = clock() + seconds
        self._last = self._deadline + _LONGEST

    def ask(self) -> None:
        """Whoever answers has all the time for it."""
        self._deadline = min(self._clock() + self.seconds, self._last)

    def moved(self, count: int) -> None:
        """So many bytes have come or gone: there is the time again that they may have taken."""
        self._deadline = min(self._deadline + count / _SLOWEST, self._clock() + self.seconds, self._last)

    @property
    def left(self) -> float:
        """Seconds until it is too late; 0 if it is."""
        return max(self._deadline - self._clock(), 0.0)
