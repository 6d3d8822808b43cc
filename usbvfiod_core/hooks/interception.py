"""What runs interceptors: a wrapped device for each, which loses no transfer and ends none twice.

Each endpoint that an interceptor wants has a `Path`, found once by `Device.route`; the others' transfers go from the
controller to the device below without a call in between. A transfer on a path is one `InterceptedTransfer`, which is
also what the device below gets. Whatever ends it (the device, an answer, a cancellation, an exception, the device's
departure) comes by `Path.finish`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

from ..errors import PluginError
from ..usb.device import Device, DeviceEvents, Loop, Timer
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .descriptor_edits import EditedDescriptors, edits_of
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
    Requester,
)
from .wrapper import WrappedDevice

log = logging.getLogger(__name__)

SLOW = 0.1
"""Seconds after which a method that keeps the loop waiting is named in the log."""

RESET_PATIENCE = 2.0
"""Seconds that a reset of the guest waits for an interceptor's own transfers to be given back."""


def intercept(device: Device, interceptor: Interceptor, plugin: str, loop: Loop) -> Device:
    """`device` behind `interceptor`, which belongs to the plugin of that name."""
    blame = Blame(plugin, type(interceptor).__name__)
    edits = edits_of(interceptor)
    if edits:
        device = EditedDescriptors(device, edits, blame)
    return InterceptedDevice(device, interceptor, blame, loop)


class Blame:
    """Says in the log what an interceptor does wrong: the 1st, 2nd, 4th, 8th ... time that a method does."""

    def __init__(self, plugin: str, name: str) -> None:
        self.name = f"plugin {plugin}: {name}"
        self._times: dict[str, int] = {}

    def __call__(self, method: str, error: BaseException, consequence: str = "the transfer fails") -> None:
        """`method` has raised `error`."""
        text = " ".join(str(error).split())
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        self._say(method, logging.ERROR, f"failed, {consequence}: {text}", error)

    def slow(self, method: str, seconds: float) -> None:
        """`method` has kept the loop waiting."""
        self._say(method, logging.WARNING, f"took {seconds * 1000:.0f} ms, and the whole server waited", None)

    def _say(self, method: str, level: int, what: str, error: BaseException | None) -> None:
        times = self._times[method] = self._times.get(method, 0) + 1
        if not times & times - 1:
            log.log(level, "%s.%s %s%s", self.name, method, what, f" ({times} times)" if times > 1 else "")
        log.debug("%s.%s", self.name, method, exc_info=error)


