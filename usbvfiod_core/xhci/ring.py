"""Rings of Transfer Request Blocks as the controller consumes them (4.9).

Some facts about a ring that a guest writes while we read it. A TRB is valid once its cycle bit is ours, and the
driver writes the dword with that bit last. So the control dword is read first, on its own, and the other three only
when it is ours; x86 keeps both sides' order. A struct.unpack of all 16 bytes reads the control dword last and sees
stale TRBs.
"""

from __future__ import annotations

from typing import Final

from ..memory import GuestMemory
from . import spec

LINK_LIMIT: Final = 32
"""Link TRBs that may follow one another; a ring of nothing but Link TRBs is a loop."""

_PAGE: Final = 0x1000
_LINK: Final = spec.TRB_LINK << spec.TRB_TYPE_SHIFT
_TYPE_MASK: Final = spec.TRB_TYPE_MASK


class RingLoopError(Exception):
    """More than LINK_LIMIT Link TRBs in a row: the guest's fault, answered with a TRB Error."""


class Trb:
    """One TRB as it was read: its guest physical `address` and the raw words (6.4)."""

    __slots__ = ("address", "control", "parameter", "status")

    def __init__(self, address: int, parameter: int, status: int, control: int) -> None:
        self.address = address
        self.parameter = parameter
        self.status = status
        self.control = control

    @property
    def type(self) -> int:
        return (self.control & _TYPE_MASK) >> spec.TRB_TYPE_SHIFT

    def __repr__(self) -> str:
        name = spec.TRB_TYPES.get(self.type, f"type {self.type}")
        return f"<{name} TRB at {self.address:#x}: {self.parameter:#x} {self.status:#x} {self.control:#x}>"


class Lap:
    """Finds out whether what is read off a ring goes round: whether a TRB comes that has come before (Brent's way of
    finding a cycle: the TRB to meet again is the 1st, the 2nd, the 4th, the 8th ...)."""

    __slots__ = ("_left", "_length", "_mark", "closed")

    def __init__(self) -> None:
        self._mark = -1
        self._length = self._left = 1
        self.closed = False

    def passes(self, trb: Trb) -> None:
        """The next one; `closed` says from now on whether it is an earlier one, with the same cycle bit."""
        here = trb.address | trb.control & 1
        if here == self._mark:
            self.closed = True
            return
        self._left -= 1
        if not self._left:
            self._mark = here
            self._length *= 2
            self._left = self._length


class ConsumerRing:
    """A position in a ring: `address` of the next TRB and the `cycle` bit that makes it ours (CCS).

    `read` walks the position over Link TRBs and past the TRB that it returns. To look ahead, save `address` and
    `cycle` and `put_back`.
    """

    __slots__ = ("_dwords", "_generation", "_memory", "_page", "_qwords", "address", "cycle", "link_ioc")

    def __init__(self, memory: GuestMemory, address: int, cycle: int) -> None:
        self._memory = memory
        self.address = address
        self.cycle = cycle
        self.link_ioc: list[Trb] = []
        """Link TRBs with IOC that `read` has followed since somebody emptied the list."""
        self._page = -1
        self._generation = -1
        self._dwords = self._qwords = memoryview(b"")

    def move(self, address: int, cycle: int) -> None:
        """Go to another position, and let go of the memory at the old one."""
        self.address = address
        self.cycle = cycle
        self.link_ioc.clear()
        self._page = -1
        self._dwords = self._qwords = memoryview(b"")

    def put_back(self, address: int, cycle: int, link_ioc: list[Trb]) -> None:
        """Stand again where something was read that is to be read again later."""
        self.address, self.cycle = address, cycle
        self.link_ioc[:] = link_ioc

    def read(self) -> Trb | None:
        """The TRB at the position, which moves past it; None where the driver has not written one yet (4.9.2).

        Raises GuestMemoryError when the ring lies outside guest memory, RingLoopError for a loop of Link TRBs; the
        position is then as it was.
        """
        address, cycle = self.address, self.cycle
        for _ in range(LINK_LIMIT):
            page = address & ~0xFFF
            if page != self._page or self._generation != self._memory.generation:
                self._look_at(page)
            index = (address & 0xFFF) >> 2
            control = self._dwords[index + 3]
            if control & 1 != cycle:
                self.address, self.cycle = address, cycle
                return None
            if control & _TYPE_MASK != _LINK:
                self.address, self.cycle = address + 16, cycle
                return Trb(address, self._qwords[index >> 1], self._dwords[index + 2], control)
            if control & spec.TRB_IOC:
                self.link_ioc.append(Trb(address, self._qwords[index >> 1], self._dwords[index + 2], control))
            address = self._qwords[index >> 1] & ~0xF
            if control & spec.TRB_TC:
                cycle ^= 1
        raise RingLoopError(f"more than {LINK_LIMIT} Link TRBs in a row at {self.address:#x}")

    def read_chain(self, trbs: list[Trb], limit: int) -> bool:
        """Append the TRBs that are chained to the last of `trbs` (TRB_CH), until there are `limit`; False where the
        driver has not written the next one yet. As so many calls of `read`, whose exceptions it raises."""
        trb = trbs[-1]
        while trb.control & spec.TRB_CH and len(trbs) < limit:
            address, cycle = self.address, self.cycle
            if address & ~0xFFF == self._page and self._generation == self._memory.generation:
                # What lies ahead in this page, without a call for each TRB.
                dwords, qwords = self._dwords, self._qwords
                for index in range(
                    (address & 0xFFF) >> 2, min(1024, ((address & 0xFFF) >> 2) + 4 * (limit - len(trbs))), 4
                ):
                    control = dwords[index + 3]
                    if control & 1 != cycle or control & _TYPE_MASK == _LINK:
                        break
                    trb = Trb(address, qwords[index >> 1], dwords[index + 2], control)
                    trbs.append(trb)
                    address += 16
                    if not control & spec.TRB_CH:
                        break
                if address != self.address:
                    self.address = address
                    continue
            following = self.read()
            if following is None:
                return False
            trb = following
            trbs.append(trb)
        return True

    def _look_at(self, page: int) -> None:
        memory = self._memory
        self._page = -1
        view = memory.window(page, _PAGE, write=False)
        self._dwords = view.cast("I")
        self._qwords = view.cast("Q")
        self._page = page
        self._generation = memory.generation
