"""Transfers for which the host's kernel has no memory now: they wait, in order, and there is an end to that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from usbvfiod_core import Loop, Transfer, TransferStatus

MEMORY_PATIENCE = 1.0
"""Seconds that a transfer waits for the kernel to have memory for it, since that has last had some."""
_MEMORY_PAUSE = 0.01


class Waiting:
    """Sends transfers one after the other. `send` returns False if the kernel has no memory for one now; `gave_up` is
    told of each that has waited too long. While it is `paused` nothing that waits is sent."""

    def __init__(self, loop: Loop, send: Callable[[Transfer], bool], gave_up: Callable[[], object]) -> None:
        self._loop = loop
        self._send = send
        self._gave_up = gave_up
        self._queue: deque[tuple[Transfer, float]] = deque()
        """Each with the time since when it has waited."""
        self._last_sent = 0.0
        """When the last of those that waited was sent."""
        self.paused = False

    def __bool__(self) -> bool:
        return bool(self._queue)

    def start(self, transfer: Transfer) -> None:
        """Send it behind those that wait."""
        if self._queue:
            self._queue.append((transfer, self._loop.time()))
        elif not self._send(transfer):
            self._queue.append((transfer, self._loop.time()))
            self._loop.call_later(_MEMORY_PAUSE, self._retry)

    def stop(self, transfer: Transfer) -> None:
        """Complete it as cancelled if it waits."""
        for each in self._queue:
            if each[0] is transfer:
                self._queue.remove(each)
                transfer.complete(TransferStatus.CANCELLED)
                return

    def resume(self) -> None:
        """Go on after a pause."""
        self.paused = False
        if self._queue:
            self._loop.call_soon(self._retry)

    def end(self) -> list[Transfer]:
        """Those that wait, which it knows no more."""
        left = [transfer for transfer, _ in self._queue]
        self._queue.clear()
        return left

    def _retry(self) -> None:
        """Send what waits, in order. What has waited too long fails."""
        while self._queue and not self.paused:
            transfer, since = self._queue[0]
            late = self._loop.time() >= max(since, self._last_sent) + MEMORY_PATIENCE
            sent = self._send(transfer)
            if not sent and not late:
                self._loop.call_later(_MEMORY_PAUSE, self._retry)
                return
            self._queue.popleft()
            if sent:
                self._last_sent = self._loop.time()
            else:
                self._gave_up()
                transfer.complete(TransferStatus.ERROR)
