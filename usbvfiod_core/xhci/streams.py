"""Bulk endpoints with streams: a transfer ring for each stream, named by the Stream Context Array (4.12, 6.2.4).

The array lies in guest memory where an endpoint without streams has its TR Dequeue Pointer. Only linear primary
arrays exist here (HCCPARAMS1.NSS), so stream ID n is entry n, and entry 0 is none. A stream's context is read when
its doorbell is rung for the first time. All streams share the endpoint's state: one that fails halts them all.
"""

from __future__ import annotations

from typing import Final

from ..errors import GuestMemoryError
from ..state import StateError, require
from ..usb.device import Device
from ..usb.transfer import TransferType
from . import spec, states
from .allowance import Allowance
from .endpoint import Endpoint
from .state import EndpointState, StreamsState
from .transfer_ring import TransferRing
from .xhc import Xhc

_PRIMARY: Final = spec.SCT_PRIMARY_RING << spec.SCT_SHIFT


class StreamEndpoint(Endpoint):
    """An endpoint whose context has MaxPStreams set: `streams` entries, of which 1 to `streams - 1` are streams."""

    def __init__(
        self,
        xhc: Xhc,
        slot_id: int,
        dci: int,
        context: int,
        dequeue: int,
        device: Device | None,
        allowance: Allowance,
        streams: int,
    ) -> None:
        self._array = dequeue & spec.EP_DEQUEUE_MASK
        self._streams = streams
        self._rung_streams: dict[int, None] = {}
        self._invalid = False
        super().__init__(xhc, slot_id, dci, TransferType.BULK, context, dequeue, device, allowance)

    def _set_up_rings(self, dequeue: int) -> None:
        """Rings are made as their doorbells are rung."""

    def doorbell(self, stream_id: int) -> None:
        """The doorbell with a Stream ID (5.6). One that there is not is answered with an Invalid Stream ID Error."""
        if 0 < stream_id < self._streams:
            self._rung_streams[stream_id] = None
        else:
            self._invalid = True
        super().doorbell(stream_id)

    def _answer_doorbell(self) -> None:
        if not self._rung:
            return
        self._rung = False
        rung, self._rung_streams = self._rung_streams, {}
        invalid, self._invalid = self._invalid, False
        if invalid and self.state in (spec.EP_RUNNING, spec.EP_STOPPED):
            self._error(spec.CC_INVALID_STREAM_ID)
        if self.state == spec.EP_STOPPED and rung:
            self._enter(states.DOORBELL)
        if self.state == spec.EP_RUNNING:
            for stream_id in rung:
                ring = self._ring(stream_id)
                if ring is not None:
                    self._answer_doorbell_of(ring)

    def _forget_doorbells(self) -> None:
        super()._forget_doorbells()
        self._rung_streams.clear()
        self._invalid = False

    def set_dequeue(self, dequeue: int, stream_id: int, context_type: int) -> int:
        if (self.state, states.SET_DEQUEUE) not in states.ENDPOINT:
            return spec.CC_CONTEXT_STATE_ERROR
        if not 0 < stream_id < self._streams:
            return spec.CC_INVALID_STREAM_ID
        if context_type != spec.SCT_PRIMARY_RING:
            return spec.CC_INVALID_STREAM_TYPE
        ring = self._rings.get(stream_id)
        if ring is None:
            ring = self._rings[stream_id] = self._new(stream_id, dequeue)
        return self._move(ring, dequeue)

    def saved_state(self) -> EndpointState:
        saved = super().saved_state()
        saved.streams = StreamsState(self._array, self._streams, list(self._rung_streams), self._invalid)
        return saved

    def _take_over_rings(self, saved: EndpointState, path: str) -> None:
        streams = saved.streams
        if streams is None:
            raise StateError(f"{path}.streams: they are missing")
        self._invalid = streams.invalid
        for index, stream_id in enumerate(streams.rung):
            self._check_stream(stream_id, f"{path}.streams.rung[{index}]")
            self._rung_streams[stream_id] = None
        for index, ring in enumerate(saved.rings):
            where = f"{path}.rings[{index}]"
            self._check_stream(ring.stream_id, f"{where}.stream_id")
            require(ring.stream_id not in self._rings, f"{where}.stream_id", "the stream has two rings")
            made = self._rings[ring.stream_id] = self._new(ring.stream_id, ring.dequeue)
            made.take_over(ring, where)

    def _check_stream(self, stream_id: int, path: str) -> None:
        require(0 < stream_id < self._streams, path, f"there is no stream {stream_id}")

    def _ring(self, stream_id: int) -> TransferRing | None:
        """The ring of a stream; None, and the error reported, if its context is none for a primary array."""
        ring = self._rings.get(stream_id)
        if ring is None:
            address = self._array + stream_id * spec.STREAM_CONTEXT_SIZE
            try:
                dequeue = int.from_bytes(self._xhc.memory.read(address, 8), "little")
            except GuestMemoryError as error:
                self._xhc.host_system_error(error)
                return None
            if dequeue & spec.SCT_MASK != _PRIMARY:
                self._error(spec.CC_INVALID_STREAM_TYPE)
                return None
            ring = self._rings[stream_id] = self._new(stream_id, dequeue)
        return ring

    def _new(self, stream_id: int, dequeue: int) -> TransferRing:
        address = self._array + stream_id * spec.STREAM_CONTEXT_SIZE
        self.share.add_ring()
        memory, share = self._xhc.memory, self.share
        return TransferRing(memory, dequeue, address, self.context, share, stream_id=stream_id, context_type=_PRIMARY)

    def _error(self, code: int) -> None:
        """An event about a doorbell: there is no TRB to point to (4.12.2.1)."""
        self.counters.error(code)
        self.emit_without_trb(0, code)
