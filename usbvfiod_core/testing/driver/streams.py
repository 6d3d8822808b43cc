"""Bulk endpoints with streams (4.12): a Stream Context Array, and a transfer ring for each stream."""

from __future__ import annotations

from ...xhci import spec
from .errors import ProtocolError
from .pipe import STOPPED_CODES, Pipe
from .slot import Slot
from .trb import Event

STREAM_ERRORS = frozenset((spec.CC_INVALID_STREAM_TYPE, spec.CC_INVALID_STREAM_ID))


class Stream(Pipe):
    """One stream of a `StreamPipe`: its ring and what is queued on it. The endpoint's state is all its streams'.

    So `stop`, `reset` and whatever does that (`cancel`, `flush`) stop all of them; `resume`, and what ends with it
    (`cancel`, `recover`), rings the doorbells of all that have TDs.
    """

    def __init__(self, endpoint: StreamPipe, stream_id: int) -> None:
        super().__init__(endpoint.device, endpoint.address, endpoint.max_packet_size)
        self.endpoint = endpoint
        self.stream_id = stream_id
        self._rung = False

    @property
    def context_address(self) -> int:
        """Where its stream context is (6.2.4.1)."""
        return self.endpoint.array + self.stream_id * spec.STREAM_CONTEXT_SIZE

    @property
    def context_dequeue(self) -> tuple[int, int]:
        return self.endpoint.context_dequeue

    @property
    def dequeue(self) -> tuple[int, int]:
        field = self.driver.ram.read_u64(self.context_address)
        if field & spec.SCT_MASK != spec.SCT_PRIMARY_RING << spec.SCT_SHIFT:
            raise ProtocolError(f"the context of stream {self.stream_id} has another type: {field:#x}")
        return field & ~0xF, field & spec.EP_DCS

    def write_context(self, context_type: int = spec.SCT_PRIMARY_RING) -> None:
        """Write the stream context: the ring where it stands. The endpoint must not run, or not know the stream."""
        pointer, cycle = self.queue[0].start if self.queue else self.ring.position
        self.driver.ram.write_u64(self.context_address, pointer | context_type << spec.SCT_SHIFT | cycle)

    def doorbell(self, stream_id: int | None = None) -> None:
        """Ring the endpoint's doorbell with this stream, or with any number."""
        self._rung = True
        super().doorbell(self.stream_id if stream_id is None else stream_id)

    @property
    def is_known(self) -> bool:
        return self._rung

    def stop(self, *, suspend: bool = False) -> list[Event]:
        """Stop Endpoint; returns the Stopped events of all its streams."""
        return self.endpoint.stop(suspend=suspend)

    def resume(self) -> None:
        self.endpoint.resume()

    def _point_at(self, position: tuple[int, int]) -> None:
        self.driver.commands.set_dequeue(self.slot_id, self.dci, *position, stream_id=self.stream_id)


class StreamPipe(Pipe):
    """An endpoint with the streams 1 to `count`, in an array of the next power of two above `count` entries.

    TDs go to `streams[stream_id]`. `array` is the guest address of the Stream Context Array, `entries` its length;
    `stream_errors` are events about a doorbell: Invalid Stream ID and Invalid Stream Type Errors.
    """

    def __init__(self, device: Slot, address: int, max_packet_size: int, count: int) -> None:
        super().__init__(device, address, max_packet_size)
        self.max_primary_streams = max(count.bit_length() - 1, 1)
        self.entries = 2 << self.max_primary_streams
        size = self.entries * spec.STREAM_CONTEXT_SIZE
        self.array = self.driver.ram.allocate(size, align=size, boundary=1 << 16)
        self.driver.ram.write(self.array, bytes(size))
        self.streams = {stream_id: Stream(self, stream_id) for stream_id in range(1, count + 1)}
        for stream in self.streams.values():
            stream.write_context()
        self.stream_errors: list[Event] = []

    @property
    def is_known(self) -> bool:
        return any(stream.is_known for stream in self.streams.values())

    @property
    def is_busy(self) -> bool:
        return any(stream.queue for stream in self.streams.values())

    @property
    def context_dequeue(self) -> tuple[int, int]:
        return self.array, 0

    def stop(self, *, suspend: bool = False) -> list[Event]:
        for stream in self.streams.values():
            stream.stopped = []
        return super().stop(suspend=suspend)

    def resume(self) -> None:
        """Ring the doorbells of all streams that have TDs."""
        for stream in self.streams.values():
            if stream.queue:
                stream.doorbell()

    def flush(self) -> None:
        """Take everything off all rings: stop the endpoint if it runs, and skip all TDs."""
        if self.state == spec.EP_RUNNING:
            self.stop()
        elif self.state == spec.EP_HALTED:
            self.reset()
        for stream in self.streams.values():
            if stream.queue or stream.failed is not None:
                stream.set_dequeue(stream.ring.position)

    def free(self) -> None:
        for stream in self.streams.values():
            stream.free()
        self.driver.ram.free(self.array)
        super().free()

    def handle(self, event: Event) -> None:
        """Take a Transfer Event: it belongs to the stream on whose ring its TRB is."""
        code = event.completion_code
        if code in STREAM_ERRORS:
            if event.parameter:
                raise ProtocolError("a stream error that points to a TRB (4.12.2.1)", code, event)
            self.stream_errors.append(event)
            return
        stream = self._stream_of(event)
        if code in STOPPED_CODES:
            self.stopped.append(event)
        stream.handle(event)

    def _stream_of(self, event: Event) -> Stream:
        for stream in self.streams.values():
            if event.is_event_data:
                if any(td.index_of(event) >= 0 for td in stream.queue):
                    return stream
            elif stream.ring.contains(event.parameter):
                return stream
        raise ProtocolError("an event for a TRB that is on no ring of the endpoint", event.completion_code, event)
