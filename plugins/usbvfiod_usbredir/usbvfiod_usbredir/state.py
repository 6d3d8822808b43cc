"""What another process has to know to go on with a device of another machine, and with its connection."""

from __future__ import annotations

from dataclasses import dataclass

from usbvfiod_core import Speed
from usbvfiod_core.host.state import EnumeratedState
from usbvfiod_core.remote import ListenerState
from usbvfiod_core.state import U8, U32, U64

from .spec import Type


@dataclass
class GivenUpState:
    """A request whose answer is still to come, and that nobody waits for; `size` bytes of data at most are with it."""

    id: U64
    type: Type
    size: U32


@dataclass
class ParserState:
    """See `Parser`: the other end's hello, and what has come of a packet that is not whole."""

    version: str | None
    """None: it has not said it."""
    capabilities: U32
    begun: bytes
    """Its header and fields, as far as they have come."""
    moved: U32
    """Bytes of its data that have come."""
    kept: bytes
    """Those, if anybody wants them."""


@dataclass
class PeerState:
    """See `Peer`. `id` is the last one that was used."""

    name: str
    id: U64
    parser: ParserState


@dataclass
class WaitingState:
    """Another end whose device nobody uses. `unread` are packets that it has sent, with those before that say what its
    device is. `patience`: seconds until one that has nothing to say is sent away, None where that is not limited."""

    peer: PeerState
    ready: bool
    greeted: bool
    filter: str | None
    unread: bytes
    patience: float | None


@dataclass
class PoolState:
    """See `Pool`."""

    timeout: U32
    filter: str | None
    listener: ListenerState | None
    waiting: list[WaitingState]


@dataclass
class SharedState:
    """The pools, by their addresses. The descriptor of the first one's socket is `0/listener`, that of the first end
    that waits there `0/0`, and so on."""

    pools: dict[str, PoolState]


@dataclass
class PacketState:
    """A packet of the device that the guest has not asked for yet."""

    status: U8
    data: bytes


@dataclass
class RunningState:
    """An endpoint that the other end reads ahead, or plays; `paused`: it was told to stop as there is enough."""

    endpoint: U8
    paused: bool
    packets: list[PacketState]


@dataclass
class UsbredirState:
    """See `UsbredirDevice`. Alternate settings other than 0 are by interface; `streams` are endpoints that have some
    allocated."""

    device: EnumeratedState
    name: str
    speed: Speed
    descriptors: bytes
    max_streams: U32
    peer: PeerState
    given_up: list[GivenUpState]
    settings: dict[U8, U8]
    streams: list[U8]
    running: list[RunningState]
