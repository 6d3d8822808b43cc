"""One transfer ring: where it is fetched, what is in flight, and where it goes on after a stop (4.6.9, 4.9).

The fetch position and the retired position are two different things: TDs between them are in flight. The retired
position, which is what the driver sees in its contexts, is the first TRB of the oldest TD in flight, or the fetch
position when there is none.

An endpoint has one transfer ring, or one for each of its streams (4.12).
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from ..memory import GuestMemory
from ..state import require
from ..usb.transfer import TransferStatus, TransferType
from . import spec
from .allowance import Share
from .long_td import LongTd
from .ring import ConsumerRing, Lap
from .state import MovedState, RingState
from .td import TRB_LIMIT, Td, collect

IN_FLIGHT: Final = {
    TransferType.CONTROL: 1,
    TransferType.BULK: 8,
    TransferType.INTERRUPT: 4,
    TransferType.ISOCHRONOUS: 64,
}
"""TDs of a ring in flight. Windows' rings are not consistent much further ahead (checklist 7); isochronous TDs are
short, and 64 of them are 8 ms at high speed."""


class TransferRing:
    """`inflight` holds the TDs between the retired and the fetch position, oldest first.

    `dequeue` is the position to start at, as a TR Dequeue Pointer field: address and DCS. `context` is the guest
    address of that field, and `context_type` what else it holds: the Stream Context Type of a stream (6.2.4.1).
    `endpoint` is the guest address of the endpoint's context.
    """

    __slots__ = (
        "_context",
        "_context_type",
        "_endpoint",
        "_memory",
        "_resume",
        "_share",
        "ahead",
        "begun",
        "due",
        "fetch",
        "inflight",
        "lap",
        "long",
        "skipping",
        "stream_id",
        "waiting",
    )

    def __init__(
        self,
        memory: GuestMemory,
        dequeue: int,
        context: int,
        endpoint: int,
        share: Share,
        *,
        stream_id: int = 0,
        context_type: int = 0,
    ) -> None:
        self._memory = memory
        self._share = share
        self._context = context
        self._context_type = context_type
        self._endpoint = endpoint
        self.stream_id = stream_id
        self.fetch = ConsumerRing(memory, dequeue & spec.EP_DEQUEUE_MASK, dequeue & spec.EP_DCS)
        self.inflight: deque[Td] = deque()
        self.due = False
        """Whether the endpoint is to look at it; kept by the endpoint."""
        self.ahead: deque[bytes] = deque()
        """What transfers behind a failed one have read, for a retry of that one."""
        self.skipping = False
        """Whether it stands in a TD that a short packet has ended before the driver had written all of it."""
        self.begun = False
        """Whether it stands in a TD of which a part has moved data: a rest without data is no packet of its own."""
        self.long: LongTd | None = None
        """The next TD, if it is one that is read in steps, and is being read."""
        self.lap: Lap | None = None
        """The TDs without a transfer that have come one after the other since the last doorbell. A driver rings one
        behind whatever it has written, so a ring of which they go all the way round is not read on before that."""
        self.waiting = False
        """Whether its next TD does not fit into the allowance; until that is over, nothing is fetched."""
        self._resume: tuple[int, int, int, bool] | None = None

    @property
    def dequeue(self) -> int:
        """The retired position as a TR Dequeue Pointer field: address and DCS (6.2.3)."""
        if self.inflight:
            head = self.inflight[0]
            return head.trbs[0].address | head.cycle
        return self.fetch.address | self.fetch.cycle

    def write_back(self, dequeue: int) -> None:
        """Write a TR Dequeue Pointer (address and DCS) where the driver reads it. Raises GuestMemoryError."""
        words = self._memory.window(self._context, 8).cast("I")
        words[0] = dequeue & 0xFFFF_FFFF | self._context_type
        words[1] = dequeue >> 32

    def move(self, dequeue: int) -> None:
        """Set TR Dequeue Pointer (4.6.10): go to another position and forget a half-done TD. Nothing is in flight."""
        self.forget_long()
        self.fetch.move(dequeue & spec.EP_DEQUEUE_MASK, dequeue & spec.EP_DCS)
        self.skipping = self.begun = False
        self._resume = None
        self.ahead.clear()

    def next(self, type: TransferType, *, is_in: bool) -> Td | None:
        """Put the next TD, or the next part of one, in flight, without what an earlier stop has already moved; None if
        there is none, it is not read to its end (`long`), or not yet room for it (`waiting`). Raises as `collect`.

        What follows a part waits until that has ended: it may be short, and then the rest is skipped.
        """
        if self.inflight and self.inflight[-1].partial:
            return None
        if self.long is not None and self.long.stale(self._memory):
            self.forget_long()
        if self.long is None:
            td = collect(self.fetch, self._memory, type, self._part_of(), is_in=is_in, begun=self.begun)
        else:
            td = self._read_on(self.long, type)
        if td is None:
            return None
        if td.unread:
            self._begin_long(td)
            return None
        td.units = self._share.take(len(td.trbs))
        if not td.units:
            self.waiting = True
            self.fetch.put_back(td.trbs[0].address, td.cycle, td.links)
            return None
        if self._resume is not None:
            address, length, done, partial = self._resume
            self._resume = None
            # The driver may have turned the TD into No Ops meanwhile; then it is another TD. It may also have gone on
            # writing one of which there was only a part.
            same = td.length == length or (partial and td.length > length)
            if td.trbs[0].address == address and same and td.windows is not None:
                td.skip(done)
        if self.skipping:
            td.skipped, td.windows = True, None
            self.skipping = td.partial
        elif self.begun and not td.length:
            td.windows = None  # no packet: the data are in other parts
        self.begun = td.partial
        self.inflight.append(td)
        return td

    def _part_of(self) -> int:
        """See `collect`: of a rest that is skipped no packets are moved, whole or not."""
        return 0 if self.skipping else self._endpoint

    def _begin_long(self, td: Td) -> None:
        """Read on in a TD if there is room for the longest, since nobody knows yet how long it is."""
        long = LongTd(td, self.fetch, self._memory, self._part_of(), self.begun)
        long.units = self._share.take(TRB_LIMIT)
        if long.units:
            self.long = long
        else:
            self.waiting = True

    def _read_on(self, long: LongTd, type: TransferType) -> Td | None:
        """The long TD, when it has been read to its end and mapped."""
        goes_on = False
        try:
            goes_on = long.step(self._memory, type) and not long.collected
        finally:
            if not goes_on:
                self.forget_long()
        return long.td if long.collected else None

    def forget_long(self) -> None:
        """Read a TD that has been read in part from its start again."""
        long, self.long = self.long, None
        if long is not None:
            self._share.give_back(long.units)

    def pop(self) -> Td:
        """The oldest TD in flight, which is not any more."""
        td = self.inflight.popleft()
        self._share.give_back(td.units)
        return td

    def clear(self) -> None:
        """Nothing is in flight any more, nor being read."""
        self.forget_long()
        units = sum(td.units for td in self.inflight)
        self.inflight.clear()
        self._share.give_back(units)

    def retired(self, td: Td) -> None:
        """A part of a TD has ended well."""
        self.skipping = td.skipped or td.actual < td.length

    def rewind(self, *, keep_progress: bool) -> None:
        """Give back what is in flight: the fetch position becomes the retired one. No transfer is in flight any more.

        With `keep_progress` the bytes that the oldest TD has moved are not moved again when it is fetched anew; a
        control transfer always starts over, since its device cannot go on in the middle.
        """
        self.forget_long()
        if not self.inflight:
            return
        head = self.inflight[0]
        self.fetch.move(head.trbs[0].address, head.cycle)
        done = head.actual
        keep_progress = keep_progress and 0 < done < head.length and head.setup is None
        self._resume = (head.trbs[0].address, head.length, done, head.partial) if keep_progress else None
        self.clear()

    def keep_ahead(self) -> None:
        """The oldest TD is an IN transfer that has failed. A bus that has executed the next ones nevertheless has read
        what the device has repeated for the failed one, and what follows: keep it, before the TDs are given back."""
        for td in islice(self.inflight, 1, None):
            if td.status is not TransferStatus.COMPLETED:
                break
            if td.moved:
                self.ahead.append(b"".join(td.windows or ())[: td.moved])

    def forget_progress(self) -> None:
        """Fetch a half-done TD from its start after all (Reset Endpoint without TSP)."""
        self._resume = None
        self.ahead.clear()

    def saved_state(self) -> RingState:
        """What another process needs to go on with it; nothing is in flight."""
        moved = None if self._resume is None else MovedState(*self._resume)
        return RingState(self.dequeue, self.stream_id, moved, self.skipping, list(self.ahead), self.begun)

    def take_over(self, saved: RingState, path: str) -> None:
        """Go on where the ring of another process was. Raises StateError."""
        require(not saved.dequeue & 0xE, f"{path}.dequeue", "no TRB can be there")
        self.fetch.move(saved.dequeue & spec.EP_DEQUEUE_MASK, saved.dequeue & spec.EP_DCS)
        self.skipping, self.begun = saved.skipping, saved.begun
        self.ahead.extend(saved.ahead)
        if saved.moved is not None:
            moved = saved.moved
            require(0 < moved.moved < moved.length, f"{path}.moved", "it is not a part of the TD")
            self._resume = (moved.address, moved.length, moved.moved, moved.partial)
