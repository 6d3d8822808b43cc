"""What most devices do with bulk and interrupt endpoints: messages are sent in order, what comes is handed on."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint


class Pipes(VirtualDevice):
    """A subclass calls `send` and writes `received`; isochronous endpoints it takes out of `process` itself."""

    def __init__(self, speed: Speed) -> None:
        super().__init__(speed)
        self._outgoing: dict[int, deque[bytes]] = defaultdict(deque)

    def send(self, address: int, message: bytes) -> None:
        """Send a message at an IN endpoint, after those before it: a transfer takes one, or as much of it as fits."""
        self._outgoing[address].append(message)
        endpoint = self.endpoints.get(address)
        if endpoint is not None:
            self.serve(endpoint)

    def received(self, address: int, data: bytes) -> None:
        """What one transfer has brought to an OUT endpoint."""

    def process(self, endpoint: VirtualEndpoint) -> None:
        queue = endpoint.queue
        if not endpoint.address & 0x80:
            while queue:
                transfer = queue.popleft()
                data = transfer.read()
                transfer.complete(TransferStatus.COMPLETED, len(data))
                self.received(endpoint.address, data)
            return
        messages = self._outgoing[endpoint.address]
        while queue and messages:
            transfer, message = queue.popleft(), messages.popleft()
            count = transfer.write(message)
            if count < len(message):
                messages.appendleft(message[count:])
            transfer.complete(TransferStatus.COMPLETED, count)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        """Nothing is left to be sent at endpoints that are new."""
        for endpoint in endpoints:
            self._outgoing.pop(endpoint.address, None)
