"""A `usbvfiod` process for a test, as a service manager would run it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.heard import no_traceback
from tests.vm.guest import vfio_user_arguments
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.limits import PATIENCE


class ServerError(Exception):
    """The server did not come up or end as it should; the message carries its log."""


class UsbvfiodServer:
    """`usbvfiod --socket-path ... --device ...`, listening when the constructor returns. Its log is in `log_path`."""

    def __init__(
        self,
        devices: Sequence[str],
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        timeout: float = PATIENCE,
        prefix: Sequence[str] = (),
        before: Sequence[str] = (),
        python: str | os.PathLike[str] = sys.executable,
    ) -> None:
        """`prefix` is a command that runs what stands behind it, such as `nsenter`; `before` are words in front of
        its options. `python` is the interpreter of another environment, whose usbvfiod is started instead."""
        # Not pytest's directory: the path of a Unix socket has 107 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="usbvfiod-"))
        self.socket_path = self.directory / "usb.sock"
        self.control_path = self.directory / "control.sock"
        self.log_path = self.directory / "usbvfiod.log"
        notify_path = self.directory / "notify.sock"
        self.command = [*prefix, os.fspath(python), "-P", "-m", "usbvfiod_core"]  # not from the working directory
        self.command += [*before, "--socket-path", str(self.socket_path)]
        self.command += ["--control-path", str(self.control_path), *options]
        self.command += [word for device in devices for word in ("--device", device)]
        variables = {**os.environ, **(environment or {}), "NOTIFY_SOCKET": str(notify_path)}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications, open(self.log_path, "ab") as log:
            notifications.bind(str(notify_path))
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True
            )
            try:
                self._wait_ready(notifications, timeout)
            except BaseException:
                self.kill()
                raise

    def __enter__(self) -> UsbvfiodServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        log = self.log()
        shutil.rmtree(self.directory)
        if value is None:
            no_traceback(log)

    @property
    def arguments(self) -> list[str]:
        """QEMU's arguments for a guest with this server's controller."""
        return vfio_user_arguments(self.socket_path)

    def log(self) -> str:
        """Everything the server has said so far."""
        return self.log_path.read_text(errors="replace")

    def send(self, device: str, *words: str) -> str:
        """Say something to a device, as `usbvfiod send`; returns its answer."""
        with ControlConnection(self.control_path) as control:
            return str(control.request("send", attachment=device, words=list(words))["text"])

    def request(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Ask for something on the control socket; returns the answer."""
        with ControlConnection(self.control_path, PATIENCE) as control:
            return control.request(name, **arguments)

    def status(self, field: str) -> int:
        """A number out of /proc/PID/status, such as RssAnon (in KiB) or voluntary_ctxt_switches."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0])
        raise KeyError(field)

    def cpu_seconds(self) -> float:
        """Processor time used so far, in user and kernel mode."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Ask the server to end and return its exit status; raises ServerError if it does not."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServerError(f"usbvfiod did not end in {timeout:.0f} s\n{self.log()}") from None

    def kill(self) -> None:
        """End the server without asking; does nothing the second time."""
        self.process.kill()
        self.process.wait()

    def _wait_ready(self, notifications: socket.socket, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if select.select([notifications], [], [], 0.05)[0] and b"READY=1" in notifications.recv(4096):
                return
            if self.process.poll() is not None:
                raise ServerError(f"usbvfiod ended with status {self.process.returncode}\n{self.log()}")
            if time.monotonic() > deadline:
                raise ServerError(f"usbvfiod is not ready after {timeout:.0f} s\n{self.log()}")
