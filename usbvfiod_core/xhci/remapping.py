"""Guest memory that is away for a moment.

QEMU changes its memory map by unmapping all of it and mapping it again, in messages that may come in two batches;
firmware does that dozens of times. What the driver has asked for just before must not find its rings gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..memory import GuestMemory
from ..usb.device import Loop, Timer
from .event_ring import EventRing

REMAP_SECONDS: Final = 0.05
"""Time after a DMA_UNMAP within which the memory is expected back."""


class Remapping:
    """Says whether work has to wait because the memory of `ring`, the primary event ring, has just been unmapped.

    `again` is called when it has waited long enough; what is missing then is missing for good.
    """

    def __init__(self, memory: GuestMemory, loop: Loop, ring: EventRing, again: Callable[[], object]) -> None:
        self._memory = memory
        self._loop = loop
        self._ring = ring
        self._again = again
        self._seen = memory.generation
        self._until = 0.0
        self._timer: Timer | None = None

    def unmapped(self) -> None:
        """A DMA_UNMAP is being executed."""
        self._until = self._loop.time() + REMAP_SECONDS

    def waits(self) -> bool:
        """Whether to do nothing that needs guest memory now. Costs two comparisons while the map stays as it is."""
        generation = self._memory.generation
        if generation == self._seen:
            return False
        if self._loop.time() < self._until and not self._ring.reachable:
            if self._timer is None:
                self._timer = self._loop.call_later(REMAP_SECONDS, self._over)
            return True
        self._seen = generation
        return False

    def _over(self) -> None:
        self._timer = None
        self._again()
