"""The driver's side of rings (4.9): it produces commands and TDs, and consumes events."""

from __future__ import annotations

from collections.abc import Sequence

from ...xhci import spec
from ..memory import GuestRam
from .errors import DriverError, ProtocolError
from .trb import Event, Trb

_NO_OP = spec.TRB_NO_OP << spec.TRB_TYPE_SHIFT
_LINK = spec.TRB_LINK << spec.TRB_TYPE_SHIFT
_DWORDS = 4
_CYCLE = spec.TRB_CYCLE
_CH = spec.TRB_CH
_TC = spec.TRB_TC


class ProducerRing:
    """A command or transfer ring (4.9.2) of one or more segments, each closed by a Link TRB; the last one toggles.

    `trbs` is the size of a segment, its Link TRB included. `dequeue` follows what is retired by `retire`, so that a
    driver does not overwrite what the controller has not executed; `space` says how many TRBs fit.
    """

    def __init__(self, ram: GuestRam, trbs: int = 64, *, segments: int = 1, high: bool | None = None) -> None:
        if trbs < 2 or segments < 1:
            raise DriverError("a ring needs a TRB and its Link")
        self.ram = ram
        self.trbs = trbs
        self._bases: list[int] = []
        self._views: list[memoryview] = []
        for _ in range(segments):
            size = trbs * spec.TRB_SIZE
            base = ram.allocate(size, align=64, boundary=1 << 16, high=high)
            self._bases.append(base)
            self._views.append(ram.dwords(base, trbs * _DWORDS))
        self.reset()

    @property
    def base(self) -> int:
        """Address of the first TRB."""
        return self._bases[0]

    @property
    def enqueue(self) -> int:
        """Address at which the next TRB will be put."""
        return self._bases[self._segment] + self._index * spec.TRB_SIZE

    @property
    def position(self) -> tuple[int, int]:
        """(enqueue pointer, cycle state): where a controller that has executed everything stands."""
        return self.enqueue, self.cycle

    @property
    def capacity(self) -> int:
        """TRBs that fit on an empty ring; one place stays free, or full would look like empty (4.9.2.2)."""
        return (self.trbs - 1) * len(self._bases) - 1

    @property
    def space(self) -> int:
        """TRBs that fit now."""
        return self.capacity - self.pending

    def contains(self, address: int) -> bool:
        """Whether a TRB of the ring is at this address."""
        return any(base <= address < base + self.trbs * spec.TRB_SIZE for base in self._bases)

    def reset(self) -> None:
        """Make the ring empty, with the enqueue pointer at its start and cycle state 1."""
        for number, view in enumerate(self._views):
            for index in range(len(view)):
                view[index] = 0
            last = number == len(self._views) - 1
            target = self._bases[0 if last else number + 1]
            place = (self.trbs - 1) * _DWORDS
            view[place] = target & 0xFFFF_FFFF
            view[place + 1] = target >> 32
            view[place + 3] = _LINK | (_TC if last else 0)
        self._segment = 0
        self._index = 0
        self.cycle = 1
        self.pending = 0

    def push(self, trb: Trb, *, cycle: int | None = None) -> int:
        """Put one TRB on the ring, its control dword last; returns its address.

        `cycle` forces a cycle bit, for tests; the ring goes on as if it had been the right one.
        """
        if self.pending >= self.capacity:
            raise DriverError("the ring is full", trb=trb)
        view = self._views[self._segment]
        address = self.enqueue
        place = self._index * _DWORDS
        parameter, status, control = trb
        view[place] = parameter & 0xFFFF_FFFF
        view[place + 1] = parameter >> 32
        view[place + 2] = status
        view[place + 3] = control & ~_CYCLE | (self.cycle if cycle is None else cycle)
        self.pending += 1
        self._index += 1
        if self._index == self.trbs - 1:
            self._follow_link(control & _CH)
        return address

    def push_td(self, trbs: Sequence[Trb]) -> list[int]:
        """Put several TRBs on the ring and hand them over at once: the first one's cycle bit is written last."""
        if len(trbs) == 1:
            return [self.push(trbs[0])]
        if len(trbs) > self.space:
            raise DriverError(f"{len(trbs)} TRBs do not fit on the ring, {self.space} are free")
        view, place, cycle = self._views[self._segment], self._index * _DWORDS + 3, self.cycle
        addresses = [self.push(trbs[0], cycle=cycle ^ 1)]
        addresses += [self.push(trb) for trb in trbs[1:]]
        view[place] = trbs[0].control & ~_CYCLE | cycle
        return addresses

    def retire(self, count: int) -> None:
        """`count` TRBs more have been executed; their places may be used again."""
        self.pending -= count
        if self.pending < 0:
            raise ProtocolError("more TRBs were executed than were on the ring")

    def read(self, address: int) -> Trb:
        """The TRB at an address, as it is in memory."""
        low, high, status, control = self.ram.dwords(address, _DWORDS)
        return Trb(low | high << 32, status, control)

    def write(self, address: int, trb: Trb) -> None:
        """Overwrite the TRB at an address, cycle bit included; its control dword is stored last."""
        view = self.ram.dwords(address, _DWORDS)
        view[0] = trb.parameter & 0xFFFF_FFFF
        view[1] = trb.parameter >> 32
        view[2] = trb.status
        view[3] = trb.control

    def write_no_ops(self, addresses: Sequence[int]) -> None:
        """Turn the TRBs of a TD into No Ops, keeping their cycle bits, and unchain a Link among them."""
        for address in addresses:
            control = self.read(address).control & _CYCLE
            self.write(address, Trb(0, 0, _NO_OP | control))
        for base in self._bases:
            place = base + (self.trbs - 1) * spec.TRB_SIZE
            if place - spec.TRB_SIZE in addresses:
                trb = self.read(place)
                self.write(place, trb._replace(control=trb.control & ~_CH))

    def free(self) -> None:
        """Give the memory back."""
        for base in self._bases:
            self.ram.free(base)
        self._bases.clear()
        self._views.clear()

    def _follow_link(self, chain: int) -> None:
        view = self._views[self._segment]
        last = self._segment == len(self._views) - 1
        # A Link inside a TD continues the chain (4.11.7); a stale chain bit would join two TDs.
        view[-1] = _LINK | (_TC if last else 0) | chain | self.cycle
        self._index = 0
        if last:
            self._segment = 0
            self.cycle ^= 1
        else:
            self._segment += 1


