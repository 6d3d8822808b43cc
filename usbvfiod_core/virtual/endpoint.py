"""A live endpoint of a virtual device: its halt state and the transfers that wait for it."""

from __future__ import annotations

from collections import deque

from ..usb import descriptors
from ..usb.transfer import Transfer, TransferStatus


class VirtualEndpoint:
    """An endpoint of the current configuration and alternate setting, other than endpoint 0.

    `queue` holds the transfers that are not answered yet, oldest first: to the driver the endpoint answers NAK.
    Whoever completes one takes it out first, because completing may submit the next.
    """

    __slots__ = ("address", "descriptor", "halted", "queue")

    def __init__(self, descriptor: descriptors.Endpoint) -> None:
        self.address = descriptor.address
        self.descriptor = descriptor
        self.halted = False
        self.queue: deque[Transfer] = deque()

    def halt(self) -> None:
        """Answer STALL to what waits and to all that comes, until the halt is cleared (USB 2.0 5.5.5, 8.4.5)."""
        self.halted = True
        self.flush(TransferStatus.STALL)

    def flush(self, status: TransferStatus) -> None:
        """Complete all that waits with `status`, nothing moved; what is submitted meanwhile is left alone."""
        for _ in range(len(self.queue)):
            if self.queue:
                self.queue.popleft().complete(status)
