"""Guest memory that is away for a moment.

QEMU changes its memory map by unmapping all of it and mapping it again, in messages that may come in two batches;
firmware does that dozens of times. What the driver has asked for just before must not find its rings gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ..memory import GuestMemory
from ..usb.device import Loop, Timer
from .endpoint import Endpoint
from .event_ring import EventRing
from .slot import when_all

REMAP_SECONDS: Final = 0.05
"""Time after a DMA_UNMAP within which the memory is expected back."""


class Remapping:
    """Says whether work has to wait because the memory of `ring`, the primary event ring, has just been unmapped.

    `again` is called when it has waited long enough; what is missing then is missing for good. `endpoints` are all
    that the driver has configured, or that something waits for.
    """

    def __init__(
        self,
        memory: GuestMemory,
        loop: Loop,
        ring: EventRing,
        endpoints: Callable[[], Iterable[Endpoint]],
        again: Callable[[], object],
    ) -> None:
        self._endpoints = endpoints
        self._memory = memory
        self._loop = loop
        self._ring = ring
        self._again = again
        self._seen = memory.generation
        self._until = 0.0
        self._timer: Timer | None = None

    def quiesce(self, address: int, size: int, done: Callable[[], object]) -> None:
        """Before a DMA_UNMAP: take back transfers that use this range; `done` when none does any more.

        They are fetched again once the memory has had time to be mapped anew: QEMU unmaps and maps all of it while a
        firmware boots.
        """
        self._until = self._loop.time() + REMAP_SECONDS
        end = address + size
        endpoints = [endpoint for endpoint in self._endpoints() if endpoint.uses(address, end)]

        def fetch_again() -> None:
            for endpoint in endpoints:
                endpoint.go_on()

        def taken_back() -> None:
            if endpoints:
                self._loop.call_later(REMAP_SECONDS, fetch_again)
            done()

        when_all([endpoint.release for endpoint in endpoints], taken_back)

    @property
    def left(self) -> float:
        """Seconds within which memory may still come back."""
        return min(max(self._until - self._loop.time(), 0.0), REMAP_SECONDS)

    def take_over(self, seconds: float) -> None:
        """Go on where another process was, in which memory was to come back within so many seconds."""
        self._until = self._loop.time() + seconds
        self._seen = -1

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
