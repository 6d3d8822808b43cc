"""A live endpoint of a virtual device: its halt state and the transfers that wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..usb import descriptors
from ..usb.transfer import Transfer, TransferStatus


class VirtualEndpoint:
    """An endpoint of the current configuration and alternate setting, other than endpoint 0.

    `queue` holds the transfers that are not answered yet, oldest first: to the driver the endpoint answers NAK.
    Whoever completes one takes it out first, because completing may submit the next.

    `parked` is for a device that does not answer in this order, by bulk stream, say: it takes a transfer out of
    `queue` and puts it here, under whatever number it likes, until it is wanted.

    `settle` is for what completes transfers later than they are over: it is called before one is taken back, and
    completes those that are over.
    """

    __slots__ = ("address", "descriptor", "halted", "parked", "queue", "settle")

    def __init__(self, descriptor: descriptors.Endpoint) -> None:
        self.address = descriptor.address
        self.descriptor = descriptor
        self.halted = False
        self.queue: deque[Transfer] = deque()
        self.parked: dict[int, deque[Transfer]] = {}
        self.settle: Callable[[VirtualEndpoint], object] | None = None

    def park(self, number: int, transfer: Transfer) -> None:
        """Put a transfer behind those that wait under this number."""
        waiting = self.parked.get(number)
        if waiting is None:
            waiting = self.parked[number] = deque()
        waiting.append(transfer)

    def remove(self, transfer: Transfer) -> bool:
        """Take a transfer out; False if it does not wait here, or no longer."""
        if self.settle is not None:
            self.settle(self)
        for waiting in (self.queue, *self.parked.values()):
            if transfer in waiting:
                waiting.remove(transfer)
                return True
        return False

    def halt(self) -> None:
        """Answer STALL to what waits and to all that comes, until the halt is cleared (USB 2.0 5.5.5, 8.4.5)."""
        self.halted = True
        self.flush(TransferStatus.STALL)

    def flush(self, status: TransferStatus) -> None:
        """Complete all that waits with `status` and what it has moved; what is submitted meanwhile is left alone."""
        for waiting in (*self.parked.values(), self.queue):
            for _ in range(len(waiting)):
                if waiting:
                    waiting.popleft().complete(status)
