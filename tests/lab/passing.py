"""A device of the lab's host passed through by a real `usbvfiod` process to the guest driver of the test kit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.prepared import PreparedServer
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.limits import PATIENCE

BACKENDS = ("usbfs", "libusb")


class Passed:
    """`usbvfiod --backend BACKEND --device NODE` and a guest: `device` is the device as the guest has it.

    With `by_port` it is named by its place, where it may come back, or by any other `address`. Without `configure` the
    guest leaves it in the Address state. The server is a copy of a prepared process (prepared.py). Leaving `with` ends
    it and checks that it ended well.
    """

    def __init__(
        self,
        backend: str,
        device: HostUsbDevice,
        directory: Path,
        *options: str,
        by_port: bool = False,
        address: str | None = None,
        configure: bool = True,
    ) -> None:
        if address is None:
            address = device.port if by_port else str(device.node)
        path, self._control = directory / "usbvfiod.sock", directory / "control.sock"
        words = ("--backend", backend, "--device", address, "--control-path", str(self._control), *options)
        self.server = PreparedServer(path, words)
        try:
            self.bus: SocketBus = self.server.connect()
            self.driver = GuestDriver(self.bus).start()
            self.device: UsbDevice = self.driver.enumerate(configure=configure)
        except BaseException as error:
            self.server.stop()
            error.add_note(f"usbvfiod said:\n{self.server.output}")
            raise

    def __enter__(self) -> Passed:
        return self

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """The server's answer at its control socket."""
        return ask(self._control, request, **arguments)

    @property
    def attachment(self) -> dict[str, Any]:
        """What the server says of the device's attachment, the only one."""
        [attachment] = self.ask("list")["attachments"]
        return dict(attachment)

    @contextmanager
    def watch(self) -> Iterator[Iterator[dict[str, Any]]]:
        """The attachment, each time that its state changes from now on, as `usbvfiod watch` shows it."""
        with ControlConnection(self._control, PATIENCE) as control:
            events = control.events()
            next(events)
            yield (dict(event["attachment"]) for event in events if event["event"] == "attachment")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            value.add_note(threads(self.server.process.pid))
        self.bus.close()
        status = self.server.stop()
        if value is not None:
            value.add_note(f"usbvfiod said:\n{self.server.output}")
        elif status != 0:
            raise AssertionError(f"usbvfiod ended with status {status}:\n{self.server.output}")


def threads(process: int) -> str:
    """What each thread of a process waits for in the kernel, outermost call last; as far as it is still there."""
    said = ["usbvfiod's threads wait in:"]
    for task in sorted(Path(f"/proc/{process}/task").glob("*")):
        with suppress(OSError):
            calls = re.findall(r"\] (\w+)\+", (task / "stack").read_text())
            said.append(f"  {task.name}: {' < '.join(calls) or 'no call'}")
    return "\n".join(said)


def ask(control: Path, request: str, **arguments: Any) -> dict[str, Any]:
    """A server's answer at its control socket."""
    with ControlConnection(control, PATIENCE) as connection:
        return connection.request(request, **arguments)


Pass = Callable[..., Passed]
"""The type of the fixture `passed`."""
