"""What another process has to know to go on with a device of another machine, and with its connection."""

from __future__ import annotations

from dataclasses import dataclass

from usbvfiod_core import Speed
from usbvfiod_core.host.state import EnumeratedState
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

    version: str
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
    settings: dict[str, U8]
    streams: list[U8]
    running: list[RunningState]
