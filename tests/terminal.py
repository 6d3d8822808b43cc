"""A program in a terminal of its own, which a test types at and reads, by the terminal emulator pyte."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from usbvfiod_core.testing.limits import PATIENCE, wait_until


def _inherited() -> dict[str, str]:
    """The environment, but for another terminal's size: pytest-xdist gives its workers that of its own."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}


class Terminal:
    """Runs `command` on a terminal of `columns` and `lines`. Leaving `with` ends it, whatever its state."""

    def __init__(
        self,
        command: Sequence[str | Path],
        columns: int = 100,
        lines: int = 24,
        environment: dict[str, str] | None = None,
    ) -> None:
        pyte = import_module("pyte")
        self.screen: Any = pyte.Screen(columns, lines)
        self._stream: Any = pyte.ByteStream(self.screen)
        self._fd, its = pty.openpty()
        self.resize(columns, lines)
        os.set_blocking(self._fd, False)
        self.process = subprocess.Popen(
            [*map(str, command)],
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            env={**_inherited(), "TERM": "xterm-256color", **(environment or {})},
            preexec_fn=_as_in_a_window,
        )
        os.close(its)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def resize(self, columns: int, lines: int) -> None:
        """The window has another size."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._fd, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, whose signal the terminal sends."""
        self.type("\x03")

    @property
    def lines(self) -> list[str]:
        """What is to be seen."""
        try:
            while data := os.read(self._fd, 65536):
                self._stream.feed(data)
        except (BlockingIOError, OSError):
            pass
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, condition: Callable[[str], bool], what: str) -> str:
        """Wait until what is to be seen is right; what is to be seen then."""
        wait_until(lambda: condition(self.text), lambda: f"{what}:\n{self.text}")
        return self.text

    def ends(self) -> int:
        """The exit code of the program, which ends now."""
        wait_until(lambda: (self.text, self.process.poll() is not None)[1], lambda: f"it goes on:\n{self.text}")
        return self.process.wait(PATIENCE)

    def hang_up(self) -> None:
        """The window is closed."""
        os.killpg(self.process.pid, signal.SIGHUP)


def _as_in_a_window() -> None:
    """In the program's process: the terminal is its own, and its end ends it, also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
