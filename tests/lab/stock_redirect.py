"""Debian's `usbredirect` in the lab: the other end of usbredir that nobody here wrote."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from types import TracebackType

from tests.lab.far import listens
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.limits import PATIENCE, wait_until


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Redirect:
    """`usbredirect` for a device. It waits at `port`."""

    def __init__(self, device: HostUsbDevice) -> None:
        self.port = free_port()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        words = ["usbredirect", "--device", device.id, "--as", self.address]
        self.process = subprocess.Popen(words, stdout=self._output, stderr=subprocess.STDOUT)
        wait_until(self._waits, "usbredirect does not wait")
        assert self.process.poll() is None, self.output

    def _waits(self) -> bool:
        return self.process.poll() is not None or listens(self.port, self.process.pid)

    @property
    def output(self) -> str:
        """What it has said."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    @property
    def address(self) -> str:
        """For a device specification."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Redirect:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            value.add_note(f"usbredirect said:\n{self.output[-2000:]}")
        self.end()

    def end(self) -> None:
        """End it, as hard as it goes."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._output.close()
