"""`usbvfiod` as a copy of a process that has imported it already (tests/vm/inside/prepared.py): for tests whose subject
is not its start."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.served import ServerProcess

COMMANDS, SERVERS, PROGRAMS = FIFOS = ("/run/prepared.commands", "/run/prepared.servers", "/run/prepared.programs")
"""For requests, in the lab."""
PYTHON = [sys.executable, "-P", "-m"]
PROGRAM = [*PYTHON, "usbvfiod_core"]
REPLACING = [*PYTHON, "tests.lab.replacing"]
"""`usbvfiod upgrade`, which has a copy of itself take the server's place."""


class Prepared(subprocess.Popen[bytes]):
    """A server, or what replaces one, which `command` would start; as `Popen` otherwise, but no child of this one."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = 1,
        stderr: int = 2,
        requests: str | os.PathLike[str] = SERVERS,
    ) -> None:
        if command[:3] != PYTHON:
            raise ValueError(f"{command} is not {PYTHON}")
        self.args = command
        self.stdin = self.stdout = self.stderr = None
        self.returncode = None
        reading, writing = os.pipe()
        self._answers = open(reading, "rb", buffering=0)  # noqa: SIM115 (until the process has ended)
        request = {
            "module": command[3],
            "arguments": command[4:],
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "files": [_path(file) for file in (stdin, stdout, stderr)],
            "answers": _path(writing),
        }
        line = json.dumps(request).encode() + b"\n"
        if len(line) > select.PIPE_BUF:
            raise ValueError(f"{len(line)} bytes are too many to be written at once")
        try:
            fifo = os.open(requests, os.O_WRONLY)  # waits until it is read
            os.write(fifo, line)
            os.close(fifo)
            self.pid = self._answer(5 * PATIENCE)  # at the first request it begins to import
        finally:
            os.close(writing)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._answer(timeout)
            self._answers.close()
        return int(self.returncode)

    def _answer(self, timeout: float | None) -> int:
        if not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return int(self._answers.readline())


class PreparedServer(ServerProcess):
    """A `ServerProcess` that is started so."""

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return Prepared(command, stdout=subprocess.DEVNULL, stderr=self._errors.fileno())


def _path(file: int) -> str:
    """By which another process opens one of this one's."""
    return os.devnull if file == subprocess.DEVNULL else str(Path(f"/proc/{os.getpid()}/fd/{file}"))
