"""What a guest driver raises."""

from __future__ import annotations

from typing import Any

from ...errors import UsbvfiodError
from ...xhci import spec


class DriverError(UsbvfiodError):
    """The controller or the device did not do what the driver asked for, or broke a rule of the specification.

    `completion_code` is that of the event that says so (0: there was none), `trb` the TRB or event concerned.
    """

    def __init__(self, message: str, completion_code: int = 0, trb: Any = None) -> None:
        if completion_code:
            name = spec.COMPLETION_CODES.get(completion_code, "unknown")
            message = f"{message}: completion code {completion_code} ({name})"
        if trb is not None:
            message = f"{message} [{trb}]"
        super().__init__(message)
        self.completion_code = completion_code
        self.trb = trb


class ProtocolError(DriverError):
    """The controller broke a rule of the specification: an event for no TD, a residue that cannot be, and the like."""


class DriverTimeoutError(DriverError):
    """Something that had to happen did not happen in time."""
