"""A transfer that the device is given in pieces, each when the one before has ended."""

from __future__ import annotations

from collections.abc import Callable

from ..usb.transfer import Transfer, TransferStatus
from .interceptor import PASSED, InterceptedTransfer


class Pieces:
    """The pieces of `whole`, which `give_below` hands to the device."""

    def __init__(self, whole: InterceptedTransfer, give_below: Callable[[Transfer], None]) -> None:
        self._whole = whole
        self._give_below = give_below
        self._moved = 0
        self._stepping = False
        self._again = False

    def next(self) -> None:
        """Submit the next piece. Pieces that end inside `submit` are a loop and no recursion."""
        self._again = True
        if self._stepping:
            return
        self._stepping = True
        while self._again:
            self._again = False
            whole = self._whole
            length = min(whole.piece, whole.length - self._moved)
            windows = _slice(whole.windows, self._moved, length)
            piece = Transfer(whole.endpoint, whole.type, windows, length, self._ended, stream_id=whole.stream_id)
            whole.context = piece
            self._give_below(piece)
        self._stepping = False

    def _ended(self, piece: Transfer) -> None:
        whole = self._whole
        whole.context = None
        if whole.stage != PASSED:
            return
        self._moved += min(max(piece.actual, 0), piece.length)
        good = piece.status is TransferStatus.COMPLETED and piece.actual == piece.length
        if good and self._moved < whole.length:
            if whole.piece:
                self.next()
                return
            whole.complete(TransferStatus.CANCELLED, self._moved)
        elif piece.status is not None:
            whole.complete(piece.status, self._moved)


def _slice(windows: list[memoryview], start: int, length: int) -> list[memoryview]:
    """`length` bytes of `windows`, from `start` on."""
    found = []
    for window in windows:
        if start < len(window):
            part = window[start : start + length]
            found.append(part)
            length -= len(part)
            start = 0
            if not length:
                break
        else:
            start -= len(window)
    return found
