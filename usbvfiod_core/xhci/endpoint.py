"""The endpoint engine: doorbell to transfers, completions to events, and the endpoint state machine (4.8, 4.10).

All work is done in `run`, which the controller calls for endpoints that have something to do: a doorbell, or a
transfer that has ended. A device may end a transfer inside `submit`, so completions only mark their TD, and `run`
retires TDs strictly in the order of the ring.

Whatever stops an endpoint (an error, Stop Endpoint, a reset, the device's removal) goes through `drain`: cancel what
is in flight, wait until every transfer is back, then go on. So nothing touches guest memory for a TD that the driver
has been told is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

from ..errors import GuestMemoryError
from ..memory import GuestMemory
from ..usb.device import Device, Loop, Timer
from ..usb.transfer import Transfer, TransferStatus, TransferType
from . import spec, states
from .ring import RingLoopError, Trb
from .td import Td, TdFault, current, report
from .transfer_ring import TransferRing

log = logging.getLogger(__name__)

IN_FLIGHT = {TransferType.CONTROL: 1, TransferType.BULK: 8, TransferType.INTERRUPT: 4, TransferType.ISOCHRONOUS: 12}
"""TDs in flight. Windows' rings are not consistent further ahead than this (checklist 7)."""

CANCEL_TIMEOUT = 2.0
"""Seconds after which a device that does not give a cancelled transfer back is not waited for any more; Linux
declares the controller dead after 5 s."""

_COMPLETED = TransferStatus.COMPLETED
_TAKEN_BACK = (TransferStatus.CANCELLED, TransferStatus.DISCONNECTED, None)

HALTING_CODES = {TransferStatus.STALL: spec.CC_STALL, TransferStatus.BABBLE: spec.CC_BABBLE}
"""Completion codes of transfers that halt their endpoint; any other failure is a USB Transaction Error (4.10.2)."""

_EVENT = spec.TRB_TRANSFER_EVENT << spec.TRB_TYPE_SHIFT


class Xhc(Protocol):
    """What an endpoint needs of the controller."""

    memory: GuestMemory
    loop: Loop

    def ready(self, endpoint: Endpoint) -> None:
        """Call `endpoint.run` soon."""
        ...

    def post(self, interrupter: int, parameter: int, status: int, control: int, block_interrupt: bool) -> None:
        """Publish an event."""
        ...

    def blocked(self) -> bool:
        """Whether an event ring is full, so that nothing new may be fetched."""
        ...

    def host_system_error(self, error: GuestMemoryError) -> None:
        """Guest memory that the controller itself needs is not there (4.24.1)."""
        ...


