"""What the two halves of the bridge say to each other over a virtio serial port (see tests/vm/bridge.py)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

HEAD = Struct("<BI")
"""Kind, bytes that follow."""

HELLO = 1
"""From the lab: from now on it listens. Nothing said before counts."""
OPEN = 2
"""To the lab: a client has connected."""
CLOSE = 3
"""The client, or the server, has gone."""
MESSAGE = 4
"""To the lab: DESCRIPTORS and a vfio-user message of the client. From the lab: bytes of the server's."""
INTERRUPT = 5
"""From the lab: one of the server's interrupts, INTERRUPT_FIELDS."""
QUIT = 6
"""To the lab: its half may end."""

DESCRIPTORS = Struct("<BI")
"""Whether the message's descriptor is the window's, and how many eventfds it has."""
INTERRUPT_FIELDS = Struct("<II")
"""Interrupt index and number in it, as in DEVICE_SET_IRQS."""


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEAD.pack(kind, len(payload)) + payload


class Frames:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._received = bytearray()

    def take(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The frames that are complete with these bytes."""
        self._received += data
        while len(self._received) >= HEAD.size:
            kind, length = HEAD.unpack_from(self._received)
            end = HEAD.size + length
            if len(self._received) < end:
                return
            payload = bytes(self._received[HEAD.size : end])
            del self._received[:end]
            yield kind, payload