class EventRing:
    """An event ring (4.9.4) with its Event Ring Segment Table (6.5); `segments` are sizes in TRBs, 16 to 4096.

    `take` consumes; the owner writes `dequeue` to ERDP when it has taken what there was.
    """

    def __init__(self, ram: GuestRam, segments: Sequence[int] = (256,), *, high: bool | None = None) -> None:
        self.ram = ram
        self.segments = tuple(segments)
        self._bases: list[int] = []
        self._views: list[memoryview] = []
        self.table = ram.allocate(len(segments) * spec.ERST_ENTRY_SIZE, align=64, high=high)
        for number, trbs in enumerate(segments):
            base = ram.allocate(trbs * spec.TRB_SIZE, align=64, boundary=1 << 16, high=high)
            self._bases.append(base)
            self._views.append(ram.dwords(base, trbs * _DWORDS))
            entry = self.table + number * spec.ERST_ENTRY_SIZE
            ram.write_u64(entry, base)
            ram.write_u64(entry + 8, trbs)
        self._segment = 0
        self._place = 0
        self._view = self._views[0]
        self.cycle = 1
        self.moved = False
        """Whether something was taken since `dequeue` was last written to ERDP; the owner clears it."""

    @property
    def dequeue(self) -> int:
        """Address of the event that will be taken next."""
        return self._bases[self._segment] + self._place * 4

    @property
    def segment_index(self) -> int:
        """The Dequeue ERST Segment Index for ERDP (5.5.2.3.3)."""
        return self._segment & spec.ERDP_DESI

    @property
    def waiting(self) -> bool:
        """Whether there is an event to take."""
        return bool(self._view[self._place + 3] & _CYCLE == self.cycle)

    def take(self) -> Event | None:
        """The next event, or None while the controller still owns its place."""
        place = self._place
        view = self._view
        control = view[place + 3]
        if control & _CYCLE != self.cycle:
            return None
        event = Event(
            view[place] | view[place + 1] << 32, view[place + 2], control, self._bases[self._segment] + place * 4
        )
        place += _DWORDS
        if place == len(view):
            place = 0
            self._segment += 1
            if self._segment == len(self._views):
                self._segment = 0
                self.cycle ^= 1
            self._view = self._views[self._segment]
        self._place = place
        self.moved = True
        return event

    def free(self) -> None:
        """Give the memory back."""
        for base in self._bases:
            self.ram.free(base)
        self.ram.free(self.table)
        self._bases.clear()
