"""What another process has to know to go on with an imported device."""

from __future__ import annotations

from dataclasses import dataclass, field

from usbvfiod_core import Speed
from usbvfiod_core.host.state import EnumeratedState
from usbvfiod_core.state import U8, U32


@dataclass
class GhostState:
    """A request that has ended here, and whose answer may still come. `packets` are (offset, length) of each."""

    sequence: U32
    endpoint: U8
    is_in: bool
    length: U32
    packets: list[tuple[U32, U32]]


@dataclass
class UnlinkState:
    """A CMD_UNLINK that has not been answered, and what it is for."""

    sequence: U32
    victim: U32


@dataclass
class KeptState:
    """A request that was left under way: see `Kept`. `digest` is that of what it writes; `status` is Linux's if it was
    answered, for so many bytes, and `data` what came with that."""

    sequence: U32
    endpoint: U8
    length: U32
    digest: bytes
    status: int | None
    moved: U32
    data: bytes


@dataclass
class SessionState:
    """See `Session`, between two messages, while nothing is open. `kept` requests are in the order in which they were
    made."""

    number: U32
    sequence: U32
    ghosts: list[GhostState]
    unlinks: list[UnlinkState]
    kept: list[KeptState] = field(default_factory=list)


@dataclass
class UsbipState:
    """See `UsbipDevice`. Alternate settings other than 0 are by interface."""

    device: EnumeratedState
    session: SessionState
    where: str
    name: str
    speed: Speed
    descriptors: bytes
    alternates: dict[U8, U8]
