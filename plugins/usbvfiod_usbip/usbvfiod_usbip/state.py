"""What another process has to know to go on with an imported device."""

from __future__ import annotations

from dataclasses import dataclass

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
    packets: list[list[U32]]


@dataclass
class UnlinkState:
    """A CMD_UNLINK that has not been answered, and what it is for."""

    sequence: U32
    victim: U32


@dataclass
class SessionState:
    """See `Session`, between two messages, while nothing is open."""

    number: U32
    sequence: U32
    ghosts: list[GhostState]
    unlinks: list[UnlinkState]


@dataclass
class UsbipState:
    """See `UsbipDevice`. Alternate settings other than 0 are by interface."""

    device: EnumeratedState
    session: SessionState
    where: str
    name: str
    speed: Speed
    descriptors: bytes
    alternates: dict[str, U8]
