"""The transfer engine of an endpoint: TRBs to transfers, completions to events (4.9, 4.10).

All work is done in `run`, which the controller calls for endpoints that have something to do: a doorbell, or a
transfer that has ended. A device may end a transfer inside `submit`, so completions only mark their TD, and `run`
retires TDs strictly in the order of their ring.

Whatever stops an endpoint (an error, Stop Endpoint, a reset, the device's removal) goes through `drain`: cancel what
is in flight, wait until every transfer is back, then go on. What a device keeps for too long is given up on, and its
windows are revoked first. So nothing touches guest memory for a TD that the driver has been told is over.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable
from time import monotonic_ns
from typing import Final

from ..errors import GuestMemoryError, UnsharedMemoryError
from ..usb.device import Device, Timer
from ..usb.transfer import Transfer, TransferStatus, TransferType
from . import spec
from .allowance import Allowance, Share
from .complaints import TRB_ERROR, UNSHARED
from .report import report, report_skipped
from .ring import Lap, RingLoopError, Trb
from .statistics import EndpointCounters
from .td import Td, TdFault
from .transfer_ring import IN_FLIGHT, TransferRing
from .turns import Runnable
from .xhc import Xhc

log = logging.getLogger(__name__)

CANCEL_TIMEOUT: Final = 1.0
"""Seconds after which a device that does not give a cancelled transfer back is not waited for any more. Linux declares
the controller dead after 5 s, and QEMU its server when DMA_UNMAP takes as long."""

_EVENT: Final = spec.TRB_TRANSFER_EVENT << spec.TRB_TYPE_SHIFT

Writes = Callable[[], bool]
"""Whether something needs guest memory, asked when it is to be done."""


def _always() -> bool:
    return True


class TransferEngine(Runnable):
    """What all endpoints do while they are Running. `dci` is 1 to 31, `address` that of the endpoint's descriptor."""

    def __init__(
        self, xhc: Xhc, slot_id: int, dci: int, type: TransferType, device: Device | None, allowance: Allowance
    ) -> None:
        self.dci = dci
        self.type = type
        self.is_in = bool(dci & 1)
        self.address = dci >> 1 | (0x80 if self.is_in and dci > 1 else 0)
        self.state = spec.EP_RUNNING
        self.queued = False
        self.counters = EndpointCounters(type)
        self.interrupter = 0
        """Interrupter Target of the slot context, for events that are about no TRB (6.2.2); kept by the slot."""
        self.slot_id = slot_id
        self.port_id = 0
        """The root hub port of its device; kept by the slot."""
        self._xhc = xhc
        self._journal = xhc.journal
        self._interrupters = xhc.interrupters
        self._device = device
        self._direct = self._route = device.route(self.address, type) if device is not None else _disconnected
        self._limit = IN_FLIGHT[type]
        self.share = Share(allowance, self._fetch_what_waits)
        self._event = _EVENT | slot_id << spec.TRB_SLOT_SHIFT | dci << spec.TRB_ENDPOINT_SHIFT
        self.outstanding = 0
        """Transfers that the device has."""
        self._due: list[TransferRing] = []
        """The rings to look at in the next `run`, in this order."""
        self._running = False
        """What becomes due now is seen to without another `run`."""
        self._owed = False
        """Whether this run has still to fetch something, even after its deadline."""
        self._fetched = False
        """Whether something was fetched from the ring that is being looked at."""
        self._revoking = False
        """Whether what the device keeps is not revoked yet."""
        self._drained: list[tuple[Callable[[], None], Writes | None]] = []
        self._kept = False
        """Whether the first of these waits for guest memory only."""
        self._deadline: Timer | None = None

    @property
    def draining(self) -> bool:
        """Whether somebody waits for the transfers to come back."""
        return bool(self._drained)

    @abstractmethod
    def rings(self) -> Iterable[TransferRing]:
        """The endpoint's transfer rings that have ever been rung."""

    @abstractmethod
    def _answer_doorbell(self) -> None:
        """Do what a doorbell since the last `run` asks for."""

    @abstractmethod
    def _halt(self, ring: TransferRing) -> None:
        """The oldest TD of `ring` has failed and nothing is in flight any more."""

    @abstractmethod
    def _trb_error(self, ring: TransferRing, dequeue: int, trb: Trb | None) -> None:
        """The ring has a TRB at `dequeue` (address and cycle) that cannot be executed, or not even be read: then `trb`
        is None. Nothing is in flight on the ring."""

    @abstractmethod
    def _ring_unreachable(self, ring: TransferRing, dequeue: int) -> None:
        """The ring itself, at `dequeue`, is memory that the client does not share. Nothing is in flight on it."""

    # -- work ----------------------------------------------------------------------------------------------------

    def settle(self) -> bool:
        """Retire what has ended and fetch nothing: the controller becomes quiet. True if that has to wait."""
        if self._drained:
            return self.outstanding == 0 and not self._revoking and self._finish_drain()
        self._running = True
        for ring in list(self.rings()):
            inflight = ring.inflight
            while inflight and inflight[0].ended and self._retire(ring, inflight[0]):
                pass
        self._running = False
        return False

    def run(self, deadline: int) -> bool:
        """Retire what has ended and fetch what is there; True if there may be more to fetch at once.

        Fetches one TD, or one step of it, in any case, and nothing more after `deadline` (time.monotonic_ns), so that
        the others have their turn. Rings that time was not enough for come first in the next run.
        """
        if self._drained:
            return self.outstanding == 0 and not self._revoking and self._finish_drain()
        self._answer_doorbell()
        device = self._device
        if self.state != spec.EP_RUNNING or device is None:
            return False
        due, self._due = self._due, []
        self._running = self._owed = True
        passed_over = 0
        for ring in due:
            self._fetched = False
            more = self.state == spec.EP_RUNNING and not self._drained and self._run_ring(ring, device, deadline)
            ring.due = False
            if more and self._fetched:
                self._look_at(ring)
            elif more:
                ring.due = True
                self._due.insert(passed_over, ring)
                passed_over += 1
        self._running = False
        return bool(self._due)

    def _answer_doorbell_of(self, ring: TransferRing) -> None:
        """The driver has rung for this ring, and may have written to any place of it."""
        ring.lap = None
        self._look_at(ring)

    def _fetch_what_waits(self) -> None:
        """There is room again for TDs that had to wait."""
        for ring in self.rings():
            if ring.waiting:
                ring.waiting = False
                if self.state == spec.EP_RUNNING:
                    self._look_at(ring)
        if self._due and not self._running and not self.queued:
            self._xhc.ready(self)

    def _look_at(self, ring: TransferRing) -> None:
        if not ring.due:
            ring.due = True
            self._due.append(ring)

    def _run_ring(self, ring: TransferRing, device: Device, deadline: int) -> bool:
        try:
            return self._work(ring, device, deadline)
        except TdFault as fault:
            trb, dequeue, error = fault.trb, fault.trb.address | fault.trb.control & 1, str(fault)
        except UnsharedMemoryError as unshared:
            if not ring.inflight:
                self._xhc.complaints.say(UNSHARED, f"the guest's transfers fail: {unshared.reason}")
                self._ring_unreachable(ring, ring.fetch.address | ring.fetch.cycle)
            return False
        except (RingLoopError, GuestMemoryError) as unread:
            trb, dequeue, error = None, ring.fetch.address | ring.fetch.cycle, str(unread)
        # Not before the TDs ahead of it are done; until then each completion comes back here.
        if not ring.inflight:
            self._xhc.complaints.say(TRB_ERROR, f"endpoint {self.address:#04x}: TRB error: {error}")
            self._trb_error(ring, dequeue, trb)
        return False

    def _work(self, ring: TransferRing, device: Device, deadline: int) -> bool:
        inflight = ring.inflight
        # The device may go away inside submit, and the event ring turn out to be gone.
        while self._device is device and not self._drained:
            if inflight and inflight[0].ended:
                if not self._retire(ring, inflight[0]):
                    return False
                continue
            if len(inflight) >= self._limit or ring.waiting or (ring.lap is not None and ring.lap.closed):
                return False
            now = monotonic_ns()
            if self._interrupters.blocked or (now > deadline and not self._owed):
                return True
            self._owed, self._fetched = False, True
            td = ring.next(self.type, is_in=self.is_in)
            if td is None:
                if ring.long is not None:
                    continue
                if not inflight and not ring.waiting:
                    self._starve(ring)
                return False
            td.submitted = now
            if td.windows is None:
                td.ended = True
                if ring.lap is None:
                    ring.lap = Lap()
                ring.lap.passes(td.trbs[0])
            else:
                ring.lap = None
                self._submit(ring, td, td.windows, device)
        return False

    def _submit(self, ring: TransferRing, td: Td, windows: list[memoryview], device: Device) -> None:
        td.transfer = transfer = Transfer(
            self.address,
            self.type,
            windows.copy(),  # the device's, which may do with it what it likes
            td.length - td.done,
            self._ended,
            setup=td.setup,
            stream_id=ring.stream_id,
            context=(ring, td),
        )
        self.outstanding += 1
        if td.unreachable is not None:
            self._xhc.complaints.say(UNSHARED, f"the guest's transfers fail: {td.unreachable.reason}")
            transfer.complete(TransferStatus.ERROR)
            return
        if ring.ahead:
            data = ring.ahead.popleft()
            moved = transfer.write(data)
            transfer.complete(TransferStatus.COMPLETED if moved == len(data) else TransferStatus.BABBLE, moved)
            return
        self._start(transfer, td, device)

    def _start(self, transfer: Transfer, td: Td, device: Device) -> None:
        """Hand a transfer to the device."""
        try:
            self._route(transfer)
        except Exception:
            log.exception("%s: submit raised; the transfer fails", device.name)
            transfer.complete(TransferStatus.ERROR)

    def _ended(self, transfer: Transfer) -> None:
        """Device.complete: the TD is retired by `run`."""
        at: tuple[TransferRing, Td] = transfer.context
        ring, td = at
        if td.ended:
            return  # given up on after CANCEL_TIMEOUT
        transfer.context = None  # a circle of objects would keep views of guest memory until the collector finds it
        self._end(td, transfer)
        self.outstanding -= 1
        self._look_at(ring)
        if not self._running and not self.queued:
            self._xhc.ready(self)

    def _end(self, td: Td, transfer: Transfer) -> None:
        try:
            td.end(transfer)
        except TypeError:
            name = self._device.name if self._device is not None else "a device that is gone"
            log.error("%s: it has counted no bytes, but a %s", name, type(transfer.actual).__name__)

    def _retire(self, ring: TransferRing, td: Td) -> bool:
        """Report the oldest TD of a ring; False if it ended in error and the endpoint is halting."""
        if td.failed:
            self.drain(lambda: self._halt(ring))
            return False
        ring.pop()
        self._report(ring, td)
        return True

    def _report(self, ring: TransferRing, td: Td) -> None:
        """Tell the driver of a TD that has ended well, and count it."""
        if td.links:
            self._report_links(td.links)
        if td.skipped:
            report_skipped(td, self.emit)
        else:
            report(td, self.emit)
            if td.partial:
                ring.retired(td)
        if td.transfer is not None:
            if self._journal.tracing:
                self._trace(td, spec.CC_SUCCESS)
            counters = self.counters
            counters.bytes += td.actual
            ns = monotonic_ns() - td.submitted
            counters.latency[ns.bit_length()] += 1
            counters.nanoseconds += ns

    def _trace(self, td: Td, code: int) -> None:
        """Log a TD that has ended."""
        ns = monotonic_ns() - td.submitted
        self._journal.transfer(self.port_id, self.address, td.setup, td.actual, td.length, code, ns)

    def _retire_completed(self, ring: TransferRing) -> None:
        """Report the TDs at the head that were done before they could be cancelled."""
        while self._has_completed(ring):
            self._report(ring, ring.pop())

    def _has_completed(self, ring: TransferRing) -> bool:
        """Whether the TD at the head is done, and the driver has not been told."""
        head = ring.inflight[0] if ring.inflight else None
        return head is not None and head.ended and (not head.failed or head.whole)

    def _starve(self, ring: TransferRing) -> None:
        """The ring is empty and nothing is in flight on it."""
        if ring.fetch.link_ioc:
            self._report_links(ring.fetch.link_ioc)

    # -- events --------------------------------------------------------------------------------------------------

    def emit(self, parameter: int, status: int, event_data: int, trb_status: int, trb_control: int) -> None:
        """Publish a Transfer Event (6.4.2.1); target interrupter and BEI come from the TRB it is about."""
        self._interrupters.post(
            trb_status >> spec.TRB_INTERRUPTER_SHIFT,
            parameter,
            status,
            self._event | event_data,
            bool(trb_control & spec.TRB_BEI),
        )

    def emit_code(self, code: int, trb: Trb, length: int) -> None:
        """An event with this completion code about a TRB, which interrupts whatever the TRB says."""
        self.emit(trb.address, code << spec.EVENT_CODE_SHIFT | length, 0, trb.status, 0)

    def emit_without_trb(self, parameter: int, code: int) -> None:
        """An event that is about no TRB; it goes to the interrupter that the slot context names (6.2.2)."""
        self.emit(parameter, code << spec.EVENT_CODE_SHIFT, 0, self.interrupter << spec.TRB_INTERRUPTER_SHIFT, 0)

    def _report_links(self, links: list[Trb]) -> None:
        for link in links:
            self.emit_code(spec.CC_SUCCESS, link, 0)
        links.clear()

    # -- stopping ------------------------------------------------------------------------------------------------

    def drain(self, then: Callable[[], None], *, again: bool = False, writes: Writes | None = _always) -> None:
        """Cancel what is in flight; call `then` once every transfer is back, possibly at once. Until then nothing is
        fetched. Calls made while an earlier one waits are answered in order. `again`: all of it is fetched again as
        soon as the controller goes on.

        `writes` says whether `then` needs guest memory: where that is away for a moment, `then` waits for it, and so do
        those behind it. One with None never needs any, and waits for nobody but the device."""
        self._drained.append((then, writes))
        if len(self._drained) > 1:
            if self._kept and not self.outstanding:
                self._finish_drain()
            return
        device = self._device
        running, self._running = self._running, True
        if device is not None and self.outstanding:
            for ring in list(self.rings()):
                # Newest first, so that data that still comes in goes to the oldest.
                for td in reversed(ring.inflight):
                    if not td.ended and td.transfer is not None:
                        try:
                            if again:
                                device.take_back(td.transfer)
                            else:
                                device.cancel(td.transfer)
                        except Exception:
                            log.exception("%s: cancel raised", device.name)
        self._running = running
        if self.outstanding == 0:
            if self._finish_drain() and not self.queued:
                self._xhc.ready(self)
        else:
            self._deadline = self._xhc.loop.call_later(CANCEL_TIMEOUT, self._overdue)

    def _finish_drain(self) -> bool:
        """Every transfer is back; returns whether somebody waits for guest memory all the same."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        waiting, self._drained = self._drained, []
        kept: list[tuple[Callable[[], None], Writes | None]] = []
        away = self._xhc.memory_away()
        for then, writes in waiting:
            if away and writes is not None and (kept or writes()):
                kept.append((then, writes))
                continue
            try:
                then()
            except GuestMemoryError as error:
                self._xhc.host_system_error(error)
        self._drained[:0] = kept
        self._kept = bool(kept)
        return self._kept

    def _overdue(self) -> None:
        self._deadline = None
        for td in (td for ring in self.rings() for td in ring.inflight if not td.ended):
            log.error("endpoint %#04x: the device keeps a cancelled transfer: %r", self.address, td.transfer)
        self._xhc.revoke(self.give_up(), self.revoked)

    def give_up(self) -> list[memoryview]:
        """Wait no more for what the device keeps; returns its windows. The drain is over when they are revoked, and
        `revoked` is called then."""
        kept: list[memoryview] = []
        self._revoking = True
        for ring in self.rings():
            for td in ring.inflight:
                if not td.ended and td.transfer is not None:
                    self._end(td, td.transfer)
                    kept += td.windows or ()
        self.outstanding = 0
        return kept

    def revoked(self) -> None:
        """What the device has kept is no guest memory any more."""
        self._revoking = False
        if not self.queued:
            self._xhc.ready(self)


def _disconnected(transfer: Transfer) -> None:
    transfer.complete(TransferStatus.DISCONNECTED)
