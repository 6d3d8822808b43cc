"""A network that is slow in virtual time."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from usbvfiod_core.remote import Link


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class SlowLink(Link):
    """So many bytes come at once, so many seconds after those before."""

    def __init__(self, stream: socket.socket, clock: Clock, seconds: float, count: int) -> None:
        super().__init__(stream)
        self._clock, self._seconds, self._count = clock, seconds, count

    def receive(self, windows: Sequence[memoryview]) -> int | None:
        self._clock.now += self._seconds
        return super().receive([windows[0][: self._count]])
