"""A server as its users have it: a process, its socket, its log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType

from tests.heard import no_traceback
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE, wait_until

COMMAND = (sys.executable, "-m", "usbvfiod_core")
_SLOWNESS = re.compile(r": warning: plugin .* took [0-9.]+ s( to load)?$")


class ServerProcess:
    """`usbvfiod` with `arguments`. `wait_ready` waits until it serves; leaving `with` ends it, whatever its state.
    The test fails if it has logged an exception, unless `tracebacks` says that this is what the test provokes."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str | Path] = (),
        *,
        pass_fds: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        socket_path: Path | None = None,
        command: Sequence[str | Path] = COMMAND,
        tracebacks: bool = False,
    ) -> None:
        self._tracebacks = tracebacks
        self.log_path = directory / "server.log"
        self.socket_path = socket_path or directory / "usb.sock"
        if not pass_fds:
            arguments = ["--socket-path", self.socket_path, *arguments]
        self.started = time.monotonic()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if error is None and not self._tracebacks:
            no_traceback(self.log)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def errors(self) -> list[str]:
        """The lines of its log that are no news of its life; without what says that a plugin was slow, as all are on a
        busy machine."""
        lines = [line for line in self.log.splitlines() if ": error: " in line or ": warning: " in line]
        return [line for line in lines if not _SLOWNESS.search(line)]

    @contextmanager
    def guest(self, interrupts: Mechanism = Mechanism.MSIX) -> Iterator[GuestDriver]:
        """A VM's driver on a new connection, which is closed at the end as it is, as when a VMM is killed."""
        with closing(self.connect(interrupts)) as bus:
            yield GuestDriver(bus).start()

    def connect(self, interrupts: Mechanism = Mechanism.MSIX) -> SocketBus:
        """A bus over a new connection, once it serves."""
        return SocketBus(VfioUserClient.connect(self.socket_path, wait=PATIENCE), interrupts=interrupts)

    def wait_ready(self) -> ServerProcess:
        """Wait until it says that it serves. Raises AssertionError with its log if it ends instead."""
        self.wait_for(lambda: "serving on" in self.log)
        return self

    def wait_for(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Wait until `condition()`, which must become true while the process lives."""

        def holds() -> bool:
            if condition():
                return True
            code = self.process.poll()
            assert code is None, f"the server has ended with exit code {code}:\n{self.log}"
            return False

        wait_until(holds, lambda: f"the server is late:\n{self.log}", timeout)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, once it has ended by itself."""
        return self.process.wait(timeout)

    def status(self, key: str) -> int:
        """A number from /proc/PID/status, such as VmRSS (in kB) or voluntary_ctxt_switches."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0])
        raise KeyError(key)

    def open_files(self) -> int:
        """How many file descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))
