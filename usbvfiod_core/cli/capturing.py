"""A capture from the side of whoever asked for it: it begins, lasts until somebody ends it, and is told how it was."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import DeviceError
from .control import ControlConnection

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    """A signal that asks for the end, which nothing on the way may catch."""


def captured(
    server: ControlConnection, fd: int, started: Callable[[list[dict[str, str]]], object], **arguments: Any
) -> dict[str, Any]:
    """Have the server write a capture to `fd` until a signal asks for the end, or the server ends it; what it says of
    it then. `started` is told the interfaces. `arguments` are those of the request. Raises UsbvfiodError."""
    answer: dict[str, Any] = {}
    try:
        with _signals():
            answer = server.request("capture", fd=True, fds=[fd], **arguments)
            started(answer["interfaces"])
            return server.wait_for("capture")
    except _Ended:
        pass
    if not answer:  # before the server has answered: that we hang up ends it
        return {"packets": 0, "dropped": 0, "reason": ""}
    try:
        return server.request("capture-end", capture=answer["capture"])
    except DeviceError:  # it has ended by itself just then
        return {"packets": 0, "dropped": 0, "reason": ""}


@contextmanager
def _signals() -> Iterator[None]:
    """The signals that ask for the end raise _Ended inside of the block."""
    before: Sequence[Any] = [signal.signal(number, _end) for number in _ENDING]
    try:
        yield
    finally:
        for number, handler in zip(_ENDING, before, strict=True):
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # once is enough, and what follows is not interrupted
    raise _Ended
