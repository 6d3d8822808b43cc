"""The transfers of one imported device as messages, without a socket: requests in, answers out.

Answers are matched by their sequence number alone; the rest of their header differs from server to server. What a
request has become is decided by the table of what is open here and never by the status of an answer to CMD_UNLINK,
since servers disagree about it, and Linux sends that answer late if the transfer had ended before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from usbvfiod_core.host.urb_status import PACKET_STATUS, URB_STATUS
from usbvfiod_core.remote import Outgoing, PeerError, Unwanted
from usbvfiod_core.usb.transfer import TransferStatus, behind, part, scatter

from . import wire
from .kept import Kept, digest_of
from .request import Request, nobody
from .state import GhostState, SessionState, UnlinkState

_SCRATCH: Final = memoryview(bytearray(1 << 16))
"""Where goes what nobody wants."""
_GHOSTS: Final = 1024
"""Requests whose answer was not waited for, of which one may still come, that are remembered."""

CANCELLED: Final = TransferStatus.CANCELLED


class Sender(Protocol):
    """As `usbvfiod_core.remote.Channel`, as far as it is used."""

    def send(self, *parts: bytes | memoryview, soon: bool = False) -> Outgoing: ...

    def withdraw(self, message: Outgoing) -> bool: ...


class Session:
    """A `Reader` for a `Channel`, which `sender` is. `sequence` is the last number that was used."""

    backlog: Final = False  # it reads one header at a time

    def __init__(self, number: int, sequence: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.sender: Sender | None = None
        self.messages = 0
        self.unfinished = 0
        self._number = number
        self._sequence = sequence
        self._open: dict[int, Request] = {}
        self._ghosts: dict[int, Request] = {}
        """Requests that have ended here, and whose answer may still come."""
        self.kept = Kept()
        """Requests that nobody waits for now: see `keep`."""
        self._unlinks: dict[int, int] = {}
        """CMD_UNLINKs without an answer: what each is for."""
        self._unwanted = Unwanted(clock)
        self._head = memoryview(bytearray(wire.HEADER))
        self._filled = 0
        self._body: list[memoryview] = []
        self._body_left = 0
        self._answered: tuple[Request, bool, int, int] | None = None
        """Whose body it is, whether that is wanted, and its status and length."""
        self._data = self._table = memoryview(b"")
        """The body of an isochronous transfer: its data, packed, and its packets."""

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Send a request."""
        assert self.sender is not None
        request.sequence = sequence = self._next()
        length, packets = request.length, request.packets
        flags = wire.ISO_ASAP if packets else 0
        direction = wire.IN if request.is_in else wire.OUT
        head = wire.SUBMIT.pack(
            *(wire.CMD_SUBMIT, sequence, self._number, direction, request.endpoint & 15),
            *(flags, length, 0, len(packets), request.interval, request.setup),
        )
        soon = bool(self._open)
        self._open[sequence] = request
        if packets:
            table = b"".join(wire.PACKET.pack(offset, size, 0, 0) for offset, size in packets)
            data = [] if request.is_in else request.windows
            request.outgoing = self.sender.send(head, *data, table, soon=soon)
        elif request.is_in:
            request.outgoing = self.sender.send(head, soon=soon)
        else:
            request.outgoing = self.sender.send(head, *request.windows, soon=soon)

    def unlink(self, request: Request) -> None:
        """Take a request back: it is answered soon, at once if it has not been sent."""
        assert self.sender is not None
        if request.unlinked or self._open.get(request.sequence) is not request:
            return
        if request.outgoing is not None and self.sender.withdraw(request.outgoing):
            del self._open[request.sequence]
            request.back(CANCELLED, 0)
            return
        request.unlinked = True
        sequence = self._next()
        self._unlinks[sequence] = request.sequence
        if len(self._unlinks) > _GHOSTS:
            del self._unlinks[next(iter(self._unlinks))]
        direction = wire.IN if request.is_in else wire.OUT
        parts = (wire.CMD_UNLINK, sequence, self._number, direction, request.endpoint & 15, request.sequence)
        self.sender.send(wire.UNLINK.pack(*parts))

    def keep(self, request: Request) -> bool:
        """Leave a request under way for whoever adopts it, as taking it back would not tell what it has moved: its
        windows are free, and `back` is not called. One that was not sent yet is forgotten, as it is sent again. Of an
        endpoint's requests the newest is kept first. False if it cannot be, as it is being answered."""
        if request.unlinked or self._open.get(request.sequence) is not request:
            return False
        if self._answered is not None and self._answered[0] is request:
            return False
        assert self.sender is not None
        del self._open[request.sequence]
        if request.outgoing is None or not self.sender.withdraw(request.outgoing):
            if not request.is_in:
                request.digest = digest_of(request.windows)
            self.kept.add(request)
        request.windows, request.back, request.outgoing = [], nobody, None
        return True

    def adopt(self, endpoint: int, windows: list[memoryview], length: int) -> Request | None:
        """The oldest request of this endpoint that is kept, if it is for so many bytes, and writes those of `windows`:
        the caller gives it those and `back`, and then calls `go_on_with`. None if there is none; then nothing is kept
        of the endpoint any more."""
        request = self.kept.take(endpoint, windows, length)
        if request is None:
            self.drop_kept(endpoint)
        elif request.answer is None:
            self._open[request.sequence] = request
        return request

    def go_on_with(self, request: Request) -> None:
        """Of one that was adopted: call `back`, if what was asked for has come meanwhile."""
        if request.answer is not None:
            back, (status, actual) = request.back, request.answer
            request.unstore(actual)
            request.windows, request.back, request.answer = [], nobody, None
            back(URB_STATUS.get(status, TransferStatus.ERROR), actual)

    def drop_kept(self, endpoint: int | None = None) -> None:
        """Nobody wants what is kept, of an endpoint or of all: take it back."""
        for request in self.kept.remove(endpoint):
            if request.answer is None:
                self._open[request.sequence] = request
                self.unlink(request)
                self.abandon(request)

    def abandon(self, request: Request) -> bool:
        """Wait no longer for an answer: the windows are not used any more, and `back` is not called. Whether it was
        still open."""
        if self._open.get(request.sequence) is not request:
            return False
        del self._open[request.sequence]
        self._release(request)
        request.store = None
        if self._answered is not None and self._answered[0] is request:
            _, _, status, actual = self._answered
            self._answered = (request, False, status, actual)
            if not request.packets:
                self._body = self._into_scratch(self._body_left)
        else:
            self._forget(request)
        return True

    @property
    def idle(self) -> bool:
        """Whether nothing is open."""
        return not self._open

    def state(self) -> SessionState:
        """What another process has to know; while it is `idle` and the channel between two messages."""
        return SessionState(
            self._number,
            self._sequence,
            [
                GhostState(each.sequence, each.endpoint, each.is_in, each.length, list(each.packets))
                for each in self._ghosts.values()
            ],
            [UnlinkState(*each) for each in self._unlinks.items()],
            self.kept.saved_state(),
        )

    @classmethod
    def made_of(cls, state: SessionState) -> Session:
        """The session that goes on where that of another process was. Raises StateError."""
        made = cls(state.number, state.sequence)
        for each in state.ghosts:
            ghost = Request(
                each.endpoint,
                [],
                each.length,
                nobody,
                is_in=each.is_in,
                packets=tuple(each.packets),
            )
            ghost.sequence = each.sequence
            made._ghosts[each.sequence] = ghost
        made._unlinks = {each.sequence: each.victim for each in state.unlinks}
        made.kept.take_over(state.kept)
        return made

    def end(self, status: TransferStatus) -> None:
        """The connection is gone: everything that is open ends."""
        self.kept.remove()
        still_open, self._open = list(self._open.values()), {}
        for request in still_open:
            request.back(status, 0)

    # -- Reader --------------------------------------------------------------------------------------------------------

    def windows(self) -> list[memoryview]:
        """What is missing of the body, and the header behind it."""
        return [*self._body, self._head[self._filled :]]

    def received(self, count: int) -> None:
        """So many bytes of `windows` are there."""
        if self._body_left:
            taken = min(count, self._body_left)
            self._body_left -= taken
            count -= taken
            if self._body_left:
                self._body = behind(self._body, taken)
                self.unfinished = self._body_left
                return
            self._body = []
            self._complete()
        self._filled += count
        if self._filled == wire.HEADER:
            self._filled = 0
            self._begin()
        self.unfinished = self._body_left or (wire.HEADER - self._filled if self._filled else 0)

    # -- own -----------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        return self._sequence

    def _begin(self) -> None:
        """A header is there."""
        command, sequence, _, _, _, status, actual, _, packets, _ = wire.RETURN.unpack(self._head)
        if command == wire.RET_UNLINK:
            self.messages += 1
            self._unlink_over(sequence)
            return
        if command != wire.RET_SUBMIT:
            raise PeerError(f"a message of the kind {command}")
        request = self._open.get(sequence)
        if request is None:
            request = self.kept.find(sequence)
        wanted = request is not None
        if request is None:
            request = self._ghosts.pop(sequence, None)
        if request is None:
            raise PeerError(f"an answer to request {sequence}, which is not open")
        if not 0 <= actual <= request.length:
            raise PeerError(f"{actual} bytes of a transfer of {request.length}")
        whole = packets == len(request.packets)
        if not whole and not (packets in wire.NO_PACKETS and (status or not request.packets)):
            raise PeerError(f"{packets} packets of a transfer of {len(request.packets)}")
        self._answered = (request, wanted, status, actual)
        size = actual if request.is_in else 0
        if request.packets and packets > 0:
            # The data comes packed, and where it belongs is only said behind it.
            self._data = memoryview(bytearray(size))
            self._table = memoryview(bytearray(wire.PACKET.size * packets))
            self._body = [each for each in (self._data, self._table) if each]
            self._body_left = size + len(self._table)
        else:
            self._data = self._table = memoryview(b"")
            if size and request in self.kept:
                request.store = memoryview(bytearray(size))
                self._body = [request.store]
            elif size and wanted and not request.packets:
                self._body = part(request.windows, 0, size)
            else:
                self._body = self._into_scratch(size)
            self._body_left = size
        if not self._body_left:
            self._complete()

    def _complete(self) -> None:
        """An answer is there with all that belongs to it."""
        assert self._answered is not None
        request, wanted, status, actual = self._answered
        self._answered = None
        self.messages += 1
        if request.packets:
            self._take_packets(request, wanted, status, actual)
        if not wanted:
            return
        if request in self.kept:
            self.kept.answered(request, status, actual)
            return
        del self._open[request.sequence]
        self._release(request)
        request.unstore(actual)
        result = URB_STATUS.get(status, TransferStatus.ERROR)
        if result is CANCELLED and not request.unlinked:
            result = TransferStatus.ERROR
        request.back(result, actual)

    def _take_packets(self, request: Request, wanted: bool, status: int, actual: int) -> None:
        if not self._table:
            request.results = [(URB_STATUS.get(status, TransferStatus.ERROR), 0)] * len(request.packets)
            return
        data, moved = self._data, 0
        results = []
        for (offset, length), found in zip(request.packets, wire.PACKET.iter_unpack(self._table), strict=True):
            _, _, count, code = found
            if count > length:
                raise PeerError(f"{count} bytes of a packet of {length}")
            moved += count
            if request.is_in:
                if moved > actual:
                    raise PeerError(f"packets with more than the {actual} bytes of the transfer")
                if wanted and count:
                    scatter(data[moved - count : moved], part(request.windows, offset, count))
            results.append((PACKET_STATUS.get(code, TransferStatus.ERROR), count))
        if request.is_in and moved != actual:
            raise PeerError(f"packets with {moved} of the {actual} bytes of the transfer")
        request.results = results
        self._data = self._table = memoryview(b"")

    def _unlink_over(self, sequence: int) -> None:
        """RET_UNLINK. Of a request that has been answered it says nothing new, and may come at any time."""
        victim = self._unlinks.pop(sequence, None)
        if victim is None:
            if not 0 < sequence <= self._sequence:
                raise PeerError(f"an answer to unlinking {sequence}, which was not asked for")
            self._unwanted.count()  # it comes twice, or is no longer remembered
            return
        request = self._open.pop(victim, None)
        if request is not None:
            back = request.back
            self._release(request)
            self._forget(request)
            back(CANCELLED, 0)
        else:
            self._ghosts.pop(victim, None)  # no answer to it comes any more

    def _forget(self, request: Request) -> None:
        """An answer may still come, and nobody waits for it."""
        request.windows = []
        request.back = nobody
        self._ghosts[request.sequence] = request
        if len(self._ghosts) > _GHOSTS:
            del self._ghosts[next(iter(self._ghosts))]

    def _release(self, request: Request) -> None:
        """What of it has not been sent must not be read from its windows any more."""
        outgoing, request.outgoing = request.outgoing, None
        if outgoing is not None and outgoing.left and self.sender is not None:
            self.sender.withdraw(outgoing)

    def _into_scratch(self, size: int) -> list[memoryview]:
        """Room for what nobody wants: the same again and again."""
        whole, rest = divmod(size, len(_SCRATCH))
        return [_SCRATCH] * whole + ([_SCRATCH[:rest]] if rest else [])
