"""Requests and their answers, on the loop.

A request has an id, and the answer the same. Data of an answer goes where the request has room for it, in the guest's
memory as a rule. A request that is given up, or withdrawn before it was sent, touches nothing of its caller's any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from usbvfiod_core import Loop
from usbvfiod_core.remote import MESSAGES, Channel, Outgoing, PeerError, Unwanted
from usbvfiod_core.state import require

from .messages import BufferedBulkPacket, CancelDataPacket, InterruptPacket, IsoPacket
from .parser import Packet
from .peer import Peer
from .spec import Type
from .state import GivenUpState

_ANSWERS: Final = {
    Type.CONFIGURATION_STATUS,
    Type.ALT_SETTING_STATUS,
    Type.BULK_STREAMS_STATUS,
    Type.CONTROL_PACKET,
    Type.BULK_PACKET,
}
_PUSHED: Final = (InterruptPacket, IsoPacket, BufferedBulkPacket)
"""What the other end sends as it comes."""
MOST_GIVEN_UP: Final = 4096
"""Requests whose answer nobody waits for any more, and which has not come."""
_NOWHERE: Final = memoryview(bytearray(1 << 16))
_UNSOLICITED: Final = 1 << 16
"""Bytes of data that may come unasked with one packet."""


class Request:
    """One that was sent, or is about to be. `room` takes the data of its answer, `done` the answer."""

    __slots__ = ("done", "given_up", "id", "outgoing", "room", "size", "type")

    def __init__(self, id: int, type: Type, done: Callable[[Packet], None], room: Sequence[memoryview]) -> None:
        self.id = id
        self.type = type
        self.done = done
        self.room = room
        self.size = sum(map(len, room))
        self.outgoing: Outgoing
        self.given_up = False


class Exchange:
    """`told` gets each packet that is no answer; `lost` a reason for people when the link is. On the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        peer: Peer,
        told: Callable[[Packet], None],
        lost: Callable[[str], object],
        *,
        timeout: float,
    ) -> None:
        self._peer = peer
        self._told = told
        self._requests: dict[int, Request] = {}
        self._given_up = 0
        self.unwanted = Unwanted(loop.time)
        self._detached = False
        self.messages = 0
        """Packets that have been taken."""
        self.backlog = False
        """Whether there may be more that have come."""
        self._early: deque[Packet] = deque()
        """Those that came before `start`, and are not taken yet."""
        peer.place = self._place
        self._channel = Channel(loop, peer.link, self, lost, timeout=timeout)

    def start(self) -> None:
        """Receive from now on, and begin, when this turn of the loop is over, with what has come before: whoever
        plugs the device in hears only then that it has gone."""
        self._early.extend(self._peer.take_unread())
        self.backlog = bool(self._early)
        self._channel.start()

    def tell(self, message: Any, *data: memoryview) -> None:
        """Send what needs no answer; `data` must not change until it is sent."""
        self._send(message, 0, data)

    def ask(
        self,
        message: Any,
        type: Type,
        done: Callable[[Packet], None],
        *,
        room: Sequence[memoryview] = (),
        data: Sequence[memoryview] = (),
    ) -> Request:
        """Send a request with `data`; `done` gets the answer, a packet of `type`, whose data is put in `room`."""
        request = Request(self._peer.next_id(), type, done, room)
        soon = bool(self._requests)
        self._requests[request.id] = request
        request.outgoing = self._send(message, request.id, data, soon=soon)
        return request

    def cancel(self, request: Request) -> bool:
        """Ask the other end to end a request, whose answer comes soon then. False: it had not even been sent, nothing
        comes, and its memory is free. The memory of data on its way to the other end is free in both cases."""
        if self._channel.withdraw(request.outgoing):
            self._requests.pop(request.id, None)
            return False
        self._send(CancelDataPacket(), request.id, ())
        return True

    def give_up(self, request: Request) -> None:
        """Nobody waits for an answer any more, and its memory is free. Raises nothing."""
        if request.id not in self._requests or request.given_up:
            return
        if self._channel.withdraw(request.outgoing):
            del self._requests[request.id]
            return
        request.given_up = True
        request.room = ()
        self._given_up += 1
        parser = self._peer.parser
        if parser.receiving == request.id:
            parser.divert(_nowhere(parser.unfinished))

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._channel.closed

    @property
    def unsent(self) -> int:
        """Packets that wait for the network."""
        return self._channel.unsent

    def close(self) -> None:
        """End it, and the link."""
        self._channel.close()
        self._requests.clear()

    def detach(self) -> bool:
        """End it, and leave the link to the peer; not where something is half sent. Whether that was done."""
        while self.backlog and not self._channel.closed:
            try:
                self.received(0)
            except PeerError:
                return False
        self._detached = self._channel.detach()
        if self._detached:
            self._requests.clear()
            self._peer.place = lambda message, id, length: None
        return self._detached

    # -- going on in another process -----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether everything is sent, and nobody waits for an answer."""
        return not self._channel.unsent and all(request.given_up for request in self._requests.values())

    @property
    def paused(self) -> bool:
        """Whether nothing may be sent, as another process may be about to go on."""
        return self._channel.paused

    def pause(self, done: Callable[[], object]) -> None:
        """As `Channel.pause`."""
        self._channel.pause(done, split=True)

    def go_on(self) -> None:
        """As `Channel.go_on`."""
        self._channel.go_on()

    def forget(self) -> None:
        """As `Channel.forget`."""
        self._channel.forget()

    def saved_state(self) -> list[GivenUpState]:
        """What another process has to know, while it is `idle`."""
        return [GivenUpState(each.id, each.type, each.size) for each in self._requests.values()]

    def take_over(self, state: list[GivenUpState]) -> None:
        """Go on, as a new exchange, where that of another process was. Raises StateError."""
        require(len(state) <= MOST_GIVEN_UP, "given_up", f"there are {len(state)}")
        for index, each in enumerate(state):
            require(each.type in _ANSWERS | {Type.INTERRUPT_PACKET}, f"given_up[{index}].type", "it has no answer")
            request = Request(each.id, each.type, _nobody, ())
            request.size, request.given_up = each.size, True
            self._requests[each.id] = request
        self._given_up = len(self._requests)

    # -- Reader, of the channel ------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """As `Parser.unfinished`."""
        return self._peer.parser.unfinished

    def windows(self) -> list[memoryview]:
        """As `Parser.buffers`."""
        return self._peer.parser.buffers()

    def received(self, count: int) -> None:
        """Take so many bytes, and no more than `MESSAGES` packets. Raises PeerError."""
        most = self.messages + MESSAGES
        self.backlog = False
        for packet in self._packets(count):
            self._packet(packet)
            if self._detached:
                continue
            if self._channel.closed:
                return
            if self.messages >= most:
                self.backlog = True
                return

    # -- own ---------------------------------------------------------------------------------------------------------

    def _packets(self, count: int) -> Iterator[Packet]:
        while self._early:
            yield self._early.popleft()
        yield from self._peer.parser.received(count)

    def _send(self, message: Any, id: int, data: Sequence[memoryview], *, soon: bool = False) -> Outgoing:
        length = sum(map(len, data))
        return self._channel.send(self._peer.packed(message, id=id, data=length), *data, soon=soon)

    def _place(self, message: Any, id: int, length: int) -> Sequence[memoryview] | None:
        if isinstance(message, _PUSHED):
            if length > _UNSOLICITED:
                raise PeerError(f"it sent {length} bytes unasked")
            return None
        request = self._requests.get(id)
        if request is None:
            return None if length <= _UNSOLICITED else _nowhere(length)  # what it is, `_packet` says
        if length > request.size:
            raise PeerError(f"it sent {length} bytes where {request.size} were asked for")
        return _nowhere(length) if request.given_up else request.room

    def _packet(self, packet: Packet) -> None:
        self.messages += 1
        message = packet.message
        is_answer = packet.type in _ANSWERS or (packet.type == Type.INTERRUPT_PACKET and message.endpoint < 0x80)
        if not is_answer:
            self._told(packet)
            return
        request = self._requests.pop(packet.id, None)
        if self._detached:
            return
        if request is None or request.type != packet.type:
            raise PeerError(f"it answers {Type(packet.type).name} {packet.id}, which nobody has asked")
        if request.given_up:
            self._given_up -= 1
        else:
            request.done(packet)
        if self._given_up > MOST_GIVEN_UP:
            raise PeerError("it answers too little of what it is asked")


def _nobody(packet: Packet) -> None:
    """Nobody waits for it."""


def _nowhere(length: int) -> list[memoryview]:
    """Room for data that nobody wants."""
    return [_NOWHERE] * -(-length // len(_NOWHERE))
