"""A pipe: a transfer ring, what is queued on it, and the care of its endpoint (4.6.8 to 4.6.10, 4.8.3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Unpack

from ...usb.requests import SetupPacket
from ...xhci import spec
from . import trb as make
from .errors import DriverError, ProtocolError
from .rings import ProducerRing
from .slot import Slot
from .td import DataBuffer, Td, TdOptions, control_td, data_td
from .trb import Event, Trb

STOPPED_CODES = frozenset((spec.CC_STOPPED, spec.CC_STOPPED_LENGTH_INVALID, spec.CC_STOPPED_SHORT_PACKET))
_WITHOUT_TD = frozenset((spec.CC_RING_UNDERRUN, spec.CC_RING_OVERRUN))


class Pipe:
    """One endpoint of a device as the driver sees it: bulk, interrupt, or the default control pipe.

    address     endpoint address as in a descriptor (0 for the default control pipe), `dci` its context index
    queue       TDs that are on the ring and not done, in order
    failed      the TD that has halted the endpoint, until `recover`, `retry` or `set_dequeue`
    stopped     Stopped events of the last `stop`
    """

    max_primary_streams = 0
    """MaxPStreams of the endpoint context (6.2.3)."""
    halts = True
    """Whether an error halts the endpoint."""

    def __init__(self, device: Slot, address: int, max_packet_size: int) -> None:
        self.device = device
        self.driver = device.driver
        self.slot_id = device.slot_id
        self.address = address
        self.dci = (address & 0xF) * 2 + (address >> 7) if address else 1
        self.is_in = address >= 0x80
        self.max_packet_size = max_packet_size
        self.ring = ProducerRing(self.driver.ram, self.driver.ring_trbs, segments=self.driver.ring_segments)
        self.queue: deque[Td] = deque()
        self.failed: Td | None = None
        self.stopped: list[Event] = []
        self._late: Td | None = None

    # -- submitting ------------------------------------------------------------------------------------------------

    def submit(self, data: bytes | None = None, length: int = 0, **options: Unpack[TdOptions]) -> Td:
        """Queue one TD: `data` for OUT, room for `length` bytes for IN. `b""` or 0 is a zero-length packet."""
        trbs, buffer = self._data_td(data, length, options)
        return self._queue(trbs, self.is_in, buffer, options)

    def submit_control(
        self, setup: SetupPacket, data: bytes = b"", *, room: int | None = None, **options: Unpack[TdOptions]
    ) -> Td:
        """Queue a control transfer; `data` is the data stage of an OUT request, of `setup.length` bytes. With `room`
        the data stage has so many bytes, whatever the request says; with 0 there is none."""
        length = setup.length if room is None else room
        if not setup.is_in and len(data) != length:
            raise DriverError(f"{len(data)} bytes of data for {setup}")
        out = None if setup.is_in else data
        buffer = DataBuffer(self.driver.ram, out, length, options)
        trbs = control_td(
            setup,
            buffer.pieces,
            out,
            length,
            max_packet_size=self.max_packet_size,
            tag=self.driver.next_tag(),
            options=options,
        )
        return self._queue(trbs, setup.is_in, buffer, options)

    def submit_trbs(self, trbs: Sequence[Trb], *, is_in: bool | None = None, doorbell: bool = True) -> Td:
        """Queue TRBs as they are, as one TD; right or wrong. Their buffers are the caller's."""
        td = Td(self, trbs, is_in=self.is_in if is_in is None else is_in)
        self._push(td)
        if doorbell:
            self.doorbell()
        return td

    def settle(self) -> None:
        """The TDs in front that want no event are done: something else, a status the device has sent, says so."""
        while self.queue and not self.queue[0].wants_event:
            self._done_silently(self.queue[0])

    def doorbell(self, stream_id: int = 0) -> None:
        """Ring the endpoint's doorbell (4.7)."""
        self.driver.ring_doorbell(self.slot_id, self.dci, stream_id)

    # -- the endpoint's state --------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether there are TDs that are not done."""
        return bool(self.queue)

    @property
    def dequeue(self) -> tuple[int, int]:
        """(pointer, cycle state) of the ring as the controller has written it; valid while the endpoint is stopped."""
        return self.device.context.dequeue(self.dci)

    @property
    def context_dequeue(self) -> tuple[int, int]:
        """TR Dequeue Pointer and DCS for the endpoint context of a new endpoint."""
        return self.ring.position

    @property
    def state(self) -> int:
        """The Endpoint State that the controller has written: EP_RUNNING, EP_HALTED and so on."""
        return self.device.context.endpoint_state(self.dci)

    @property
    def is_known(self) -> bool:
        """Whether the controller knows where a ring of it stands, and can say so in a Stopped event."""
        return True

    def stop(self, *, suspend: bool = False) -> list[Event]:
        """Stop Endpoint (4.6.9). Returns its Stopped events; what it had executed before is done by then.

        TDs that are left stay queued and go on with the next doorbell. Raises ProtocolError when there is no
        Stopped event, or the endpoint context does not say Stopped afterwards.
        """
        self.stopped = []
        self.driver.commands.stop_endpoint(self.slot_id, self.dci, suspend=suspend)
        if self.state != spec.EP_STOPPED:
            raise ProtocolError(f"after Stop Endpoint the endpoint's state is {self.state}")
        if not self.stopped and self.is_known:
            raise ProtocolError("Stop Endpoint without a Stopped event (4.6.9)")
        return self.stopped

    def reset(self, *, preserve: bool = False) -> None:
        """Reset Endpoint (4.6.8): Halted to Stopped. `preserve` keeps the transfer state (soft retry)."""
        self.driver.commands.reset_endpoint(self.slot_id, self.dci, preserve=preserve)
        if self.state != spec.EP_STOPPED:
            raise ProtocolError(f"after Reset Endpoint the endpoint's state is {self.state}")

    def set_dequeue(self, position: tuple[int, int] | None = None) -> None:
        """Set TR Dequeue Pointer (4.6.10) to (pointer, cycle state); default: behind the TD that has failed.

        TDs before the position are taken off the ring. Raises ProtocolError when the context does not follow.
        """
        if position is None:
            position = self.queue[0].start if self.queue else self.ring.position
        self._point_at(position)
        if self.dequeue != position:
            pointer, cycle = self.dequeue
            raise ProtocolError(f"Set TR Dequeue Pointer: the context says {pointer:#x}, cycle {cycle}")
        if self.failed is not None:
            self.ring.retire(len(self.failed.addresses))
            self.failed.release()
            self.failed = None
        starts = [td.start for td in self.queue]
        drop = starts.index(position) if position in starts else len(starts)
        for _ in range(drop):
            td = self.queue.popleft()
            self.ring.retire(len(td.addresses))
            td.finish(0)

    def recover(self) -> None:
        """After a halt: Reset Endpoint, skip the TD that failed, clear the device's halt, go on with the rest."""
        self.reset()
        self.set_dequeue()
        if self.address:
            self.device.clear_halt(self.address)
        self.resume()

    def retry(self) -> None:
        """After a transaction error: have the TD that failed executed again (soft retry, 4.6.8.1)."""
        failed = self.failed
        if failed is None:
            raise DriverError("nothing has failed on this endpoint")
        self.reset(preserve=True)
        self.failed = None
        failed.forget_progress()
        self.queue.appendleft(failed)
        self.doorbell()

    def cancel(self, td: Td) -> None:
        """Take a TD off the ring: stop the endpoint, skip it or fill it with No Ops, go on with the others.

        It may be done instead, when it has won the race.
        """
        if td.done:
            return
        self.stop()
        if not td.done:
            if self.queue[0] is td:
                following = self.queue[1].start if len(self.queue) > 1 else self.ring.position
                self.set_dequeue(following)
            else:
                self.ring.write_no_ops(td.addresses)
                blank = Td(self, [make.no_op()] * len(td.addresses), is_in=td.is_in)
                blank.addresses, blank.start, blank.end = td.addresses, td.start, td.end
                self.queue[self.queue.index(td)] = blank  # wants no event: done when the TD behind it is
                td.finish(0)
        self.resume()

    def resume(self) -> None:
        """Ring the doorbell if there are TDs, so that a stopped endpoint goes on."""
        if self.queue:
            self.doorbell()

    def flush(self) -> None:
        """Take everything off the ring: stop the endpoint if it runs, and skip all TDs."""
        if self.state == spec.EP_RUNNING:
            self.stop()
        elif self.state == spec.EP_HALTED:
            self.reset()
        self.set_dequeue(self.ring.position)

    def free(self) -> None:
        """Give the ring back; TDs that are left are taken off. The endpoint must not run any more."""
        for td in self.queue:
            td.finish(0)
        if self.failed is not None:
            self.failed.release()
            self.failed = None
        self.queue.clear()
        self.ring.free()

    # -- for the driver --------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Take a Transfer Event for this endpoint. Raises ProtocolError for one that cannot be."""
        code = event.completion_code
        if code in STOPPED_CODES:
            self._handle_stopped(event)
            return
        if code in _WITHOUT_TD:
            return
        queue = self.queue
        place = index = -1
        for td in queue:
            place += 1
            index = td.index_of(event)
            if index >= 0:
                break
        if index < 0:
            self._handle_late(event)
            return
        if place:
            self._pass(list(queue)[:place], td, event)
        td.record(event, index)
        if td.done:
            self._done(td, td.completion_code)

    # -- own -------------------------------------------------------------------------------------------------------

    def _point_at(self, position: tuple[int, int]) -> None:
        self.driver.commands.set_dequeue(self.slot_id, self.dci, *position)

    def _data_td(self, data: bytes | None, length: int, options: TdOptions) -> tuple[list[Trb], DataBuffer]:
        """The Normal TRBs of a TD, and the memory they point to."""
        if self.is_in == (data is not None) or not self.address:
            raise DriverError(f"endpoint {self.address:#04x} cannot be used like that")
        size = length if data is None else len(data)
        buffer = DataBuffer(self.driver.ram, data, size, options)
        trbs = data_td(
            buffer.pieces,
            data,
            is_in=self.is_in,
            max_packet_size=self.max_packet_size,
            tag=self.driver.next_tag(),
            options=options,
        )
        return trbs, buffer

    def _queue(self, trbs: list[Trb], is_in: bool, buffer: DataBuffer, options: TdOptions) -> Td:
        td = Td(self, trbs, is_in=is_in)
        td.own(buffer.pieces, buffer.owned)
        self._push(td)
        if options.get("doorbell", True):
            self.doorbell()
        return td

    def _push(self, td: Td) -> None:
        ring = self.ring
        td.start = ring.position
        td.addresses = ring.push_td(td.trbs)
        td.end = ring.position
        self.queue.append(td)

    def _pass(self, earlier: list[Td], td: Td, event: Event) -> None:
        """There is an event for `td`: the TDs in front of it are done, or their events are on another event ring."""
        for each in earlier:
            if not each.wants_event:
                self._done_silently(each)
            elif each.interrupter == td.interrupter:
                raise ProtocolError("a TD is done before the one in front of it", event.completion_code, event)

    def _done(self, td: Td, code: int) -> None:
        self.queue.remove(td)
        if td.has_halted:
            self.failed = td  # its TRBs stay where they are until the dequeue pointer is set behind them
        else:
            self.ring.retire(len(td.addresses))
        self._late = td if code == spec.CC_SHORT_PACKET else None
        td.finish(code)

    def _done_silently(self, td: Td) -> None:
        td.actual = sum(td.lengths)
        self._done(td, spec.CC_SUCCESS)

    def _handle_stopped(self, event: Event) -> None:
        self.stopped.append(event)
        for td in self.queue:
            index = td.index_of(event)
            if index >= 0:
                td.stopped(event, index)
                return
        if not event.parameter:
            raise ProtocolError("a Stopped event that points to no TRB", event.completion_code, event)

    def _handle_late(self, event: Event) -> None:
        """A short TD may give a second event, for its last TRB (4.10.1.1)."""
        late = self._late
        if late is None or late.index_of(event) < 0:
            raise ProtocolError("an event for a TRB that is in no TD of the endpoint", event.completion_code, event)
        late.events.append(event)
        self._late = None
