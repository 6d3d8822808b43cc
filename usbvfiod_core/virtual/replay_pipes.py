"""The bulk, interrupt and isochronous data of a recording, endpoint by endpoint.

Data of a bulk IN endpoint are given when the driver has sent as many bytes to the bulk OUT endpoints of the interface
as the recorded one had sent before them: an answer does not come before its question. Those of an interrupt IN endpoint
wait for the bulk data of their function in both directions: a serial port does not hang up before all is read.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import islice

from ..capture.bulk import gathered, let_go
from ..capture.recorded_device import RecordedDevice
from ..capture.recording import Exchange
from ..capture.usbmon import STATUS, Record
from ..state import StateError
from ..usb.device import Loop, Timer
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .endpoint import VirtualEndpoint
from .isochronous import fill, finish
from .replay_chunks import Chunk, Stream, chunks, function, moves, outlets, refusals, whole
from .replay_requests import first_difference
from .replay_state import PipesState, SinkState, SourceState, StallState

_log = logging.getLogger(__name__)

WAITS = 2.0
"""Seconds after which the log says what an endpoint waits for."""

_BULK = TransferType.BULK
_COMPLETED = TransferStatus.COMPLETED
_GIVEN_UP = (TransferStatus.CANCELLED, TransferStatus.DISCONNECTED)


class SentData:
    """The bytes of an OUT endpoint, which are compared with what was recorded; a difference is told once."""

    def __init__(self, name: str, address: int, pieces: Iterable[bytes | memoryview]) -> None:
        self._name = name
        self._address = address
        self._data = Stream(pieces)
        self._told = False
        self.sent = 0

    def take(self, data: bytes | memoryview) -> None:
        """The driver has sent this."""
        expected = b"" if self._told else self._data.part(self.sent, len(data))
        if expected != data and not self._told:
            self._told = True
            place = self.sent + first_difference(expected, data)
            how = "more is sent than was recorded" if place >= len(self._data) else "other data are sent than recorded"
            _log.warning("%s: endpoint %02x: %s, from byte %d on", self._name, self._address, how, place)
        self.sent += len(data)

    def state(self) -> SinkState:
        """What another process has to know."""
        return SinkState(self.sent, self._told)

    def take_state(self, state: SinkState) -> None:
        """Go on where another was."""
        self.sent, self._told = state.sent, state.told

    def let_go(self) -> None:
        """Forget what was recorded, in a thread."""
        self._data.let_go()


class Pace:
    """When chunks are due; `serve` is called for an endpoint with one that is."""

    def __init__(self, loop: Loop, serve: Callable[[VirtualEndpoint], None], *, real_time: bool) -> None:
        self.loop = loop
        self.serve = serve
        self.real_time = real_time


class _Source:
    """An IN endpoint: its chunks, and how far the driver has read."""

    def __init__(self, name: str, address: int, chunks: list[Chunk], pace: Pace) -> None:
        self.name = name
        self.address = address
        self.chunks = chunks
        self.live: VirtualEndpoint | None = None
        self.awaited: list[SentData | _Source] = []
        self._pace = pace
        self._timer: Timer | None = None
        self._explained = False
        self.rewind()

    def rewind(self) -> None:
        self.stop()
        self._number = 0
        self._offset = 0
        self.sent = 0
        self._since = float("-inf")  # when what came before the next chunk was there
        self._asking = False
        self._questioned = False  # whether what the next chunk waits for has been sent

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def state(self) -> SourceState:
        """What another process has to know."""
        waited = None if self._since == float("-inf") else max(self._pace.loop.time() - self._since, 0.0)
        return SourceState(self._number, self._offset, waited, self._asking, self._questioned, self._explained)

    def take_state(self, state: SourceState) -> None:
        """Go on where another was. Raises StateError."""
        rest = len(self.chunks[state.number].data) if state.number < len(self.chunks) else 0
        if state.number > len(self.chunks) or state.offset > rest:
            raise StateError(f"endpoint {self.address:02x}: so much was not recorded")
        self._number, self._offset = state.number, state.offset
        self.sent = sum(len(chunk.data) for chunk in islice(self.chunks, state.number)) + state.offset
        self._since = float("-inf") if state.waited is None else self._pace.loop.time() - state.waited
        self._asking, self._questioned, self._explained = state.asking, state.questioned, state.explained

    def questioned(self) -> None:
        """Something was moved that the next chunk may have waited for."""
        if not self._questioned and self._number < len(self.chunks) and self._moved >= self.chunks[self._number].needed:
            self._questioned = True
            self._since = max(self._since, self._pace.loop.time())

    @property
    def _moved(self) -> int:
        return sum(each.sent for each in self.awaited)

    def process(self, endpoint: VirtualEndpoint) -> None:
        """Give what is due."""
        now = self._pace.loop.time()
        if not self._asking:
            self._asking = True
            self._since = max(self._since, now)
        while endpoint.queue and not endpoint.halted and self._number < len(self.chunks):
            chunk = self.chunks[self._number]
            if self.awaited and self._moved < chunk.needed:
                self._wait(WAITS, self._explain)
                return
            if self._pace.real_time and not self._offset and now < self._since + chunk.after:
                self._wait(self._since + chunk.after - now, self._due)
                return
            self._give(endpoint, chunk, now)
        self._asking = bool(endpoint.queue)

    def _give(self, endpoint: VirtualEndpoint, chunk: Chunk, now: float) -> None:
        transfer = endpoint.queue[0]
        room = transfer.length - transfer.actual
        part = chunk.data[self._offset : self._offset + room]
        _write(transfer, part)
        self._offset += len(part)
        self.sent += len(part)
        if self._offset < len(chunk.data):
            endpoint.queue.popleft().complete(_COMPLETED)  # the rest goes into the next
            return
        self._number, self._offset, self._since = self._number + 1, 0, now
        self._questioned = self._number < len(self.chunks) and self._moved >= self.chunks[self._number].needed
        if chunk.status is TransferStatus.STALL:
            endpoint.halt()
        elif chunk.status is not _COMPLETED:
            endpoint.queue.popleft().complete(chunk.status)
        elif chunk.ends or transfer.actual == transfer.length or self._number == len(self.chunks):
            endpoint.queue.popleft().complete(_COMPLETED)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self.stop()
        if then == self._explain and self._explained:
            return
        self._timer = self._pace.loop.call_later(seconds, then)

    def _due(self) -> None:
        self._timer = None
        if self.live is not None:
            self._pace.serve(self.live)

    def _explain(self) -> None:
        self._timer, self._explained = None, True
        chunk = self.chunks[self._number]
        _log.info(
            "%s: endpoint %02x answers when %d more bytes have been %s, as the recorded driver did",
            self.name,
            self.address,
            chunk.needed - self._moved,
            "moved" if any(isinstance(each, _Source) for each in self.awaited) else "sent",
        )


class Pipes:
    """The bulk and interrupt endpoints of a device, without those of the interfaces `others`."""

    def __init__(self, name: str, recorded: RecordedDevice, pace: Pace, others: Container[int] = ()) -> None:
        self._sources: dict[int, _Source] = {}
        self._sinks: dict[int, SentData] = {}
        self._refused: dict[int, set[int]] = {}
        outs = _by_address(recorded.traffic.exchanges)
        ended = recorded.traffic.ended
        interfaces = [each for each in recorded.interfaces() if each.number not in others]
        awaited: dict[int, set[int]] = {}
        for interface in interfaces:
            for endpoint in interface.endpoints:
                address = endpoint.address
                if endpoint.type is TransferType.ISOCHRONOUS or address in self._sources or address in self._sinks:
                    continue
                if endpoint.is_in:
                    of_bulk = endpoint.type is _BULK
                    awaited[address] = outlets(interface) if of_bulk else function(interface, interfaces)
                    moved = moves(awaited[address], outs, ended)
                    given = chunks(ended, moved, address, endpoint.packet_size, endpoint.type)
                    let_go(moved)
                    self._sources[address] = _Source(name, address, given, pace)
                else:
                    pieces = (whole(each) for each in outs.get(address, ()) if each.status is not TransferStatus.STALL)
                    self._sinks[address] = SentData(name, address, pieces)
                    self._refused[address] = refusals(outs.get(address, ()))
        for address, source in self._sources.items():
            both = ((self._sinks.get(each) or self._sources.get(each)) for each in awaited[address])
            source.awaited = [each for each in both if each is not None]
        self._stalled: set[tuple[int, int]] = set()

    def rewind(self) -> None:
        """Begin from the start."""
        for source in self._sources.values():
            source.rewind()
        for sink in self._sinks.values():
            sink.sent = 0
        self._stalled.clear()

    def state(self) -> PipesState:
        """What another process has to know."""
        return PipesState(
            {str(address): source.state() for address, source in self._sources.items()},
            {str(address): sink.state() for address, sink in self._sinks.items()},
            [StallState(*each) for each in sorted(self._stalled)],
        )

    def take_state(self, state: PipesState) -> None:
        """Go on where another was. Raises StateError."""
        if (set(state.sources), set(state.sinks)) != (set(map(str, self._sources)), set(map(str, self._sinks))):
            raise StateError("pipes: other endpoints were recorded")
        for address, source in self._sources.items():
            source.take_state(state.sources[str(address)])
        for address, sink in self._sinks.items():
            sink.take_state(state.sinks[str(address)])
        self._stalled = {(each.endpoint, each.sent) for each in state.stalled}

    def connect(self, endpoints: Mapping[int, VirtualEndpoint]) -> None:
        """These are the endpoints of the settings in force."""
        for address, source in self._sources.items():
            source.live = endpoints.get(address)
            if source.live is None:
                source.stop()

    def process(self, endpoint: VirtualEndpoint) -> list[VirtualEndpoint]:
        """Something is queued; returns the endpoints that may have something to give because of what was moved."""
        moved: SentData | _Source | None = self._sources.get(endpoint.address)
        if isinstance(moved, _Source):
            moved.process(endpoint)
        elif (sink := self._sinks.get(endpoint.address)) is not None:
            self._take(endpoint, sink)
            moved = sink
        waiting = []
        for each in self._sources.values():
            if moved in each.awaited:
                each.questioned()
                if each.live is not None and each.live.queue:
                    waiting.append(each.live)
        return waiting

    def _take(self, endpoint: VirtualEndpoint, sink: SentData) -> None:
        while endpoint.queue:
            place = (endpoint.address, sink.sent)
            if sink.sent in self._refused[endpoint.address] and place not in self._stalled:
                self._stalled.add(place)
                endpoint.halt()
                return
            transfer = endpoint.queue.popleft()
            sink.take(transfer.read())
            transfer.complete(_COMPLETED, transfer.length)

    def close(self) -> None:
        """Stop waiting."""
        for source in self._sources.values():
            source.live = None
            source.stop()

    def let_go(self) -> None:
        """Forget what was recorded, in a thread, once it is closed."""
        for source in self._sources.values():
            let_go(source.chunks)
        for sink in self._sinks.values():
            sink.let_go()


class Packets:
    """The packets of all isochronous endpoints, in order. Behind the last one there are empty ones."""

    def __init__(self, recorded: RecordedDevice) -> None:
        self._records: dict[int, list[Record]] = {}
        self._ends: dict[int, array[int]] = {}
        """Packets up to the end of each record."""
        self._next: dict[int, int] = {}
        for exchange in recorded.traffic.ended:
            record = exchange.completed
            if record is None or record.type is not TransferType.ISOCHRONOUS or not record.is_in:
                continue
            if exchange.status in _GIVEN_UP:
                continue
            if record.packets:
                ends = self._ends.setdefault(record.endpoint, array("Q"))
                ends.append((ends[-1] if ends else 0) + len(record.packets))
                self._records.setdefault(record.endpoint, gathered(())).append(record)

    def let_go(self) -> None:
        """Forget them, in a thread."""
        self._ends.clear()
        let_go(*self._records.values())

    def state(self) -> dict[str, int]:
        """What another process has to know: how many packets have gone, by the endpoint's address."""
        return {str(address): number for address, number in self._next.items()}

    def take_state(self, state: Mapping[str, int]) -> None:
        """Go on where another was. Raises ValueError."""
        self._next = {int(address): number for address, number in state.items()}

    def rewind(self, address: int) -> None:
        """Begin an endpoint's from the start."""
        self._next[address] = 0

    def move(self, address: int, transfer: Transfer) -> None:
        """A transfer's intervals are over."""
        for packet in transfer.packets:
            if address < 0x80:
                packet.actual = packet.length
                continue
            number = self._next.get(address, 0)
            self._next[address] = number + 1
            packet.status, data = self._packet(address, number, packet.length)
            fill(transfer, packet, data)
        finish(transfer)

    def _packet(self, address: int, number: int, room: int) -> tuple[TransferStatus, bytes | memoryview]:
        """Zeros take the place of what was not captured, but for what there is no `room` for anyway."""
        ends = self._ends.get(address)
        if ends is None or number >= ends[-1]:
            return _COMPLETED, b""
        index = bisect_right(ends, number)
        record = self._records[address][index]
        packet = record.packets[number - ends[index]]
        data = record.data[packet.offset : packet.offset + packet.length]
        missing = min(packet.length, room + 1) - len(data) if not packet.status else 0
        return STATUS.get(packet.status, TransferStatus.ERROR), bytes(data) + bytes(missing) if missing > 0 else data


def _by_address(exchanges: Iterable[Exchange]) -> dict[int, list[Exchange]]:
    """Those of the endpoints that have bulk or interrupt transfers."""
    found: dict[int, list[Exchange]] = {}
    pipes: set[int] = set()
    for each in exchanges:
        address = each.first.endpoint
        if address not in found:
            found[address] = gathered(())
        found[address].append(each)
        if each.first.type in (_BULK, TransferType.INTERRUPT):
            pipes.add(address)
    return {address: found[address] for address in found if address in pipes}


def _write(transfer: Transfer, data: bytes | memoryview) -> None:
    done = 0
    for window in transfer.rest():
        part = data[done : done + len(window)]
        if not part:
            break
        window[: len(part)] = part
        done += len(part)
    transfer.actual += done
