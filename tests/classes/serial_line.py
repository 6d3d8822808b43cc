"""The far end of serial adapters: a plug that joins each line with its partner, and speaks 115200 8N1 only."""

from __future__ import annotations

from collections import deque

RATE = 115_200
ROOM = 4096
"""Bytes that an adapter holds; with more on the way it takes no more."""


class LoopPlug:
    """Gives back what is sent when the adapter's line is set as the plug's is. `dtr` and `rts` are what the driver
    has raised: DSR and carrier follow the first, CTS the second."""

    def __init__(self) -> None:
        self.rate = 0
        self.is_8n1 = False
        self.dtr = self.rts = False
        self._held: deque[bytes] = deque()
        self.count = 0
        """Bytes on the way back."""

    def send(self, data: bytes) -> None:
        """At another rate or in another format nothing comes back that is worth anything."""
        if self.rate == RATE and self.is_8n1:
            self._held.append(data)
            self.count += len(data)

    def receive(self, most: int) -> bytes:
        """So many bytes at most."""
        data = b""
        while self._held and len(data) < most:
            part = self._held.popleft()
            room = most - len(data)
            data += part[:room]
            if len(part) > room:
                self._held.appendleft(part[room:])
        self.count -= len(data)
        return data
