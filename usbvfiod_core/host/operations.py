"""One operation at a time on a device that another kernel has, while everything else for the device waits.

Setting a configuration or an alternate setting, clearing a halt and resetting take milliseconds, with a wedged device
seconds, and the kernel lets nobody else use the device meanwhile. So nothing may: what a guest submits is held, in
order, until the operation is over. On this host such a call blocks, and is made in a thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ..usb.device import Loop
from ..usb.transfer import TransferStatus

log = logging.getLogger(__name__)

Then = Callable[["OperationFailed | None"], object]
Operation = Callable[[Then], None]
"""Begins it; what it is given is called once, at once or later on the loop: with None, or with why it failed."""


class OperationFailed(Exception):
    """The device, or the host, did not do what was asked; `status` is what a guest's request for it ends with."""

    def __init__(self, status: TransferStatus, message: str = "") -> None:
        super().__init__(message or status.value)
        self.status = status


class ClaimLost(OperationFailed):
    """Somebody on the host has taken what the operation needs; the message says what. The device is lost with that."""

    def __init__(self, reason: str) -> None:
        super().__init__(TransferStatus.ERROR, reason)


class LeftUnconfigured(OperationFailed):
    """A configuration is refused, and the former one is not set any more either: Linux forgets it before it asks the
    device for another (usb_set_configuration)."""


def in_thread(loop: Loop, name: str, call: Callable[[], None]) -> Operation:
    """An operation that is a call which may block, of the device that people know as `name`."""

    def begin(done: Then) -> None:
        def over(result: BaseException | None) -> None:
            failure = None
            if isinstance(result, OperationFailed):
                failure = result
            elif isinstance(result, BaseException):
                log.error("%s: %s: %s", name, type(result).__name__, result, exc_info=result)
                failure = OperationFailed(TransferStatus.ERROR, str(result))
            done(failure)

        loop.run_blocking(call, over)

    return begin


class Operations:
    """The operations of one device. `pause` is called before one starts, `resume` when none is left."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._waiting: deque[tuple[Operation, Then]] = deque()
        self.running = False

    def run(self, begin: Operation, then: Then) -> None:
        """Begin an operation after those asked for before; `then` gets None, or why it failed."""
        self._waiting.append((begin, then))
        if not self.running:
            self.running = True
            self._pause()
            self._next()

    def _next(self) -> None:
        begin, then = self._waiting.popleft()

        def over(failure: OperationFailed | None) -> None:
            if self._waiting:
                then(failure)
                self._next()
            else:
                # The device can be used again before anybody is told; whoever is told may start the next operation.
                self.running = False
                self._resume()
                then(failure)

        begin(over)
