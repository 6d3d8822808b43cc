"""Endpoints: the endpoint state machine, its context, and the commands that move it (4.6, 4.8).

What an endpoint does while it is Running is in `engine`; here is what halts, stops, resets and restarts it. An
endpoint with streams (4.12) has a transfer ring for each of them, and is in all else the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ..errors import GuestMemoryError
from ..state import require
from ..usb.device import Device
from ..usb.transfer import TransferStatus, TransferType
from . import spec, states
from .allowance import Allowance
from .journal import described
from .report import current
from .ring import Trb
from .state import EndpointState
from .taking_back import StoppableEngine
from .td import Td, data_length
from .transfer_ring import TransferRing
from .xhc import Tap, Xhc

HALTING_CODES: Final[dict[TransferStatus | None, int]] = {
    TransferStatus.STALL: spec.CC_STALL,
    TransferStatus.BABBLE: spec.CC_BABBLE,
}
"""Completion codes of transfers that halt their endpoint; any other failure is a USB Transaction Error (4.10.2)."""

_DEQUEUE: Final = 8
"""Offset of the TR Dequeue Pointer in an endpoint context (6.2.3)."""


class Endpoint(StoppableEngine):
    """Endpoint `dci` (1 to 31) of slot `slot_id`, whose context lies at `context` in guest memory.

    The endpoint starts Running with its ring at `dequeue` (pointer and DCS as in the endpoint context).
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
        allowance: Allowance,
    ) -> None:
        super().__init__(xhc, slot_id, dci, type, device, allowance)
        self.context = context
        self._rung = False
        self._rings: dict[int, TransferRing] = {}
        self._set_up_rings(dequeue)

    def _set_up_rings(self, dequeue: int) -> None:
        self._rings[0] = TransferRing(self._xhc.memory, dequeue, self.context + _DEQUEUE, self.context, self.share)

    def rings(self) -> Iterable[TransferRing]:
        return self._rings.values()

    def tap(self, tap: Tap | None) -> None:
        """Let `tap` see the transfers that are submitted from now on, in the place of whoever saw them before."""
        self._route = self._direct if tap is None else tap(self.address, self.type, self._direct)

    # -- running ---------------------------------------------------------------------------------------------------

    def doorbell(self, stream_id: int) -> None:
        """The driver rings the doorbell (4.7); guest memory is not touched before `run`."""
        self._rung = True
        if not self.queued:
            self._xhc.ready(self)

    def _answer_doorbell(self) -> None:
        if self._rung:
            self._rung = False
            if self.state == spec.EP_STOPPED:
                self._enter(states.DOORBELL)
                for ring in self.rings():
                    self._answer_doorbell_of(ring)
            elif self.state == spec.EP_RUNNING:
                self._answer_doorbell_of(self._rings[0])

    # -- errors ----------------------------------------------------------------------------------------------------

    def _halt(self, ring: TransferRing) -> None:
        if self.state != spec.EP_RUNNING or self._device is None or not ring.inflight:
            return  # disabled, unplugged or rewound meanwhile
        td = ring.inflight[0]
        code = HALTING_CODES.get(td.status, spec.CC_TRANSACTION_ERROR)
        trb, residue = current(td)
        for other in self.rings():
            if other is not ring:
                self._retire_completed(other)
            elif self.is_in and code == spec.CC_TRANSACTION_ERROR:
                other.keep_ahead()
            self._take_back(other)
        # The context first: the driver reads it in its interrupt handler.
        self._enter(states.HALT, ring, trb.address | trb.control & 1)
        self.counters.error(code)
        if self._journal.tracing:
            self._trace(td, code)
        self._say(code, td)
        self.emit_code(code, trb, residue)

    def _trb_error(self, ring: TransferRing, dequeue: int, trb: Trb | None) -> None:
        self._leave_running(ring, dequeue, trb, states.TRB_FAULT, spec.CC_TRB_ERROR)

    def _ring_unreachable(self, ring: TransferRing, dequeue: int) -> None:
        # A driver recovers from a halt at once, and gives the transfer back; what follows a TRB Error takes minutes.
        self._leave_running(ring, dequeue, None, states.HALT, spec.CC_TRANSACTION_ERROR)

    def _leave_running(self, ring: TransferRing, dequeue: int, trb: Trb | None, event: str, code: int) -> None:
        """Leave the state Running with the ring at `dequeue`, for an error that no transfer has ended with."""

        def stopped() -> None:
            if self.state == spec.EP_RUNNING:
                for other in self.rings():
                    self._retire_completed(other)
                    self._take_back(other)
                self._enter(event, ring, dequeue)
                self.counters.error(code)
                self._say(code, None)
                if trb is None:
                    self.emit_without_trb(dequeue & ~0xF, code)
                else:
                    self.emit_code(code, trb, data_length(trb))

        self.drain(stopped)

    # -- commands ------------------------------------------------------------------------------------------------

    def stop(self, finish: Callable[[int], None]) -> None:
        """Stop Endpoint (4.6.9): `finish(completion code)` when every transfer is back and the context written."""
        if (self.state, states.STOP) not in states.ENDPOINT:
            finish(spec.CC_CONTEXT_STATE_ERROR)
            return
        self.drain(lambda: self._stopped(finish))

    def _stopped(self, finish: Callable[[int], None]) -> None:
        if self.state != spec.EP_RUNNING:
            finish(spec.CC_CONTEXT_STATE_ERROR)  # it has failed or was disabled before everything was back
            return
        self._forget_doorbells()
        for ring in self.rings():
            self._retire_completed(ring)
            if ring.inflight and ring.inflight[0].failed and not ring.inflight[0].taken_back:
                self._halt(ring)  # it failed before it could be cancelled
                break
        if (self.state, states.STOP) not in states.ENDPOINT:
            finish(spec.CC_CONTEXT_STATE_ERROR)
            return
        stopped: list[tuple[Trb, int]] = []
        dequeue, code = None, spec.CC_STOPPED_LENGTH_INVALID
        for ring in self.rings():
            if ring.inflight:
                trb, residue = current(ring.inflight[0])
                ring.rewind(keep_progress=True)
                self._write_back(ring, trb.address | trb.control & 1)
                stopped.append((trb, residue))
            else:
                self._write_back(ring, ring.dequeue)
                dequeue = ring.dequeue
                if ring.skipping:
                    code = spec.CC_STOPPED_SHORT_PACKET
        self._enter(states.STOP)
        for trb, residue in stopped:
            self.emit_code(spec.CC_STOPPED, trb, residue)
        if dequeue is not None and not stopped:
            # A Forced Stopped Event, so that the driver knows where the ring stands (4.6.9). In a TD whose data a short
            # packet has ended it is Stopped - Short Packet, with the bytes since the last Event Data TRB: none.
            self.emit_without_trb(dequeue & ~0xF, code)
        finish(spec.CC_SUCCESS)

    def reset(self, *, keep_progress: bool) -> int:
        """Reset Endpoint (4.6.8); with `keep_progress` (TSP) a retry goes on where the failed TD stood (4.6.8.1)."""
        if (self.state, states.RESET) not in states.ENDPOINT:
            return spec.CC_CONTEXT_STATE_ERROR
        if not keep_progress:
            for ring in self.rings():
                ring.forget_progress()
        self._forget_doorbells()
        self._enter(states.RESET)
        return spec.CC_SUCCESS

    def set_dequeue(self, dequeue: int, stream_id: int, context_type: int) -> int:
        """Set TR Dequeue Pointer (4.6.10) to `dequeue`, address and DCS; a stream only where there are streams."""
        if (self.state, states.SET_DEQUEUE) not in states.ENDPOINT:
            return spec.CC_CONTEXT_STATE_ERROR
        if stream_id:
            return spec.CC_INVALID_STREAM_ID
        return self._move(self._rings[0], dequeue)

    def _move(self, ring: TransferRing, dequeue: int) -> int:
        if self.state == spec.EP_ERROR:
            self._forget_doorbells()
        ring.move(dequeue)
        self._enter(states.SET_DEQUEUE, ring, dequeue)
        return spec.CC_SUCCESS

    # -- going on in another process -------------------------------------------------------------------------------

    def saved_state(self) -> EndpointState:
        """What another process needs to go on with it; the controller is quiet."""
        return EndpointState(
            dci=self.dci,
            type=self.type,
            state=states.ENDPOINT_STATES[self.state],
            context=self.context,
            rings=[ring.saved_state() for ring in self.rings()],
            connected=self._device is not None,
            rung=self._rung,
        )

    def take_over(self, saved: EndpointState, path: str) -> None:
        """Go on, once the controller does, where another process was. Raises StateError."""
        self._rung = saved.rung
        self.state = states.named(states.ENDPOINT_STATES, saved.state, f"{path}.state")
        require(self.state != spec.EP_DISABLED, f"{path}.state", "a Disabled endpoint has none")
        self._take_over_rings(saved, path)

    def _take_over_rings(self, saved: EndpointState, path: str) -> None:
        require(saved.streams is None, f"{path}.streams", "only bulk endpoints have streams")
        require(len(saved.rings) == 1 and not saved.rings[0].stream_id, f"{path}.rings", "one ring is expected")
        self._rings[0].take_over(saved.rings[0], f"{path}.rings[0]")

    # -- own -------------------------------------------------------------------------------------------------------

    def _say(self, code: int, td: Td | None) -> None:
        """Log that the endpoint has halted, or stopped with an error."""
        request = "" if td is None or td.setup is None else f" at request {described(td.setup)}"
        self._journal.say(self.port_id, "endpoint %#04x: %s%s", self.address, spec.COMPLETION_CODES[code], request)

    def _forget_doorbells(self) -> None:
        """A stopped endpoint, and each of its streams, goes on with a doorbell that is rung from now on, and reads what
        is on its ring then (4.6.9)."""
        self._rung = False
        for ring in self._due:
            ring.due = False
        self._due.clear()
        for ring in self.rings():
            ring.forget_long()

    def _take_back(self, ring: TransferRing) -> None:
        ring.rewind(keep_progress=True)
        self._write_back(ring, ring.dequeue)

    def _write_back(self, ring: TransferRing, dequeue: int) -> None:
        try:
            ring.write_back(dequeue)
        except GuestMemoryError as error:
            self._xhc.host_system_error(error)

    def _enter(self, event: str, ring: TransferRing | None = None, dequeue: int = 0) -> None:
        """Take the transition, and write it to the contexts: the ring's dequeue pointer if one is given, then the
        state."""
        self.state = states.ENDPOINT[self.state, event]
        if ring is not None:
            self._write_back(ring, dequeue)
        try:
            words = self._xhc.memory.window(self.context, 4).cast("I")
        except GuestMemoryError as error:
            self._xhc.host_system_error(error)
            return
        words[0] = words[0] & ~spec.EP_STATE | self.state
