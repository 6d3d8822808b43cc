"""A device behind a libusb that is a script, on a bench."""

from __future__ import annotations

import os

from fake_libusb import FakeContext, FakeHandle, FakeLibusb, FakeTransfer, descriptors
from usbvfiod_libusb.binding import WrappedNode
from usbvfiod_libusb.device import LibusbDevice

from usbvfiod_core import Speed, TransferStatus
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.host.taken import Taken
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket

SET_CONFIGURATION = SetupPacket(0, 9, 1, 0, 0)


class Bench(DeviceBench):
    """A device on a bench, and the script behind it."""

    def __init__(
        self,
        options: HostOptions | None = None,
        configuration: int | None = 1,
        raw: bytes = descriptors(),
        errors: dict[str, list[int]] | None = None,
    ) -> None:
        self.libusb = FakeLibusb()
        self.sysfs = SysfsDevice(
            "1-1", 1, 2, 0x0403, 0x6001, product="fake", configuration=configuration, descriptors=raw
        )
        loop = StepLoop(virtual_time=False)
        self.libusb.open_context()
        self.context: FakeContext = self.libusb.contexts[0]
        self.fd = os.eventfd(0)
        self.context.wrapSysDevice(self.fd)
        assert self.context.handle is not None
        self.handle: FakeHandle = self.context.handle
        self.handle.errors |= errors or {}
        node = WrappedNode(self.libusb, self.context, self.handle, self.fd)
        description = self.sysfs.description(Speed.HIGH)
        self.libusb_device = LibusbDevice(
            node, loop, description, options or HostOptions(), None, Taken(self.sysfs), hands=self
        )
        self.libusb_device.take()
        super().__init__(self.libusb_device, loop)
        loop.run_ready()

    # as `Hands`

    def configure(self, value: int | None) -> int:
        assert not self.handle.claimed
        self.handle.calls.append(("configure", value))
        return 0

    def connect(self, interface: int) -> int:
        assert interface not in self.handle.claimed
        self.handle.calls.append(("connect", interface))
        return 0

    def disconnect(self, interface: int) -> int:
        self.handle.calls.append(("disconnect", interface))
        return 0

    def sent(self, number: int = -1) -> FakeTransfer:
        """What libusb was given."""
        return self.handle.submitted[number]

    def asked(self) -> list[tuple[object, ...]]:
        """The operations since the last time."""
        calls, self.handle.calls = self.handle.calls, []
        return calls

    def configured(self) -> Bench:
        assert self.control(SET_CONFIGURATION).status is TransferStatus.COMPLETED
        return self
