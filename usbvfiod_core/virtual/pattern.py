"""What a source of data sends and a sink expects: the same bytes in each packet of a transfer."""

from __future__ import annotations

from typing import Final

from ..usb.transfer import Transfer, TransferStatus
from .endpoint import VirtualEndpoint

ZEROS: Final = 0
MODULO_63: Final = 1
NONE: Final = 2

_CHUNK: Final = 1 << 16  # a multiple of every packet size
_COMPLETED: Final = TransferStatus.COMPLETED


def pattern_bytes(pattern: int, packet_size: int, length: int) -> bytes:
    """`length` bytes as an endpoint with packets of `packet_size` bytes sends and expects them."""
    if pattern != MODULO_63 or not packet_size:
        return bytes(length)
    packet = bytes([index % 63 for index in range(packet_size)])
    return (packet * (length // packet_size + 1))[:length]


class Pattern:
    """The pattern of an endpoint with packets of `size` bytes."""

    __slots__ = ("_size", "_view", "chunk")

    def __init__(self, pattern: int, size: int) -> None:
        self._size = size
        self.chunk = bytearray(pattern_bytes(pattern, size, _CHUNK))
        self._view = memoryview(self.chunk)

    def fill(self, transfer: Transfer) -> None:
        """Put it into the windows of an IN transfer."""
        size, view = self._size, self._view
        place = 0
        for window in transfer.windows:
            done, left, start = 0, len(window), place % size
            place += left
            while left > _CHUNK - start:
                part = _CHUNK - start
                window[done : done + part] = view[start:]
                done, left, start = done + part, left - part, _CHUNK % size
            window[done:] = view[start : start + left]

    def is_in(self, transfer: Transfer) -> bool:
        """Whether the windows of an OUT transfer have it."""
        place = 0
        for window in transfer.windows:
            done, length = 0, len(window)
            while done < length:
                start = place % self._size
                part = min(length - done, _CHUNK - start)
                # bytearray compares with a memoryview at full speed; memoryview with memoryview goes item by item
                expected = self.chunk if part == _CHUNK else self.chunk[start : start + part]
                if expected != window[done : done + part]:
                    return False
                done += part
                place += part
        return True


def give(endpoint: VirtualEndpoint, pattern: Pattern | None) -> None:
    """Answer all that waits at an IN endpoint, with the pattern or with whatever is there."""
    queue = endpoint.queue
    while queue:
        transfer = queue.popleft()
        if pattern is not None:
            pattern.fill(transfer)
        transfer.complete(_COMPLETED, transfer.length)


def take(endpoint: VirtualEndpoint, pattern: Pattern | None) -> None:
    """Take all that waits at an OUT endpoint, which halts at what does not follow the pattern."""
    queue = endpoint.queue
    while queue:
        transfer = queue.popleft()
        good = pattern is None or pattern.is_in(transfer)
        transfer.complete(_COMPLETED, transfer.length)  # the bytes were taken; only then it shows
        if not good:
            endpoint.halt()
