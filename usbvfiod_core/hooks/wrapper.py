"""The base class of devices that wrap another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..usb.device import Device, DeviceEvents
from ..usb.handover import CannotHandOver
from ..usb.transfer import Transfer, TransferType

_METHODS = tuple(name for name, member in vars(Device).items() if callable(member) and not name.startswith("_"))


class WrappedDevice(Device):
    """A Device that passes everything on to `device`; override what should differ.

    A method that a subclass leaves alone is bound to the wrapped device's own, so wrapping costs nothing per transfer
    there. To see completions, put a function of your own in front of `transfer.on_complete` before submitting; to
    see some endpoints' transfers only, override `route`. `Interceptor` does both, and more.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.speed = device.speed
        self.name = device.name
        self.max_streams = device.max_streams
        self.cancel_loses = device.cancel_loses
        self.keeps_requests = device.keeps_requests
        for method in _METHODS:
            if getattr(type(self), method) is getattr(WrappedDevice, method):
                setattr(self, method, getattr(device, method))
        if "submit" not in vars(self) and "route" in vars(self):
            del self.route  # every endpoint's transfers come by this class's submit
        if "cancel" not in vars(self) and "take_back" in vars(self):
            del self.take_back  # what is taken back comes by this class's cancel
            self.keeps_requests = False

    def attach(self, events: DeviceEvents) -> None:
        self.device.attach(events)

    def route(self, endpoint: int, type: TransferType) -> Callable[[Transfer], None]:
        return self.submit

    def submit(self, transfer: Transfer) -> None:
        self.device.submit(transfer)

    def cancel(self, transfer: Transfer) -> None:
        self.device.cancel(transfer)

    def reset(self, done: Callable[[], object]) -> None:
        self.device.reset(done)

    def close(self) -> None:
        self.device.close()

    def own_state(self) -> dict[str, Any]:
        """For `usbvfiod upgrade`: what another process has to know so that a wrapper made there goes on as this one
        would, as `Interceptor.own_state`; the wrapped device says the rest by `hand_over`. Raises CannotHandOver, as
        here: then the device is not handed over."""
        raise CannotHandOver(f"{type(self).__name__} does not say what it keeps")

    def take_own_state(self, state: dict[str, Any]) -> None:
        """The values of `own_state` of another process, on a new wrapper; `attach` follows. Raises CannotHandOver for
        what it cannot go on with."""
        if state:
            raise CannotHandOver(f"{type(self).__name__} does not go on with what another process knows")
