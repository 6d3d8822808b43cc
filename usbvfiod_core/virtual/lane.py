"""The way of a transfer to an endpoint of a virtual device: what happens to each of them, whatever the device is."""

from __future__ import annotations

from collections import deque
from typing import Any

from ..usb.transfer import Transfer, TransferStatus
from .endpoint import VirtualEndpoint


class Lane:
    """Queues transfers at `endpoints`, by address, and has `device.process` called, never nested.

    After `closed` was set nobody answers any more.
    """

    __slots__ = ("_device", "_late", "_serving", "closed", "endpoints")

    def __init__(self, device: Any, endpoints: dict[int, VirtualEndpoint]) -> None:
        self._device = device  # not its method: a device may be given another one
        self.endpoints = endpoints
        self._late: deque[VirtualEndpoint] = deque()
        self._serving = False
        self.closed = False

    def submit(self, transfer: Transfer) -> None:
        """As `Device.submit`, for all endpoints but 0."""
        endpoint = self.endpoints.get(transfer.endpoint)
        if endpoint is None:
            # Nobody answers at an endpoint that is not there.
            transfer.complete(TransferStatus.DISCONNECTED if self.closed else TransferStatus.ERROR)
        elif endpoint.halted:
            transfer.complete(TransferStatus.STALL)
        else:
            endpoint.queue.append(transfer)
            self.serve(endpoint)

    def serve(self, endpoint: VirtualEndpoint) -> None:
        """As `VirtualDevice.serve`."""
        if self._serving:
            self._late.append(endpoint)
            return
        self._serving = True
        try:
            self._device.process(endpoint)
            while self._late:
                self._device.process(self._late.popleft())
        finally:
            self._serving = False
