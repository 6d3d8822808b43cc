"""A TD of many TRBs, read and mapped in steps, so that nobody waits for the whole of it.

While there are steps left nothing of the TD has been fetched as far as the driver can see: its ring stands at the first
TRB, and whatever moves or stops the ring forgets what has been read.
"""

from __future__ import annotations

from ..memory import GuestMemory
from ..usb.transfer import TransferType
from .ring import ConsumerRing
from .td import STEP, TRB_LIMIT, Td, collect_chain, map_buffers


class LongTd:
    """The TD that `collect` has begun (`Td.unread`), behind whose first STEP TRBs `ring` stands.

    `units` is what its ring has taken of the allowance meanwhile: as for the longest TD.
    """

    __slots__ = ("_begun", "_context", "_generation", "_mapped", "_next", "_ring", "td", "units")

    def __init__(self, td: Td, ring: ConsumerRing, memory: GuestMemory, context: int, begun: bool) -> None:
        self.td = td
        self.units = 0
        self._ring = ring
        self._context = context
        self._begun = begun
        self._generation = memory.generation
        self._mapped = 0
        self._leave()

    @property
    def collected(self) -> bool:
        """Whether no step is left."""
        return not self.td.unread and self._mapped == len(self.td.trbs)

    def stale(self, memory: GuestMemory) -> bool:
        """Whether guest memory has been mapped anew since it was begun."""
        return memory.generation != self._generation

    def step(self, memory: GuestMemory, type: TransferType) -> bool:
        """Read or map the next STEP TRBs; the ring stands behind the TD when it is `collected`. False if there is no
        whole TD after all, since the driver has not written it. Raises as `collect`."""
        td, ring = self.td, self._ring
        ring.put_back(*self._next)
        try:
            if td.unread:
                limit = min(len(td.trbs) + STEP, TRB_LIMIT)
                return collect_chain(td, ring, memory, type, self._context, self._begun, limit)
            mapped = self._mapped + STEP
            map_buffers(td, td.trbs[self._mapped : mapped], memory, type)
            self._mapped = min(mapped, len(td.trbs))
            return True
        finally:
            if self.collected:
                td.links = ring.link_ioc.copy()
                ring.link_ioc.clear()
            else:
                self._leave()

    def _leave(self) -> None:
        ring, td = self._ring, self.td
        self._next = ring.address, ring.cycle, ring.link_ioc.copy()
        ring.put_back(td.trbs[0].address, td.cycle, td.links)
