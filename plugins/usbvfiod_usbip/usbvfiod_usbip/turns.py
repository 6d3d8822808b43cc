"""One question at a time for each server.

usbipd answers one connection after the other, and goes on with those that were given up meanwhile: a device is given to
nobody, and has to be taken back. Whoever asks for many at once is answered too late for most of them, and asks again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from usbvfiod_core import DeviceAway

T = TypeVar("T")


class ServerAway(DeviceAway):
    """The server cannot be reached, or is silent: another question would fare no better."""


class _Line:
    """Those who have a question for a server."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.present = 0
        self.failures = 0
        self.patience = 0.0
        """Seconds that the last failed question was waited for."""
        self.reason = ""


class Turns:
    """Of all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[Hashable, _Line] = {}

    def ask(self, server: Hashable, patience: float, question: Callable[[], T]) -> T:
        """Call `question` when nobody else has one at `server`, and return the answer.

        If the server is away for a question that was waited for, it is for this one, which would wait no longer
        (`patience`, in seconds). So a server that is down costs all of them the time of one. Raises ServerAway then,
        and what `question` raises.
        """
        with self._lock:
            line = self._lines.setdefault(server, _Line())
            line.present += 1
            before = line.failures
        try:
            with line.turn:
                if line.failures > before and line.patience >= patience:
                    raise ServerAway(line.reason)
                try:
                    return question()
                except ServerAway as error:
                    line.failures += 1
                    line.patience, line.reason = patience, str(error)
                    raise
        finally:
            with self._lock:
                line.present -= 1
                if not line.present:
                    del self._lines[server]