class Endpoint:
    """Endpoint `dci` (1 to 31) of slot `slot_id`, whose context lies at `context` in guest memory.

    `address` is the endpoint's address as in its descriptor. The endpoint starts Running with its ring at `dequeue`
    (pointer and DCS as in the endpoint context).
    """

    def __init__(
        self,
        xhc: Xhc,
        slot_id: int,
        dci: int,
        type: TransferType,
        context: int,
        dequeue: int,
        device: Device | None,
    ) -> None:
        self.dci = dci
        self.type = type
        self.is_in = bool(dci & 1)
        self.address = dci >> 1 | (0x80 if self.is_in and dci > 1 else 0)
        self.context = context
        self.state = spec.EP_RUNNING
        self.ring = TransferRing(xhc.memory, dequeue & spec.EP_DEQUEUE_MASK, dequeue & spec.EP_DCS)
        self.queued = False
        """Whether it waits for its `run`; kept by the controller."""
        self._xhc = xhc
        self._device = device
        self._control = type is TransferType.CONTROL
        self._limit = IN_FLIGHT[type]
        self._event = _EVENT | slot_id << spec.TRB_SLOT_SHIFT | dci << spec.TRB_ENDPOINT_SHIFT
        self._outstanding = 0
        self._running = False
        self._rung = False
        self._drained: list[Callable[[], None]] = []
        self._deadline: Timer | None = None

    # -- work ----------------------------------------------------------------------------------------------------

    def doorbell(self) -> None:
        """The driver rings the doorbell (4.7); guest memory is not touched before `run`."""
        self._rung = True
        if not self.queued:
            self._xhc.ready(self)

    @property
    def outstanding(self) -> int:
        """Transfers that the device has not given back."""
        return self._outstanding

    def run(self, deadline: int) -> bool:
        """Retire what has ended and fetch what is there; True if there may be more to fetch at once.

        Fetches nothing more after `deadline` (time.monotonic_ns), so that the other endpoints have their turn.
        """
        if self._drained:
            if self._outstanding == 0:
                self._finish_drain()
            return False
        if self._rung:
            self._rung = False
            if self.state == spec.EP_STOPPED:
                self._enter(states.DOORBELL)
        if self.state != spec.EP_RUNNING or self._device is None:
            return False
        self._running = True
        try:
            return self._work(self._device, deadline)
        except TdFault as fault:
            self._fault(fault.trb.address, fault.trb.control & 1, fault)
        except (RingLoopError, GuestMemoryError) as error:
            self._fault(self.ring.fetch.address, self.ring.fetch.cycle, error)
        finally:
            self._running = False
        return False

    def _work(self, device: Device, deadline: int) -> bool:
        ring = self.ring
        inflight = ring.inflight
        while True:
            while inflight and inflight[0].ended:
                if not self._retire(inflight[0]):
                    return False
            if len(inflight) >= self._limit:
                return False
            if self._xhc.blocked() or monotonic_ns() > deadline:
                return True
            td = ring.next(is_in=self.is_in, control=self._control)
            if td is None:
                if ring.fetch.link_ioc and not inflight:
                    self._report_links(ring.fetch.link_ioc)
                return False
            inflight.append(td)
            windows = td.windows
            if windows is None:
                td.ended = True
                continue
            td.transfer = transfer = Transfer(
                self.address, self.type, windows, td.length - td.done, self._ended, setup=td.setup, context=td
            )
            self._outstanding += 1
            try:
                device.submit(transfer)
            except Exception:
                log.exception("%s: submit raised; the transfer fails", device.name)
                transfer.complete(TransferStatus.ERROR)

    def _ended(self, transfer: Transfer) -> None:
        """Device.complete: the TD is retired by `run`."""
        td: Td = transfer.context
        if td.ended:
            return  # given up on after CANCEL_TIMEOUT
        td.ended = True
        self._outstanding -= 1
        if not self._running and not self.queued:
            self._xhc.ready(self)

    def _retire(self, td: Td) -> bool:
        """Report the oldest TD; False if it ended in error and the endpoint is halting."""
        transfer = td.transfer
        if transfer is not None:
            status = transfer.status
            if status is not _COMPLETED or (transfer.actual < transfer.length and not td.is_in):
                # An OUT transfer is never short: a device that took less has failed.
                self.drain(self._halted)
                return False
        self.ring.inflight.popleft()
        if td.links:
            self._report_links(td.links)
        report(td, self.emit)
        return True

    # -- events --------------------------------------------------------------------------------------------------

    def emit(self, parameter: int, status: int, event_data: int, trb_status: int, trb_control: int) -> None:
        """Publish a Transfer Event (6.4.2.1); target interrupter and BEI come from the TRB it is about."""
        self._xhc.post(
            trb_status >> spec.TRB_INTERRUPTER_SHIFT,
            parameter,
            status,
            self._event | event_data,
            bool(trb_control & spec.TRB_BEI),
        )

    def _emit_code(self, code: int, trb: Trb, length: int) -> None:
        self.emit(trb.address, code << spec.EVENT_CODE_SHIFT | length, 0, trb.status, trb.control & ~spec.TRB_BEI)

    def _report_links(self, links: list[Trb]) -> None:
        for link in links:
            self._emit_code(spec.CC_SUCCESS, link, 0)
        links.clear()

    # -- stopping ------------------------------------------------------------------------------------------------

    def drain(self, then: Callable[[], None]) -> None:
        """Cancel what is in flight; call `then` once every transfer is back, possibly at once. Until then nothing is
        fetched. Calls made while an earlier one waits are answered in order."""
        self._drained.append(then)
        if len(self._drained) > 1:
            return
        device = self._device
        running, self._running = self._running, True
        if device is not None:
            # Newest first, so that data that still comes in goes to the oldest.
            for td in reversed(self.ring.inflight):
                if not td.ended and td.transfer is not None:
                    try:
                        device.cancel(td.transfer)
                    except Exception:
                        log.exception("%s: cancel raised", device.name)
        self._running = running
        if self._outstanding == 0:
            self._finish_drain()
        else:
            self._deadline = self._xhc.loop.call_later(CANCEL_TIMEOUT, self._give_up)

    def _finish_drain(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        waiting, self._drained = self._drained, []
        for then in waiting:
            then()

    def _give_up(self) -> None:
        self._deadline = None
        for td in self.ring.inflight:
            if not td.ended:
                log.error("endpoint %#04x: the device keeps a cancelled transfer: %r", self.address, td.transfer)
                td.ended = True
        self._outstanding = 0
        self._finish_drain()

    def _halted(self) -> None:
        """The oldest TD has ended in error, and nothing is in flight: Halted (4.10.2.1)."""
        if self.state != spec.EP_RUNNING or not self.ring.inflight:
            return  # disabled or rewound meanwhile
        td = self.ring.inflight[0]
        transfer = td.transfer
        status = transfer.status if transfer is not None else None
        code = HALTING_CODES.get(status, spec.CC_TRANSACTION_ERROR) if status is not None else spec.CC_TRANSACTION_ERROR
        trb, residue = current(td)
        self.ring.rewind(keep_progress=True)
        # The context first: the driver reads it in its interrupt handler.
        self._enter(states.HALT, trb.address | trb.control & 1)
        self._emit_code(code, trb, residue)

    def _fault(self, address: int, cycle: int, error: Exception) -> None:
        """A TRB error where the ring is fetched: the endpoint stops in Error (4.8.3), but not before the TDs ahead of
        it are done; until then each `run` comes back here."""
        if self.ring.inflight:
            return
        log.warning("endpoint %#04x: TRB error: %s", self.address, error)
        self._enter(states.TRB_FAULT, address | cycle)
        self.emit(address, spec.CC_TRB_ERROR << spec.EVENT_CODE_SHIFT, 0, 0, 0)

    def _retire_completed(self) -> None:
        """Report the TDs at the head that were done before they could be cancelled."""
        inflight = self.ring.inflight
        while inflight:
            td = inflight[0]
            transfer = td.transfer
            if transfer is not None and (
                transfer.status is not _COMPLETED or (transfer.actual < transfer.length and not td.is_in)
            ):
                break
            inflight.popleft()
            report(td, self.emit)

    # -- commands ------------------------------------------------------------------------------------------------

    def stop(self, finish: Callable[[int], None]) -> None:
        """Stop Endpoint (4.6.9): `finish(completion code)` when every transfer is back and the context written."""
        if (self.state, states.STOP) not in states.ENDPOINT:
            finish(spec.CC_CONTEXT_STATE_ERROR)
            return
        self.drain(lambda: self._stopped(finish))

    def _stopped(self, finish: Callable[[int], None]) -> None:
        self._retire_completed()
        head = self.ring.inflight[0] if self.ring.inflight else None
        if head is not None and head.transfer is not None and head.transfer.status not in _TAKEN_BACK:
            self._halted()  # it failed before it could be cancelled
        if (self.state, states.STOP) not in states.ENDPOINT:
            finish(spec.CC_CONTEXT_STATE_ERROR)
            return
        if head is None:
            # A Forced Stopped Event, so that the driver knows where the ring stands (4.6.9).
            dequeue = self.ring.dequeue
            self._enter(states.STOP, dequeue)
            self.emit(dequeue & ~0xF, spec.CC_STOPPED_LENGTH_INVALID << spec.EVENT_CODE_SHIFT, 0, 0, 0)
        else:
            trb, residue = current(head)
            self.ring.rewind(keep_progress=True)
            self._enter(states.STOP, trb.address | trb.control & 1)
            self._emit_code(spec.CC_STOPPED, trb, residue)
        finish(spec.CC_SUCCESS)

    def reset(self, *, keep_progress: bool) -> int:
        """Reset Endpoint (4.6.8); with `keep_progress` (TSP) a retry goes on where the failed TD stood (4.6.8.1)."""
        if (self.state, states.RESET) not in states.ENDPOINT:
            return spec.CC_CONTEXT_STATE_ERROR
        if not keep_progress:
            self.ring.forget_progress()
        self._rung = False
        self._enter(states.RESET)
        return spec.CC_SUCCESS

    def set_dequeue(self, address: int, cycle: int) -> int:
        """Set TR Dequeue Pointer (4.6.10)."""
        if (self.state, states.SET_DEQUEUE) not in states.ENDPOINT:
            return spec.CC_CONTEXT_STATE_ERROR
        self.ring.move(address, cycle)
        self._enter(states.SET_DEQUEUE, address | cycle)
        return spec.CC_SUCCESS

    def disable(self, then: Callable[[], None]) -> None:
        """Leave the state machine for good: no event any more, `then` when nothing is in flight. The context is the
        caller's business."""
        self.state = spec.EP_DISABLED

        def gone() -> None:
            self.ring.inflight.clear()
            then()

        self.drain(gone)

    def rewind(self, then: Callable[[], None]) -> None:
        """Take everything back to the ring without an event and go on at the next doorbell or `run`: the port is
        reset, or the guest's memory map changes under the transfers."""

        def back() -> None:
            if self.state == spec.EP_RUNNING:
                self._retire_completed()
                self.ring.rewind(keep_progress=True)
            then()

        self.drain(back)

    def uses(self, start: int, end: int) -> bool:
        """Whether a transfer in flight may touch guest memory in this range."""
        for td in self.ring.inflight:
            if td.ended:
                continue
            for trb in td.trbs:
                if trb.parameter < end and start < trb.parameter + (trb.status & spec.TRB_LENGTH_MASK):
                    return True
        return False

    def device_gone(self, then: Callable[[], None]) -> None:
        """The device is unplugged: no event any more, though commands still work; `then` when nothing is in flight."""

        def back() -> None:
            self.ring.rewind(keep_progress=False)
            then()

        self.drain(back)
        self._device = None

    def _enter(self, event: str, dequeue: int | None = None) -> None:
        """Take the transition, and write the endpoint context: the state, and the dequeue pointer if one is given."""
        self.state = states.ENDPOINT[self.state, event]
        try:
            words = self._xhc.memory.window(self.context, 16).cast("I")
        except GuestMemoryError as error:
            self._xhc.host_system_error(error)
            return
        if dequeue is not None:
            words[2] = dequeue & 0xFFFF_FFFF
            words[3] = dequeue >> 32
        words[0] = words[0] & ~spec.EP_STATE | self.state
