"""The base class of devices that wrap another one."""

from __future__ import annotations

from collections.abc import Callable

from ..usb.device import Device, DeviceEvents
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
        for method in _METHODS:
            if getattr(type(self), method) is getattr(WrappedDevice, method):
                setattr(self, method, getattr(device, method))
        if "submit" not in vars(self) and "route" in vars(self):
            del self.route  # every endpoint's transfers come by this class's submit

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
