"""How much of a guest's rings is held at a time: what it costs the server when a guest queues without end.

A TRB that has been fetched and its view of guest memory are some four hundred bytes here until the TD is retired, so a
guest with a few rings of one-byte TRBs could make the server hold gigabytes. What does not fit stays on its ring, where
it costs nothing, until something before it has been retired. Each device has an allowance of its own: one driver does
not keep those of other devices waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

TOTAL: Final = 15 * 8192
"""Units, some 400 bytes each, of all devices together."""
LEAST: Final = 4352
"""Units of one device, however many there are: room for the longest TD (td.TRB_LIMIT) beside some short ones."""

TD: Final = 3
"""Units of a TD besides one for each of its TRBs."""
RING: Final = 4
"""Units of a stream's ring."""
SHORT: Final = 16
"""TRBs of a TD that an endpoint may fetch at any time if it has nothing else in flight."""


class Allowance:
    """The units of one device, of which there may be `slots`."""

    def __init__(self, slots: int) -> None:
        self.size = max(TOTAL // slots, LEAST)
        self.left = self.size
        self.waiting: list[Share] = []
        """Those that `wait`."""

    def wait(self, share: Share) -> None:
        """Call `share.freed` when there is more."""
        if share not in self.waiting:
            self.waiting.append(share)

    def freed(self) -> None:
        """Something was given back while there are some `waiting`."""
        waiting, self.waiting = self.waiting, []
        for share in waiting:
            share.freed()


class Share:
    """What one endpoint has of its device's allowance: three quarters at most, so that its neighbours go on.

    `freed` is called when there may be room for what `take` has refused.
    """

    __slots__ = ("_allowance", "_rings", "_size", "_used", "freed")

    def __init__(self, allowance: Allowance, freed: Callable[[], None]) -> None:
        self._allowance = allowance
        self._size = max(allowance.size * 3 // 4, LEAST)
        self._used = 0
        self._rings = 0
        self.freed = freed

    def take(self, trbs: int) -> int:
        """Take the units of a TD of so many TRBs; returns them, or 0 if it has to wait."""
        units = TD + trbs
        used = self._used + units
        if (used > self._size or units > self._allowance.left) and (self._used or trbs > SHORT):
            self._allowance.wait(self)
            return 0
        self._used = used
        self._allowance.left -= units
        return units

    def give_back(self, units: int) -> None:
        """A TD was retired, or is back on its ring."""
        self._used -= units
        allowance = self._allowance
        allowance.left += units
        if allowance.waiting:
            allowance.freed()

    def add_ring(self) -> None:
        """The endpoint has one more ring. A driver with so many that nothing is left has only itself to blame."""
        self._rings += RING
        self._allowance.left -= RING

    def end(self) -> None:
        """The endpoint is Disabled: everything that it still has is given back."""
        self._used += self._rings
        self._rings = 0
        self.give_back(self._used)
