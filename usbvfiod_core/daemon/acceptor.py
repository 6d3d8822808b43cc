"""The listening end of a socket that is served on the loop beside the guest."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Final

from ..usb.device import Loop, Timer
from ..vfio_user.listener import ListenerState, SocketPath, listener_state

log = logging.getLogger(__name__)

PAUSE: Final = 0.5
"""Seconds after which a client is tried again that could not be accepted, for want of descriptors for instance."""


class Acceptor:
    """Calls `acceptable` whenever clients of `what`, as the log calls it, may be taken by `accepted`.

    `wanted` says whether any may come now; whoever changes what it depends on calls `arm`. All on the loop's thread.
    """

    def __init__(
        self, loop: Loop, what: str, wanted: Callable[[], bool], acceptable: Callable[[], object], at_once: int = 16
    ) -> None:
        self._loop = loop
        self._what = what
        self._wanted = wanted
        self._acceptable = acceptable
        self._at_once = at_once
        self._own: SocketPath | None = None
        self._watched = False
        self._pause: Timer | None = None
        self.socket: socket.socket | None = None
        """What listens; None before `open` and after `close`."""

    def open(self, listener: socket.socket, own: SocketPath | None) -> None:
        """Have this listening socket, which belongs to `own` if it has a path of ours. `arm` begins."""
        self.socket, self._own = listener, own

    def arm(self) -> None:
        """Wait for clients if any are wanted, and for none if not."""
        if self.socket is None:
            return
        wanted = self._pause is None and self._wanted()
        if wanted and not self._watched:
            self._loop.add_reader(self.socket.fileno(), self._acceptable)
        elif self._watched and not wanted:
            self._loop.remove_reader(self.socket.fileno())
        self._watched = wanted

    def accepted(self) -> Iterator[socket.socket]:
        """The clients that have connected, some at a time, as sockets that do not block."""
        for _ in range(self._at_once):
            if self.socket is None or self._pause is not None:
                return
            try:
                client, _ = self.socket.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                log.warning("a client of %s cannot be accepted: %s", self._what, error.strerror)
                self._pause = self._loop.call_later(PAUSE, self._go_on)
                self.arm()
                return
            client.setblocking(False)
            yield client

    def state(self) -> tuple[ListenerState, int]:
        """What another process needs to let clients in, and a descriptor, which belongs to the caller."""
        assert self.socket is not None
        return listener_state(self._own), os.dup(self.socket.fileno())

    def close(self) -> None:
        """Listen no more, and remove a path that is ours."""
        if self._pause is not None:
            self._pause.cancel()
        listener, self.socket = self.socket, None
        if listener is not None and self._watched:
            self._loop.remove_reader(listener.fileno())
        if self._own is not None:
            self._own.close()
        elif listener is not None:
            listener.close()
        self._own, self._watched = None, False

    def _go_on(self) -> None:
        self._pause = None
        self.arm()
