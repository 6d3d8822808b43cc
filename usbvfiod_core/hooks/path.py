"""The way of one endpoint's transfers through an interceptor, down to the device and up again.

A transfer on it is one `InterceptedTransfer`, which is also what the device below gets. Whatever ends it (the device,
an answer, a cancellation, an exception, the device's departure) comes by `Path.finish`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from ..usb.transfer import Transfer, TransferStatus
from .blame import SLOW, Blame
from .interceptor import (
    DOWN,
    ENDED,
    HELD,
    HELD_UP,
    HOLDING,
    HOLDING_UP,
    PASSED,
    QUEUED,
    UP,
    InterceptedTransfer,
    Interceptor,
)
from .pieces import Pieces

log = logging.getLogger(__name__)


class Below(Protocol):
    """What a path needs of the device it is a part of."""

    name: str
    in_flight: dict[Transfer, InterceptedTransfer]
    blame: Blame

    def cancel_below(self, transfer: Transfer) -> None: ...


class _Line:
    """The transfers of one endpoint and stream behind one that is held or sent in pieces."""

    __slots__ = ("holder", "moving", "waiting")

    def __init__(self) -> None:
        self.holder: InterceptedTransfer | None = None
        self.waiting: deque[InterceptedTransfer] = deque()
        self.moving = False


class Path:
    """The way of one endpoint's transfers through an interceptor: its methods, None where it has none, and `below`,
    what the device below is given transfers by."""

    __slots__ = ("_below", "_blame", "_device", "_down", "_in_flight", "_lines", "_name", "_up", "interceptor")

    def __init__(
        self,
        device: Below,
        interceptor: Interceptor,
        name: str,
        down: Callable[[InterceptedTransfer], object] | None,
        up: Callable[[InterceptedTransfer], object] | None,
        below: Callable[[Transfer], None],
    ) -> None:
        self.interceptor = interceptor
        self._device = device
        self._in_flight = device.in_flight
        self._blame = device.blame
        self._name = name
        self._down = down
        self._up = up
        self._below = below
        self._lines: dict[int, _Line] = {}

    # -- down --------------------------------------------------------------------------------------------------------

    def submit(self, outer: Transfer) -> None:
        """The guest's transfer, or that of the interceptor nearer to it."""
        transfer = self._in_flight[outer] = InterceptedTransfer(outer, self)
        if self._lines and (line := self._lines.get(outer.stream_id)) is not None:
            line.waiting.append(transfer)
        else:
            self._enter(transfer)

    def release(self, transfer: InterceptedTransfer) -> None:
        """It was held and goes on."""
        self._forward(transfer)
        if transfer.stage != PASSED or not transfer.piece:
            self._unblock(transfer)

    def settle(self, transfer: InterceptedTransfer, status: TransferStatus, actual: int) -> None:
        """The interceptor says how it ends. Raises ValueError if the device has it."""
        if transfer.stage == PASSED:
            raise ValueError("the device has this transfer; change it in the method for its way up")
        transfer.status, transfer.actual = status, actual
        if transfer.stage in (UP, HOLDING_UP):
            transfer.stage = UP
        else:
            self.finish(transfer)

    def cancel(self, transfer: InterceptedTransfer) -> None:
        """The guest wants it back."""
        stage = transfer.stage
        if stage == PASSED:
            inner = transfer.context if transfer.piece and transfer.context is not None else transfer
            transfer.piece = 0  # no further piece
            transfer.cancelled, transfer.status = True, None
            self._device.cancel_below(inner)
        elif stage == HELD_UP:
            self.finish(transfer)  # it has won the race
        elif stage in (QUEUED, DOWN, HOLDING, HELD):
            if stage == QUEUED:
                self._lines[transfer.stream_id].waiting.remove(transfer)
            transfer.status, transfer.actual = TransferStatus.CANCELLED, 0
            self.finish(transfer)

    def _enter(self, transfer: InterceptedTransfer) -> None:
        down = self._down
        if down is not None:
            transfer.stage = DOWN
            if not self._call(down, transfer):
                if transfer.stage != ENDED:
                    self._fail(transfer)
                    self.finish(transfer)
                return
            if transfer.stage == HOLDING:
                transfer.stage = HELD
                self._block(transfer)
                return
            if transfer.stage == ENDED:
                return
        self._forward(transfer)

    def _forward(self, transfer: InterceptedTransfer) -> None:
        transfer.stage, transfer.status = PASSED, None
        if transfer.setup is not transfer.outer.setup and not _same_way(transfer):
            self._blame(self._name, ValueError(f"{transfer.setup!r} has another data stage than what was asked for"))
            self._fail(transfer)
            self.finish(transfer)
        elif 0 < transfer.piece < transfer.length:
            self._block(transfer)
            Pieces(transfer, self.give_below).next()
        else:
            transfer.piece = 0
            self.give_below(transfer)

    def give_below(self, transfer: Transfer) -> None:
        """Hand a transfer to the device below."""
        try:
            self._below(transfer)
        except Exception:
            log.exception("%s: submit raised; the transfer fails", self._device.name)
            transfer.complete(TransferStatus.ERROR)

    # -- up ----------------------------------------------------------------------------------------------------------

    def returned(self, inner: Transfer) -> None:
        """`on_complete` of what the device below was given."""
        assert isinstance(inner, InterceptedTransfer)
        if inner.stage == PASSED and self._up is not None:
            inner.stage = UP
            if not self._call(self._up, inner):
                self._fail(inner)
            elif inner.stage == HOLDING_UP and not inner.cancelled:
                inner.stage = HELD_UP
                self._unblock(inner)
                return
        if inner.stage != ENDED:
            self.finish(inner)

    def finish(self, transfer: InterceptedTransfer) -> None:
        """End it for whoever submitted it, with its `status` and `actual`: the only way out."""
        if transfer.stage == ENDED:
            return
        transfer.end()
        outer, status, actual = transfer.outer, transfer.status, transfer.actual
        del self._in_flight[outer]
        if not isinstance(status, TransferStatus) or not (type(actual) is int and 0 <= actual <= transfer.length):
            self._blame(self._name, ValueError(f"{actual!r} of {transfer.length} bytes with status {status!r}"))
            status, actual = TransferStatus.ERROR, 0
        if transfer.private is not None:
            if transfer.is_in:
                moved = len(transfer.private) if transfer.packets else actual
                outer.write(memoryview(transfer.private)[:moved])
            elif status is TransferStatus.COMPLETED and actual == transfer.length:
                actual = outer.length
            else:
                actual = min(actual, max(outer.length - 1, 0))
        outer.complete(status, actual)
        if self._lines:
            self._unblock(transfer)

    # -- order -------------------------------------------------------------------------------------------------------

    def _block(self, transfer: InterceptedTransfer) -> None:
        self._lines.setdefault(transfer.stream_id, _Line()).holder = transfer

    def _unblock(self, transfer: InterceptedTransfer) -> None:
        """Let those behind `transfer` go on, up to the next one that is held."""
        line = self._lines.get(transfer.stream_id)
        if line is None or line.holder is not transfer:
            return
        line.holder = None
        if line.moving:
            return
        line.moving = True
        while line.holder is None and line.waiting:
            self._enter(line.waiting.popleft())
        line.moving = False
        if line.holder is None:
            del self._lines[transfer.stream_id]

    # -- isolation ---------------------------------------------------------------------------------------------------

    def _call(self, method: Callable[[InterceptedTransfer], object], transfer: InterceptedTransfer) -> bool:
        """Call one of the interceptor's methods; False if it failed."""
        started = perf_counter()
        try:
            result = method(transfer)
            if result is not None:
                raise TypeError(f"returned {result!r}, and not None")
        except Exception as error:
            self._blame(method.__name__, error)
            return False
        finally:
            if perf_counter() - started > SLOW:
                self._blame.slow(method.__name__, perf_counter() - started)
        return True

    @staticmethod
    def _fail(transfer: InterceptedTransfer) -> None:
        transfer.status, transfer.actual = TransferStatus.ERROR, 0
        for packet in transfer.packets:
            packet.status, packet.actual = TransferStatus.ERROR, 0


def _same_way(transfer: InterceptedTransfer) -> bool:
    """Whether a setup packet put in the place of the guest's fits to the data stage that there is."""
    new, old = transfer.setup, transfer.outer.setup
    return (
        new is not None and old is not None and new.length <= old.length and (not new.length or new.is_in == old.is_in)
    )
