"""What another process has to know to go on with a device behind libusb."""

from __future__ import annotations

from dataclasses import dataclass, field

from usbvfiod_core.host.state import EnumeratedState, TakenState
from usbvfiod_core.state import U8


@dataclass
class LibusbState:
    """What a device hands over, beside its open node; `set` is the present configuration, `held` is claimed of it."""

    device: EnumeratedState
    taken: TakenState
    set: U8 | None
    held: list[U8]
    left_out: dict[U8, str]
    """By interface, why it cannot be claimed."""
    alternates: dict[U8, U8] = field(default_factory=dict)
    """Alternate settings other than 0, by interface."""
