"""The status pipe of USB Attached SCSI: information units for the driver, and the transfers that fetch them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ..usb.transfer import Transfer, TransferStatus
from .endpoint import VirtualEndpoint
from .tasks import Task

_COMPLETED: Final = TransferStatus.COMPLETED


class StatusPipe:
    """Brings both together, in the order of their stream; without streams all are stream 0.

    `owing` counts the units that no transfer has fetched. `delivered` is called with a task whose status has been.
    """

    def __init__(self, delivered: Callable[[Task], None]) -> None:
        self.owing = 0
        self._delivered = delivered
        self._endpoint: VirtualEndpoint | None = None
        self._streams = False
        self._owed: dict[int, deque[tuple[bytes, Task | None]]] = {}

    def start(self, endpoint: VirtualEndpoint | None, *, streams: bool) -> None:
        """Forget everything; from now on `endpoint` is the pipe, or there is none."""
        self._endpoint = endpoint
        self._streams = streams
        self._owed.clear()
        self.owing = 0

    def fetch(self, transfer: Transfer, endpoint: VirtualEndpoint) -> None:
        """The driver fetches a unit, or waits for one."""
        owed = self._owed.get(transfer.stream_id)
        if owed:
            self.owing -= 1
            self._deliver(transfer, *owed.popleft())
        else:
            endpoint.park(transfer.stream_id, transfer)

    def answer(self, tag: int, unit: bytes, task: Task | None = None) -> None:
        """Send a unit, now or when the driver fetches it; `task` is the command that it is about."""
        endpoint = self._endpoint
        if endpoint is None:
            return
        number = tag if self._streams else 0
        parked = endpoint.parked.get(number)
        if parked:
            self._deliver(parked.popleft(), unit, task)
            return
        owed = self._owed.get(number)
        if owed is None:
            owed = self._owed[number] = deque()
        owed.append((unit, task))
        self.owing += 1

    def owed(self) -> list[tuple[int, bytes, Task | None]]:
        """The units that no transfer has fetched, each with its stream and the command that it is about."""
        return [(number, *entry) for number, waiting in self._owed.items() for entry in waiting]

    def owe(self, number: int, unit: bytes, task: Task | None) -> None:
        """A unit waits on a stream, behind those that do already."""
        self._owed.setdefault(number, deque()).append((unit, task))
        self.owing += 1

    def forget(self, task: Task) -> None:
        """Do not send what has not been fetched of a command."""
        owed = self._owed.get(task.tag if self._streams else 0, ())
        stale = [entry for entry in owed if entry[1] is task]
        for entry in stale:
            self._owed[task.tag if self._streams else 0].remove(entry)
        self.owing -= len(stale)

    def _deliver(self, transfer: Transfer, unit: bytes, task: Task | None) -> None:
        if task is not None and task.ended:
            self._delivered(task)
        size = len(unit)
        window = transfer.windows[0] if transfer.windows else memoryview(b"")
        if len(window) >= size:
            window[:size] = unit
            transfer.complete(_COMPLETED, size)
        else:
            count = transfer.write(unit)
            transfer.complete(_COMPLETED if count == size else TransferStatus.BABBLE, count)
