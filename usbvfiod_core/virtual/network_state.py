"""What another process has to know to go on with a network adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..state import U64, unpack
from ..usb.handover import CannotHandOver, Handover
from .connection import Taken
from .frames import EndKind, EndState
from .inbound import InboundState


@dataclass
class NetworkState:
    """What an adapter hands over; `outbound` has begun to come from the guest, None while a block is left out."""

    is_plugged: bool
    sent: U64
    malformed: U64
    is_speed_told: bool
    told: bool | None
    inbound: InboundState
    outbound: bytes | None
    end: EndState


def taken_end(handover: Handover, kind: EndKind) -> tuple[EndState, Taken]:
    """The end of a cable that was handed over. Raises CannotHandOver if it is not of this kind."""
    end = unpack(NetworkState, handover.state.get("own")).end
    if end.kind is not kind:
        raise CannotHandOver(f"virtual:network has another cable here ({kind.value}, not {end.kind.value})")
    return end, Taken(handover.descriptors.get(kind.value))
