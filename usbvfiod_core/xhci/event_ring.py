"""The event ring of one interrupter: segments, the enqueue position, and what to do when it is full (4.9.4).

The driver owns ERDP and the segment table; the controller owns the enqueue position and its cycle bit. The control
dword with the cycle bit is stored last, as a store of its own: `struct.pack_into` clears all 16 bytes first, and a
guest on another processor saw such torn events.

When only one free entry is left it takes a Host Controller Event with Event Ring Full Error, and what comes after
is held here, in order, until the driver moves ERDP. Nothing new is fetched from transfer and command rings
meanwhile, so what is held is bounded by what was in flight.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..errors import GuestMemoryError
from ..memory import GuestMemory
from ..state import require
from . import spec
from .state import EventRingState, EventState, SavedRingState, SegmentState

ERST_MAX: Final = 32
"""Segments, 2 to the power of HCSPARAMS2.ERST Max."""

_RING_FULL: Final = spec.CC_EVENT_RING_FULL << spec.EVENT_CODE_SHIFT
_HOST_CONTROLLER: Final = spec.TRB_HOST_CONTROLLER << spec.TRB_TYPE_SHIFT


class _Segment:
    __slots__ = ("address", "dwords", "first", "qwords", "size")

    def __init__(self, address: int, size: int, first: int) -> None:
        self.address = address
        self.size = size
        self.first = first  # position of the first entry in the whole ring
        self.dwords = self.qwords = memoryview(b"")


SavedRing = tuple[list[_Segment], int, _Segment, int, int]
"""What a controller keeps of an event ring across Save State and Restore State (4.23.2)."""


class EventRing:
    """Positions are entries counted from the start of the first segment."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.held: deque[tuple[int, int, int]] = deque()
        """Events that found the ring full, or no ring at all."""
        self.reset()

    def reset(self) -> None:
        """No ring: as after a reset of the controller."""
        self._segments: list[_Segment] = []
        self._size = 0
        self._segment = _Segment(0, 0, 0)
        self._index = 0
        self._cycle = 1
        self._free = 0
        self._dequeue = 0
        self._generation = -1
        self.held.clear()

    @property
    def ready(self) -> bool:
        """Whether the driver has set a ring up."""
        return self._size > 0

    @property
    def position(self) -> int:
        """Where the next event goes, in entries from the start of the ring."""
        return self._segment.first + self._index

    @property
    def reachable(self) -> bool:
        """Whether its segments are guest memory now."""
        try:
            for segment in self._segments:
                self._memory.window(segment.address, segment.size * spec.TRB_SIZE)
        except GuestMemoryError:
            return False
        return True

    def begins_at(self, erdp: int) -> bool:
        """Whether this is its first entry."""
        return bool(self._segments) and self._segments[0].address == erdp

    @property
    def empty(self) -> bool:
        """Whether the driver has taken every event."""
        return self._segment.first + self._index == self._dequeue or not self._size

    def check_shared(self, table: int, count: int) -> None:
        """Raises UnsharedMemoryError if the client does not share this segment table, or a segment of it."""
        self._memory.check_shared(table, count * spec.ERST_ENTRY_SIZE)
        try:
            entries = memoryview(self._memory.read(table, count * spec.ERST_ENTRY_SIZE)).cast("Q")
        except GuestMemoryError:
            return  # told when it is needed
        for index in range(count):
            self._memory.check_shared(entries[2 * index] & ~0x3F, (entries[2 * index + 1] & 0xFFFF) * spec.TRB_SIZE)

    def set_up(self, table: int, count: int) -> None:
        """Read the segment table (6.5) and start anew at its first entry with cycle 1; ERDP stays as it is.

        Called when ERSTBA is written. Raises GuestMemoryError if the table, or a segment, is not memory that can be
        written; entries of an illegal size end the table.
        """
        segments: list[_Segment] = []
        first = 0
        entries = memoryview(self._memory.read(table, count * spec.ERST_ENTRY_SIZE)).cast("Q")
        for index in range(count):
            address, size = entries[2 * index] & ~0x3F, entries[2 * index + 1] & 0xFFFF
            if not spec.ERST_SEGMENT_MIN <= size <= spec.ERST_SEGMENT_MAX:
                break
            segments.append(_Segment(address, size, first))
            first += size
        self._segments = segments
        self._size = first
        self._index = 0
        self._cycle = 1
        self._dequeue = 0
        if segments:
            self._segment = segments[0]
            try:
                self._look_up()
            except GuestMemoryError:
                self._size = self._free = 0
                raise
        self._count_free()

    def move_dequeue(self, erdp: int) -> None:
        """The driver has written ERDP (5.5.2.3.3). A pointer into no segment changes nothing."""
        for segment in self._segments:
            entry = erdp - segment.address >> 4
            if 0 <= entry < segment.size:
                self._dequeue = segment.first + entry
                self._count_free()
                return

    def publish(self, parameter: int, status: int, control: int) -> None:
        """Add an event; `control` comes without its cycle bit. Raises GuestMemoryError if the ring is gone."""
        if self._free <= 1 or self.held:
            self._hold(parameter, status, control)
            return
        self._store(parameter, status, control)

    def release(self) -> None:
        """Publish what is held as far as there is room now; called after ERDP has moved or a ring was set up."""
        held = self.held
        while held and self._free > 1:
            self._store(*held.popleft())

    def save(self) -> SavedRing:
        """Segments, and the enqueue position with its cycle bit: what no register tells."""
        return self._segments, self._size, self._segment, self._index, self._cycle

    def restore(self, saved: SavedRing) -> None:
        """Go on where the ring was saved; the caller moves the dequeue position afterwards."""
        self._segments, self._size, self._segment, self._index, self._cycle = saved
        self._generation = -1
        self._count_free()

    # -- going on in another process -----------------------------------------------------------------------------

    def saved_state(self) -> EventRingState:
        """What another process needs to go on with it."""
        held = [EventState(*each) for each in self.held]
        return EventRingState(*_described(self.save()), self._dequeue, held)

    def saved_ring(self, saved: SavedRing, pending: bool) -> SavedRingState:
        """What Save State has kept, and with it IPE."""
        return SavedRingState(EventRingState(*_described(saved)), pending)

    def take_over(self, saved: EventRingState, path: str) -> None:
        """Go on where the ring of another process was. Raises StateError."""
        self.restore(self.saved(saved, path))
        require(saved.dequeue < max(self._size, 1), f"{path}.dequeue", "it is behind the end of the ring")
        self._dequeue = saved.dequeue
        self.held.extend((each.parameter, each.status, each.control) for each in saved.held)
        self._count_free()

    @staticmethod
    def saved(saved: EventRingState, path: str) -> SavedRing:
        """What `save` has returned in another process. Raises StateError."""
        require(len(saved.segments) <= ERST_MAX, f"{path}.segments", "there are too many")
        segments: list[_Segment] = []
        first = 0
        for index, each in enumerate(saved.segments):
            where = f"{path}.segments[{index}]"
            possible = spec.ERST_SEGMENT_MIN <= each.size <= spec.ERST_SEGMENT_MAX
            require(possible, f"{where}.size", "no segment has this size")
            require(not each.address & 0x3F, f"{where}.address", "no segment can be there")
            segments.append(_Segment(each.address, each.size, first))
            first += each.size
        require(saved.enqueue < max(first, 1), f"{path}.enqueue", "it is behind the end of the ring")
        segment = next((each for each in segments if saved.enqueue < each.first + each.size), _Segment(0, 0, 0))
        return segments, first, segment, saved.enqueue - segment.first, saved.cycle

    # -- own ---------------------------------------------------------------------------------------------------

    def _store(self, parameter: int, status: int, control: int) -> None:
        if self._generation != self._memory.generation:
            self._look_up()
        segment = self._segment
        index = self._index
        segment.qwords[index * 2] = parameter
        segment.dwords[index * 4 + 2] = status
        segment.dwords[index * 4 + 3] = control | self._cycle
        self._free -= 1
        index += 1
        if index == segment.size:
            index = 0
            following = segment.first + segment.size
            if following == self._size:
                self._cycle ^= 1
                self._segment = self._segments[0]
            else:
                self._segment = next(each for each in self._segments if each.first == following)
        self._index = index

    def _hold(self, parameter: int, status: int, control: int) -> None:
        if self._size and self._free == 1 and not self.held:
            self._store(0, _RING_FULL, _HOST_CONTROLLER)
        self.held.append((parameter, status, control))

    def _count_free(self) -> None:
        """Entries that can be written before the enqueue position would reach ERDP."""
        if not self._size:
            self._free = 0
            return
        enqueue = self._segment.first + self._index
        self._free = (self._dequeue - enqueue - 1) % self._size

    def _look_up(self) -> None:
        self._generation = -1
        for segment in self._segments:
            view = self._memory.window(segment.address, segment.size * spec.TRB_SIZE)
            segment.dwords = view.cast("I")
            segment.qwords = view.cast("Q")
        self._generation = self._memory.generation


def _described(saved: SavedRing) -> tuple[list[SegmentState], int, int]:
    segments, size, segment, index, cycle = saved
    if not size:
        return [], 0, cycle
    return [SegmentState(each.address, each.size) for each in segments], segment.first + index, cycle
