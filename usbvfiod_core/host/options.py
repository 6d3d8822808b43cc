"""The options that every real device takes in its specification: `/dev/bus/usb/002/003?reset=never&reattach=no`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..options import option


class ResetPolicy(Enum):
    """What a reset of the guest's port does to the device."""

    AUTO = "auto"
    """Reset it, unless it is as it was after the last reset; a device that the host knows not to survive one is only
    configured anew."""
    ALWAYS = "always"
    """Reset it each time."""
    NEVER = "never"
    """Configure it anew instead."""


class InUse(Enum):
    """What is done about a device that the host itself uses, see `usage`."""

    REFUSE = "refuse"
    """Wait until it does not any more."""
    TAKE = "take"
    """Take it away from whoever uses it."""


@dataclass(frozen=True, slots=True)
class EnumeratedOptions:
    """What any device has that another kernel has enumerated, this host's or one at the other end of a connection."""

    reset: ResetPolicy = option(
        ResetPolicy.AUTO,
        "What a reset of the guest's port does. auto: resets the device, unless it is as it was after the last reset "
        "or is known not to survive one; never: only sets its configuration again.",
    )
    remote_wakeup: bool = option(
        False, "Whether the guest sees that the device can wake it. Guests suspend devices that can."
    )
    """A device of a suspended port is not asked for data, so it would sleep for ever; without this, guests do not
    suspend what must wake them."""


@dataclass(frozen=True, slots=True)
class HostOptions(EnumeratedOptions):
    """What a backend of the host's devices names as its `options`."""

    reattach: bool = option(
        True, "Whether the device is given back as it was found: its configuration, and to the host's drivers."
    )
    in_use: InUse = option(
        InUse.REFUSE, "For a device that the host itself uses, as a mounted drive: wait until it does not, or take it."
    )
