"""A connection to a listening Unix stream socket, which is made again after it was lost."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple

from ..errors import DeviceError
from ..usb.device import Loop, Timer

_RETRY = 1.0
"""Seconds between two attempts to connect."""


class Taken(NamedTuple):
    """A connection that another process has made and handed over: its descriptor, None if it was lost."""

    fd: int | None


class Connection:
    """A connection to the socket at `path`. Made in any thread; the methods are for the loop's thread, `start` first.

    `option` is what the user wrote before the path, for errors. One that was `taken` over is not made. Raises
    DeviceError if nobody listens there.
    """

    def __init__(self, path: str, option: str, *, taken: Taken | None = None) -> None:
        self._path = path
        self._loop: Loop | None = None
        self._made: Callable[[socket.socket], object] = lambda made: None
        self._timer: Timer | None = None
        self.socket: socket.socket | None = None
        """Non-blocking; None while it is lost."""
        if taken is not None:
            self.socket = None if taken.fd is None else socket.socket(fileno=taken.fd)
            return
        try:
            self.socket = self._connect()
        except OSError as error:
            raise DeviceError(f"{option}{path}: {error.strerror or error}") from None

    def start(self, loop: Loop, made: Callable[[socket.socket], object]) -> None:
        """From now on it is made again when it is lost. Then `made` is called with the new socket."""
        self._loop, self._made = loop, made
        if self.socket is None:
            self._again()

    def lose(self) -> None:
        """The other end is gone: close the socket, which nothing watches any more, and try again until somebody
        listens."""
        self._drop()
        self._again()

    @property
    def descriptors(self) -> dict[str, int]:
        """What another process gets to go on with the connection."""
        return {} if self.socket is None else {"socket": self.socket.fileno()}

    def close(self) -> None:
        """End it; if another process has it too, for this one only."""
        self._drop()
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    def _connect(self) -> socket.socket:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            fresh.connect(self._path)
        except OSError:
            fresh.close()
            raise
        return fresh

    def _drop(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _again(self) -> None:
        if self._loop is not None:
            self._timer = self._loop.call_later(_RETRY, self._retry)

    def _retry(self) -> None:
        try:
            self.socket = self._connect()
        except OSError:
            self._again()
        else:
            self._made(self.socket)
