"""Requests that are left under way while no transfer is there that they are for.

A server that is asked to take a request back does not tell what it has moved: Linux answers that it is cancelled, and
drops what was read. So what is going to be asked again soon is not taken back at all (`Device.take_back`). The next
transfer of the endpoint adopts the request, here or in another process, and what has come meanwhile; one that writes
does so only if it writes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from usbvfiod_core.host.urb_status import URB_STATUS
from usbvfiod_core.state import require
from usbvfiod_core.usb.transfer import TransferStatus

from .request import Request, nobody
from .state import KeptState


class Kept:
    """Those of one device, of each endpoint oldest first."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __contains__(self, request: Request) -> bool:
        return request in self._requests

    def __bool__(self) -> bool:
        return bool(self._requests)

    def add(self, request: Request) -> None:
        """One that is older than those of its endpoint that are there."""
        younger = (at for at, each in enumerate(self._requests) if each.endpoint == request.endpoint)
        self._requests.insert(next(younger, len(self._requests)), request)

    def find(self, sequence: int) -> Request | None:
        """The one that an answer is for."""
        return next((each for each in self._requests if each.sequence == sequence and each.answer is None), None)

    def answered(self, request: Request, status: int, actual: int) -> None:
        """Its answer is there, with all that belongs to it; `status` is Linux's."""
        if URB_STATUS.get(status) is TransferStatus.CANCELLED:
            self._requests.remove(request)  # the server has taken it back by itself: it is asked again
        else:
            request.answer = (status, actual)

    def take(self, endpoint: int, windows: Sequence[memoryview], length: int) -> Request | None:
        """The oldest of this endpoint, if it is for so many bytes, and for those of `windows` if it writes."""
        oldest = next((each for each in self._requests if each.endpoint == endpoint), None)
        if oldest is None or oldest.length != length:
            return None
        if not oldest.is_in and digest_of(windows) != oldest.digest:
            return None
        self._requests.remove(oldest)
        return oldest

    def remove(self, endpoint: int | None = None) -> list[Request]:
        """Those of an endpoint, or all, are kept no longer; they are what is returned."""
        removed = [each for each in self._requests if endpoint in (None, each.endpoint)]
        self._requests = [each for each in self._requests if each not in removed]
        return removed

    def saved_state(self) -> list[KeptState]:
        """What another process has to know, between two messages."""
        return [_state(each) for each in self._requests]

    def take_over(self, state: list[KeptState]) -> None:
        """Go on where those of another process were. Raises StateError."""
        for index, told in enumerate(state):
            path, is_in = f"session.kept[{index}]", bool(told.endpoint & 0x80)
            require(bool(told.endpoint & 0x7F), f"{path}.endpoint", "of endpoint 0 nothing is kept")
            require(told.moved <= told.length, f"{path}.moved", "it is more than was asked for")
            require(len(told.data) == (told.moved if is_in else 0), f"{path}.data", "it is not what was moved")
            request = Request(told.endpoint, [], told.length, nobody, is_in=is_in)
            request.sequence, request.digest = told.sequence, told.digest
            if told.status is not None:
                request.answer = (told.status, told.moved)
                request.store = memoryview(bytearray(told.data)) if told.data else None
            self._requests.append(request)


def _state(request: Request) -> KeptState:
    status, moved = (None, 0) if request.answer is None else request.answer
    data = b"" if request.store is None else bytes(request.store[:moved])
    return KeptState(request.sequence, request.endpoint, request.length, request.digest, status, moved, data)


def digest_of(windows: Sequence[memoryview]) -> bytes:
    """By which what was written is known again."""
    digest = blake2b(digest_size=32)
    for window in windows:
        digest.update(window)
    return digest.digest()
