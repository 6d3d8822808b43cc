"""What sockets for people and programs may take of the loop's time, which they share with the guest's transfers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..usb.device import Loop, Timer

SHARE: Final = 0.05
"""Part of the time that such a socket may take from the rest. With what is not counted, such as threads that list
devices and caches that are cold afterwards, the guest is to lose a tenth at most."""
SLICE: Final = 0.001
"""Seconds in one turn of the loop for the requests of a client."""


class Share:
    """The time of one socket. `resume` is called when it may work again. All on the loop's thread."""

    def __init__(self, loop: Loop, resume: Callable[[], object]) -> None:
        self._loop = loop
        self._resume = resume
        self._debt = 0.0
        self._timer: Timer | None = None

    @property
    def resting(self) -> bool:
        """Whether it may do nothing now."""
        return self._timer is not None

    def spend(self, seconds: float) -> bool:
        """It has worked for so long, of this thread's processor time: what other programs, or a stopped machine, have
        taken meanwhile is nothing to rest for. True if it is to rest from now on."""
        self._debt += seconds
        if self._debt < 2 * SLICE or self.resting:
            return False
        self._timer = self._loop.call_later(self._debt * (1 / SHARE - 1), self._over)
        self._debt = 0.0
        return True

    def close(self) -> None:
        """It works no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _over(self) -> None:
        self._timer = None
        self._resume()
