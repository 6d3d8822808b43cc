"""A server process that has nothing attached at first, and what it says of its attachments."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.heard import no_traceback
from tests.lab.prepared import PROGRAM, Prepared
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.limits import PATIENCE, wait_until


class Served:
    """A server process and what it says of its attachments. `close`, or leaving `with`, ends it. One of a `user` is
    started anew, the others are copies of a prepared process (prepared.py)."""

    def __init__(self, directory: Path, *options: str, user: int | None = None) -> None:
        self.control_path = directory / "control.sock"
        log = directory / "server.log"
        self.path = directory / "usb.sock"
        arguments = ["--socket-path", self.path, "--control-path", self.control_path, *options]
        command = [*PROGRAM, *map(str, arguments)]
        with log.open("wb") as output:
            self.process: subprocess.Popen[bytes]
            if user is None:
                self.process = Prepared(command, stderr=output.fileno())
            else:
                self.process = subprocess.Popen(command, stderr=output, user=user, group=user, extra_groups=[])

        def serving() -> bool:
            assert self.process.poll() is None, log.read_text()
            return "serving on" in log.read_text()

        wait_until(serving, log.read_text)
        self.log = log
        self._number: int | None = None
        self._connection = ControlConnection(self.control_path, PATIENCE)
        self._events = self._connection.events(devices=True)
        next(self._events)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            value.add_note(f"usbvfiod said:\n{self.log.read_text()}")
            self.process.kill()
            self.process.wait()
        else:
            self.close()

    def wait(self, state: str, reason: str = "") -> dict[str, Any]:
        """The next attachment that comes into this state, for a reason with these words: the one that was asked for
        last through this object, any if there was none."""
        for event in self._events:
            print(f"{time.monotonic():.3f} {event}")  # pytest shows it when a test fails
            if event["event"] == "attachment" and event["attachment"]["state"] == state:
                attachment: dict[str, Any] = event["attachment"]
                if reason in attachment["reason"] and self._number in (None, attachment["number"]):
                    return attachment
        raise AssertionError("the server has ended")

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request."""
        with ControlConnection(self.control_path, PATIENCE) as control:
            answer = control.request(request, **arguments)
        if request == "attach":
            self._number = answer["attachment"]["number"]
        return answer

    def connect(self) -> SocketBus:
        """A guest's way to it."""
        return SocketBus(VfioUserClient.connect(self.path, wait=PATIENCE))

    def close(self) -> None:
        self._connection.close()
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        print(self.log.read_text())
        assert code == 0
        no_traceback(self.log.read_text())
