"""What runs interceptors: a wrapped device for each, which loses no transfer and ends none twice.

Each endpoint that an interceptor wants has a `Path`, found once by `Device.route`; the others' transfers go from the
controller to the device below without a call in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import PluginError
from ..usb.device import Device, DeviceEvents, Loop, Timer
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .blame import Blame
from .descriptor_edits import EditedDescriptors, edits_of
from .interceptor import InterceptedTransfer, Interceptor, Requester
from .path import Path
from .wrapper import WrappedDevice

log = logging.getLogger(__name__)

RESET_PATIENCE = 2.0
"""Seconds that a reset of the guest waits for an interceptor's own transfers to be given back."""


def intercept(device: Device, interceptor: Interceptor, plugin: str, loop: Loop) -> Device:
    """`device` behind `interceptor`, which belongs to the plugin of that name."""
    blame = Blame(plugin, type(interceptor).__name__)
    edits = edits_of(interceptor)
    edited = EditedDescriptors(device, edits, blame) if edits else device
    return InterceptedDevice(edited, interceptor, blame, loop, device)


class InterceptedDevice(WrappedDevice, Requester):
    """A device with one interceptor in front of it. Its own requests go to `below`, past its edits of descriptors."""

    def __init__(self, device: Device, interceptor: Interceptor, blame: Blame, loop: Loop, below: Device) -> None:
        super().__init__(device)
        self.keeps_requests = False  # those that are intercepted are cancelled
        self.blame = blame
        self.in_flight: dict[Transfer, InterceptedTransfer] = {}
        self._interceptor = interceptor
        self._loop = loop
        self._events: DeviceEvents | None = None
        self._paths: dict[tuple[int, TransferType], Path | None] = {}
        self._requests: dict[Transfer, Callable[[Transfer], object]] = {}
        self._in_reset = False
        self._when_idle: Callable[[], None] | None = None
        self._settling: list[Callable[[], object]] = []
        self._closed = False
        interceptor.loop = loop
        interceptor.device = self._below = below
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

    def take_back(self, transfer: Transfer) -> None:
        if transfer in self.in_flight or self._paths.get((transfer.endpoint, transfer.type)) is not None:
            self.cancel(transfer)
        else:
            self.device.take_back(transfer)

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
                self.blame.isolated(self._interceptor.was_reset)
            done()

        self._in_reset = True
        self._cancel_requests()
        if self._requests:
            self._when_idle = go_on
            timer = self._loop.call_later(RESET_PATIENCE, go_on)
        else:
            go_on()

    def when_settled(self, done: Callable[[], object]) -> None:
        if self._requests:
            self._settling.append(done)
        else:
            self.device.when_settled(done)

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
        self.blame.isolated(self._interceptor.closed)

    # -- Requester ---------------------------------------------------------------------------------------------------

    def request(self, transfer: Transfer, then: Callable[[Transfer], object]) -> None:
        self._requests[transfer] = then
        transfer.on_complete = self._request_ended
        if self._closed or self._in_reset:
            self._loop.call_soon(transfer.complete, TransferStatus.CANCELLED)
            return
        try:
            self._below.submit(transfer)
        except Exception:
            log.exception("%s: submit raised; the transfer fails", self.device.name)
            transfer.complete(TransferStatus.ERROR)

    def call_later(self, delay: float, callback: Callable[..., object], args: tuple[Any, ...]) -> Timer:
        def call() -> None:
            if not self._closed:
                self.blame.isolated(callback, *args)

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
            self.blame.isolated(then, transfer)
        if self._when_idle is not None and not self._requests:
            self._when_idle()
        if self._settling and not self._requests:
            settling, self._settling = self._settling, []
            for done in settling:
                self.when_settled(done)


def _overridden(interceptor: Interceptor, name: str) -> Callable[..., Any] | None:
    """The interceptor's own method, None if it is the base class's, which does nothing."""
    method = getattr(interceptor, name)
    if getattr(method, "__func__", None) is getattr(Interceptor, name):
        return None
    return method  # type: ignore[no-any-return]
