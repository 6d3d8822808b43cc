"""Real servers for tests: one in a thread, whose devices a test holds in its hands, and the daemon as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import TypeVar

from ..daemon.loop import ServerLoop
from ..embedding import UsbServer
from ..errors import UsbvfiodError
from ..pci.interrupts import Mechanism
from ..usb.device import Device
from .bus import SocketBus
from .client import VfioUserClient
from .limits import PATIENCE, wait_until
from .memory import GuestRam
from .vmm import QEMU, Vmm

T = TypeVar("T")


class ServedController:
    """A controller behind a vfio-user socket at `path`, served by a thread of this process.

    `plug` and `unplug` go to its root hub; `call` runs anything on its thread, which is where devices live. Close it,
    or use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = PATIENCE) -> None:
        self.path = Path(path)
        self.timeout = timeout
        self.loop = ServerLoop()
        self.server = UsbServer(self.loop, self.path)
        self.controller = self.server.controller
        self._thread = Thread(target=self.loop.run_forever, name="usbvfiod-served", daemon=True)
        self._thread.start()
        self.call(self.server.start)

    def __enter__(self) -> ServedController:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def plug(self, device: Device, port_id: int | None = None) -> int:
        """Plug a device into a root hub port; returns the port's number."""
        return self.call(lambda: self.server.plug(device, port_id))

    def unplug(self, port_id: int) -> None:
        """Pull the device out."""
        self.call(lambda: self.controller.unplug(port_id))

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the server's thread, and return or raise what it does. Raises TimeoutError."""
        result: list[T | BaseException] = []

        def run() -> None:
            try:
                result.append(function())
            except BaseException as error:
                result.append(error)

        self.loop.call_soon_threadsafe(run)
        wait_until(lambda: result, "the server's thread is busy", self.timeout, pace=0.0005)
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()`, evaluated on the server's thread, holds. Raises TimeoutError."""
        wait_until(lambda: self.call(condition), "the server has not come to it", self.timeout, pace=0.001)

    def connect(
        self,
        *,
        ram: GuestRam | None = None,
        vmm: Vmm = QEMU,
        interrupts: Mechanism = Mechanism.MSIX,
        vectors: int | None = None,
    ) -> SocketBus:
        """A bus over a new connection, as a VMM of this kind."""
        client = VfioUserClient.connect(self.path, vmm=vmm, timeout=self.timeout)
        return SocketBus(client, ram, interrupts=interrupts, vectors=vectors)

    def close(self) -> None:
        """Stop serving, unplug all devices and end the thread."""
        if not self._thread.is_alive():
            return
        self.call(self.server.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(self.timeout)
        self.loop.close()


class ServerProcess:
    """`usbvfiod` as its users start it: a process that serves on `path`, with the given options. `python` is the
    interpreter of another environment, whose usbvfiod is started instead.

    Returns when the socket is there. Raises UsbvfiodError with what the process printed if it ends instead.
    `stop` ends it with SIGTERM and returns the exit code. Leaving `with` stops it, and raises UsbvfiodError if it has
    logged an exception with its traceback.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: Sequence[str] = (),
        *,
        timeout: float = PATIENCE,
        python: str | os.PathLike[str] = sys.executable,
    ) -> None:
        self.path = Path(path)
        self.timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (until `stop`)
        self._ended_with = ""
        # Not from the working directory: a checkout may be there.
        command = [os.fspath(python), "-P", "-m", "usbvfiod_core", "--socket-path", str(self.path), *options]
        self.process = self._start(command)
        deadline = time.monotonic() + timeout
        while not self.path.is_socket():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise UsbvfiodError(f"{' '.join(command)} does not serve: {self.output.strip()}")
            time.sleep(0.005)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.stop()
        if kind is None and "Traceback" in self.output:
            raise UsbvfiodError(f"the server has logged an exception:\n{self.output}")

    def connect(self, *, ram: GuestRam | None = None, vmm: Vmm = QEMU) -> SocketBus:
        """A bus over a new connection, as a VMM of this kind."""
        return SocketBus(VfioUserClient.connect(self.path, vmm=vmm, wait=self.timeout), ram)

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors)

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End the process and return its exit code; killed if it takes longer than the timeout."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            status = self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._ended_with = self.output
        self._errors.close()
        return status

    @property
    def output(self) -> str:
        """What the process has written to standard error so far."""
        if self._errors.closed:
            return self._ended_with
        file = self._errors.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
