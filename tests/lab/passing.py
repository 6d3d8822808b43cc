"""A device of the lab's host passed through by a real `usbvfiod` process to the guest driver of the test kit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.served import ServerProcess

BACKENDS = ("usbfs", "libusb")
START_TIMEOUT = 60.0
DRIVER_TIMEOUT = 30.0


class Passed:
    """`usbvfiod --backend BACKEND --device NODE` and a guest: `device` is the device as the guest has it.

    With `by_port` it is named by its place, where it may come back. Leaving `with` ends the server and checks that it
    ended well.
    """

    def __init__(
        self, backend: str, device: HostUsbDevice, directory: Path, *options: str, by_port: bool = False
    ) -> None:
        address = device.port if by_port else str(device.node)
        path = directory / "usbvfiod.sock"
        self.server = ServerProcess(path, ("--backend", backend, "--device", address, *options), timeout=START_TIMEOUT)
        try:
            self.bus: SocketBus = self.server.connect()
            self.driver = GuestDriver(self.bus, timeout=DRIVER_TIMEOUT).start()
            self.device: UsbDevice = self.driver.enumerate()
        except BaseException as error:
            self.server.stop()
            error.add_note(f"usbvfiod said:\n{self.server.output}")
            raise

    def __enter__(self) -> Passed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bus.close()
        status = self.server.stop()
        if value is not None:
            value.add_note(f"usbvfiod said:\n{self.server.output}")
        elif status != 0:
            raise AssertionError(f"usbvfiod ended with status {status}:\n{self.server.output}")


Pass = Callable[..., Passed]
"""The type of the fixture `passed`."""
