"""What endpoints and slots need of the controller that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import GuestMemoryError
from ..memory import GuestMemory
from ..usb.device import Loop
from ..usb.transfer import Transfer, TransferType
from .complaints import Complaints
from .interrupters import Interrupters
from .journal import Journal
from .turns import Runnable

Route = Callable[[Transfer], None]
"""What takes the transfers of an endpoint; see `Device.route`."""
Tap = Callable[[int, TransferType, Route], Route]
"""Somebody who looks on: given an endpoint's address, its type and the route of its transfers, the route that they take
instead. It is the same for what he does not want to see, and ends at the given one for all else."""


class Xhc(Protocol):
    """What an endpoint needs of the controller."""

    memory: GuestMemory
    loop: Loop
    interrupters: Interrupters
    """Where events are published, and whether there is room for more."""

    def ready(self, endpoint: Runnable) -> None:
        """Call `endpoint.run` soon."""
        ...

    def memory_away(self) -> bool:
        """Whether guest memory has just been unmapped and is expected back: nothing that needs it is done."""
        ...

    def revoke(self, windows: Sequence[memoryview], done: Callable[[], object]) -> None:
        """Take guest memory away from a device that does not give it back; `done` when it has none of it any more."""
        ...

    def host_system_error(self, error: GuestMemoryError) -> None:
        """Guest memory that the controller itself needs is not there (4.24.1)."""
        ...

    complaints: Complaints
    """Where it is said what is wrong with the guest."""

    journal: Journal
    """Where it is said what becomes of devices."""

    def frame_number(self) -> int:
        """The number of the frame now, 11 bits of MFINDEX (5.5.1)."""
        ...