class InterceptedDevice(WrappedDevice, Requester):
    """A device with one interceptor in front of it."""

    def __init__(self, device: Device, interceptor: Interceptor, blame: Blame, loop: Loop) -> None:
        super().__init__(device)
        self.blame = blame
        self.in_flight: dict[Transfer, InterceptedTransfer] = {}
        self._interceptor = interceptor
        self._loop = loop
        self._events: DeviceEvents | None = None
        self._paths: dict[tuple[int, TransferType], Path | None] = {}
        self._requests: dict[Transfer, Callable[[Transfer], object]] = {}
        self._in_reset = False
        self._when_idle: Callable[[], None] | None = None
        self._closed = False
        interceptor.loop = loop
        interceptor.device = device
        interceptor.requester = self

    # -- Device ------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        self._events = events
        self.device.attach(events)
        try:
            self._interceptor.attached()
        except Exception as error:
            raise PluginError(f"{self.blame.name}.attached failed: {type(error).__name__}: {error}") from error

    def route(self, endpoint: int, type: TransferType) -> Callable[[Transfer], None]:
        path = self._paths[endpoint, type] = self._path(endpoint, type)
        return self.device.route(endpoint, type) if path is None else path.submit

    def submit(self, transfer: Transfer) -> None:
        """For whoever has not asked `route`."""
        key = (transfer.endpoint, transfer.type)
        if key not in self._paths:
            self.route(*key)
        path = self._paths[key]
        (self.device if path is None else path).submit(transfer)

    def cancel(self, transfer: Transfer) -> None:
        intercepted = self.in_flight.get(transfer)
        if intercepted is not None:
            intercepted.path.cancel(intercepted)
        elif self._paths.get((transfer.endpoint, transfer.type)) is None:
            self.device.cancel(transfer)

    def reset(self, done: Callable[[], object]) -> None:
        """Own requests are taken back first: the device below may take it that nothing is in flight."""
        timer: Timer | None = None

        def go_on() -> None:
            self._when_idle = None
            if timer is not None:
                timer.cancel()
            self.device.reset(finished)

        def finished() -> None:
            self._in_reset = False
            if not self._closed:
                self._isolated(self._interceptor.was_reset)
            done()

        self._in_reset = True
        self._cancel_requests()
        if self._requests:
            self._when_idle = go_on
            timer = self._loop.call_later(RESET_PATIENCE, go_on)
        else:
            go_on()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._cancel_requests()
        self.device.close()
        for transfer in list(self.in_flight.values()):
            transfer.status, transfer.actual = TransferStatus.DISCONNECTED, 0
            transfer.path.finish(transfer)
        self._requests.clear()
        self._isolated(self._interceptor.closed)

    # -- Requester ---------------------------------------------------------------------------------------------------

    def request(self, transfer: Transfer, then: Callable[[Transfer], object]) -> None:
        self._requests[transfer] = then
        transfer.on_complete = self._request_ended
        if self._closed or self._in_reset:
            self._loop.call_soon(transfer.complete, TransferStatus.CANCELLED)
            return
        try:
            self.device.submit(transfer)
        except Exception:
            log.exception("%s: submit raised; the transfer fails", self.device.name)
            transfer.complete(TransferStatus.ERROR)

    def call_later(self, delay: float, callback: Callable[..., object], args: tuple[Any, ...]) -> Timer:
        def call() -> None:
            if not self._closed:
                self._isolated(callback, *args)

        return self._loop.call_later(delay, call)

    def unplug(self) -> None:
        if self._events is not None:
            self._events.disconnected()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _path(self, endpoint: int, type: TransferType) -> Path | None:
        name = type.name.lower()
        down, up = (_overridden(self._interceptor, method) for method in (name, f"{name}_completed"))
        if down is None and up is None:
            return None
        try:
            if not self._interceptor.intercepts(endpoint, type):
                return None
        except Exception as error:
            self.blame("intercepts", error, f"endpoint {endpoint:#04x} is taken to be wanted")
        return Path(self, self._interceptor, name, down, up, self.device.route(endpoint, type))

    def _cancel_requests(self) -> None:
        for transfer in list(self._requests):
            if transfer.status is None:
                self.cancel_below(transfer)

    def cancel_below(self, transfer: Transfer) -> None:
        """Have the device below end a transfer; an exception is its own affair, as in the controller."""
        try:
            self.device.cancel(transfer)
        except Exception:
            log.exception("%s: cancel raised", self.device.name)

    def _request_ended(self, transfer: Transfer) -> None:
        then = self._requests.pop(transfer, None)
        if then is not None and not self._closed:
            self._isolated(then, transfer)
        if self._when_idle is not None and not self._requests:
            self._when_idle()

    def _isolated(self, call: Callable[..., object], *args: Any) -> None:
        """Call something of the interceptor's that decides nothing."""
        name = getattr(call, "__name__", repr(call))
        started = perf_counter()
        try:
            call(*args)
        except Exception as error:
            self.blame(name, error, "which changes nothing")
        if perf_counter() - started > SLOW:
            self.blame.slow(name, perf_counter() - started)


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
        device: InterceptedDevice,
        interceptor: Interceptor,
        name: str,
        down: Callable[[InterceptedTransfer], None] | None,
        up: Callable[[InterceptedTransfer], None] | None,
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
            raise ValueError("a transfer that has been passed on is the device's; see its way up")
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
        transfer.stage = PASSED
        if transfer.setup is not transfer.outer.setup and not _same_way(transfer):
            self._blame(self._name, ValueError(f"{transfer.setup!r} has another data stage than what was asked for"))
            self._fail(transfer)
            self.finish(transfer)
        elif 0 < transfer.piece < transfer.length:
            self._block(transfer)
            _Pieces(self, transfer).next()
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
            elif inner.stage == HOLDING_UP:
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

    def _call(self, method: Callable[[InterceptedTransfer], None], transfer: InterceptedTransfer) -> bool:
        """Call one of the interceptor's methods; False if it failed."""
        started = perf_counter()
        try:
            result: object = method(transfer)
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


class _Pieces:
    """A transfer that the device is given in pieces, each when the one before has ended."""

    def __init__(self, path: Path, whole: InterceptedTransfer) -> None:
        self._path = path
        self._whole = whole
        self._moved = 0
        self._stepping = False
        self._again = False

    def next(self) -> None:
        """Submit the next piece. Pieces that end inside `submit` are a loop and no recursion."""
        self._again = True
        if self._stepping:
            return
        self._stepping = True
        while self._again:
            self._again = False
            whole = self._whole
            length = min(whole.piece, whole.length - self._moved)
            windows = _slice(whole.windows, self._moved, length)
            piece = Transfer(whole.endpoint, whole.type, windows, length, self._ended, stream_id=whole.stream_id)
            whole.context = piece
            self._path.give_below(piece)
        self._stepping = False

    def _ended(self, piece: Transfer) -> None:
        whole = self._whole
        whole.context = None
        if whole.stage != PASSED:
            return
        self._moved += min(max(piece.actual, 0), piece.length)
        good = piece.status is TransferStatus.COMPLETED and piece.actual == piece.length
        if good and self._moved < whole.length:
            if whole.piece:
                self.next()
                return
            whole.complete(TransferStatus.CANCELLED, self._moved)
        elif piece.status is not None:
            whole.complete(piece.status, self._moved)


def _slice(windows: list[memoryview], start: int, length: int) -> list[memoryview]:
    """`length` bytes of `windows`, from `start` on."""
    found = []
    for window in windows:
        if start < len(window):
            part = window[start : start + length]
            found.append(part)
            length -= len(part)
            start = 0
            if not length:
                break
        else:
            start -= len(window)
    return found


def _same_way(transfer: InterceptedTransfer) -> bool:
    """Whether a setup packet put in the place of the guest's fits to the data stage that there is."""
    new, old = transfer.setup, transfer.outer.setup
    return (
        new is not None and old is not None and new.length <= old.length and (not new.length or new.is_in == old.is_in)
    )


def _overridden(interceptor: Interceptor, name: str) -> Callable[..., Any] | None:
    """The interceptor's own method, None if it is the base class's, which does nothing."""
    method = getattr(interceptor, name)
    if getattr(method, "__func__", None) is getattr(Interceptor, name):
        return None
    return method  # type: ignore[no-any-return]
