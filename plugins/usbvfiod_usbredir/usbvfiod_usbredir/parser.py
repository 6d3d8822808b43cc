"""Bytes in, packets out: what one side reads of a connection. No socket, and no clock.

The parser says where the next bytes belong (`buffers`) and is told how many have come (`received`). Headers and small
packets go through a buffer of its own. The data of a large packet belongs where the caller wants it, which may be
guest memory: then it is received there and nowhere else.

The other end may be broken or hostile. Whatever it sends, a packet's length is compared with what its type may have
before anything is kept for it; what does not fit raises PeerError, and the connection is to be closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from usbvfiod_core.remote import PeerError
from usbvfiod_core.state import StateError, require
from usbvfiod_core.usb.transfer import behind, part, scatter

from .messages import Hello, Sender, forms, header_of, pack, unpack_hello
from .spec import HEADER, Capability, Type
from .state import ParserState

BUFFER: Final = 8 << 10
"""More than any packet is without its data."""


_HELLO: Final = int(Type.HELLO)


class Packet(NamedTuple):
    """A packet that has come whole. `data` is what was with it, unless it was put elsewhere; `length` its bytes."""

    type: int
    id: int
    message: Any
    length: int
    data: bytes | bytearray


Place = Callable[[Any, int, int], "Sequence[memoryview] | None"]
"""Called with a message, its id and the bytes of data with it, more than none: where they belong, in order, with room
for them all; None for in the packet. May raise PeerError."""


def _nowhere(message: Any, id: int, length: int) -> None:
    return None


class Parser:
    """Reads what `sender` sends to a side with the capabilities `own`. `common` are those of both, once it has said
    hello; `peer` is its hello."""

    def __init__(self, own: int, sender: Sender = Sender.HOST, place: Place = _nowhere) -> None:
        self.own = own
        self.common = 0
        self.peer: Any = None
        self._sender = sender
        self._place = place
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = self._end = 0
        self._header = HEADER
        self._forms = forms(0, sender)
        self._partial: tuple[int, int, Any, int, bytearray | None] | None = None
        """A packet whose data is still coming: type, id, message, length, where it is kept if it is kept here."""
        self._room: list[memoryview] = []
        """Where the data belongs that has not come yet."""
        self._left = 0
        """How many bytes of it."""

    def buffers(self) -> list[memoryview]:
        """Where the next bytes belong, for `recvmsg_into`; never empty."""
        self._tidy()
        return [*self._room, self._buffer[self._end :]]

    def received(self, count: int) -> Iterator[Packet]:
        """So many bytes have come: the packets that are whole with them, and those before them that were not taken.
        Whoever has taken some may leave the others for the next call. Raises PeerError, after which nothing more can be
        read."""
        in_place = min(count, self._left)
        self._end += count - in_place
        if self._partial is not None:
            self._room = behind(self._room, in_place)
            self._left -= in_place
            if self._left:
                return
            yield self._whole()
        while (packet := self._next()) is not None:
            yield packet

    def heard(self, data: bytes) -> Iterator[Packet]:
        """As `received`, of data that has come another way."""
        rest = memoryview(data)
        while rest:
            window = self.buffers()[0]
            count = min(len(window), len(rest))
            window[:count] = rest[:count]
            rest = rest[count:]
            yield from self.received(count)

    def divert(self, room: Sequence[memoryview]) -> bool:
        """What is still to come of the data of a packet belongs into `room` from now on, if it now belongs there or if
        nobody wants it: the memory where it was to go is not ours any more. Whether any is still to come."""
        if self._partial is None or self._partial[4] is not None:
            return False
        self._room = list(room)
        return True

    @property
    def receiving(self) -> int | None:
        """The id of a packet whose data is being received where `place` said; None if there is none."""
        return None if self._partial is None or self._partial[4] is not None else self._partial[1]

    @property
    def unfinished(self) -> int:
        """Bytes that are missing of a packet that has begun, as far as it can be told; 0 between packets."""
        return self._left or int(self._end > self._start)

    # -- going on in another process -----------------------------------------------------------------------------------

    def saved_state(self) -> ParserState:
        """What another process has to know, between two calls of `received`."""
        begun, moved, kept = bytes(self._buffer[self._start : self._end]), 0, b""
        if self._partial is not None:
            _, id, message, length, data = self._partial
            begun, moved = pack(message, id=id, common=self.common, data=length), length - self._left
            kept = b"" if data is None else bytes(data[:moved])
        version, capabilities = (None, 0) if self.peer is None else (self.peer.version, self.peer.capabilities)
        return ParserState(version, capabilities, begun, moved, kept)

    def take_over(self, state: ParserState) -> None:
        """Go on, as a new parser, where that of another process was. Raises StateError."""
        require(len(state.begun) < BUFFER, "peer.parser.begun", f"{len(state.begun)} bytes")
        try:
            if state.version is not None:
                self._hello(Hello(state.version, state.capabilities), 0)
            self._buffer[: len(state.begun)] = state.begun
            whole = [*self.received(len(state.begun))]
        except PeerError as error:
            raise StateError(f"peer.parser: {error}") from None
        require(not whole, "peer.parser.begun", "it is a packet that has come whole")
        require(not state.moved or state.moved < self._left, "peer.parser.moved", f"{state.moved} of {self._left}")
        data = None if self._partial is None else self._partial[4]
        require(len(state.kept) == (0 if data is None else state.moved), "peer.parser.kept", "it is of another length")
        if data is not None:
            data[: state.moved] = state.kept
        self._room = behind(self._room, state.moved)
        self._left -= state.moved

    # -- own ---------------------------------------------------------------------------------------------------------

    def _next(self) -> Packet | None:
        """The next packet in the buffer; None if it is not whole, of which what may be said of it is kept."""
        if self._end - self._start < self._header.size:
            return None
        type, length, id = self._header.unpack_from(self._buffer, self._start)
        form = self._forms.get(type)
        if form is None:
            raise PeerError(f"it sent a packet of type {type}, which is not for it to send")
        if (type == _HELLO) != (self.peer is None):
            said = "hello twice" if self.peer is not None else f"a packet of type {type} before hello"
            raise PeerError(f"it sent {said}")
        shape, fields = form.shape, form.fields
        fixed = fields.size
        if not fixed <= length <= fixed + shape.most:
            raise PeerError(f"it sent a packet of type {type} with {length} bytes")
        if type == _HELLO:
            fixed = length
        start = self._start + self._header.size
        end = start + fixed
        if self._end < end:
            return None
        self._start = end
        if type == _HELLO:
            message: Any = unpack_hello(self._buffer[start:end])
            self._hello(message, length)
            return Packet(type, id, message, 0, b"")
        message = shape.message(*fields.unpack_from(self._buffer, start))
        data = length - fixed
        if shape.data is not None and (said_data := shape.data(message, self._sender)) != data:
            raise PeerError(f"it sent a packet of type {type} with {data} bytes that says {said_data}")
        if data:
            return self._with_data(type, id, message, data)
        return Packet(type, id, message, 0, b"")

    def _hello(self, message: Any, length: int) -> None:
        if length % 4:
            raise PeerError(f"it sent a hello of {length} bytes")
        streams, sizes = Capability.BULK_STREAMS.mask, Capability.EP_INFO_MAX_PACKET_SIZE.mask
        if message.capabilities & streams and not message.capabilities & sizes:
            raise PeerError("it has bulk streams without sizes of packets, which the protocol excludes")
        self.peer = message
        self.common = self.own & message.capabilities
        self._header = header_of(self.common)
        self._forms = forms(self.common, self._sender)

    def _with_data(self, type: int, id: int, message: Any, length: int) -> Packet | None:
        room = self._place(message, id, length)
        kept = None
        if room is None:
            if self._end - self._start >= length:
                data = bytes(self._buffer[self._start : self._start + length])
                self._start += length
                return Packet(type, id, message, length, data)
            kept = bytearray(length)
            room = [memoryview(kept)]
        room = part(room, 0, length)
        if (missing := length - sum(map(len, room))) > 0:
            raise PeerError(f"it sent {missing} bytes more than were asked for")
        here = min(length, self._end - self._start)
        scatter(self._buffer[self._start : self._start + here], room)
        self._partial = type, id, message, length, kept
        self._left = length - here
        self._room = behind(room, here)
        self._start += here
        return None if self._left else self._whole()

    def _whole(self) -> Packet:
        assert self._partial is not None
        type, id, message, length, kept = self._partial
        self._partial, self._room = None, []
        return Packet(type, id, message, length, b"" if kept is None else kept)

    def _tidy(self) -> None:
        """Make room behind what is in the buffer."""
        if self._start == self._end:
            self._start = self._end = 0
        if not self._start:
            return
        rest = bytes(self._buffer[self._start : self._end])
        self._start, self._end = 0, len(rest)
        self._buffer[: len(rest)] = rest
