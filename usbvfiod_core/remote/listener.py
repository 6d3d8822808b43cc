"""Waiting for the other end: where it connects us."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from ..errors import ConfigError, DeviceError
from ..vfio_user.listener import Adopted, ListenerState, SocketPath, listener_state
from .connecting import live
from .link import Link
from .place import Place

ACCEPT_PAUSE: Final = 0.5
"""Seconds until a process may have descriptors again."""
_BACKLOG: Final = 16


class Listener:
    """A listening socket at a place, or at the path of a Unix socket, which only our own user may connect. A place
    without a host is every address. Raises DeviceError.

    `fileno` is readable when somebody has come; `timeout` is that of `RemoteOptions`. `adopted` is the socket that
    listens there already, in another process, whose `state` it is; its descriptor belongs to this one if nothing is
    raised.
    """

    def __init__(self, place: Place | Path, timeout: int, adopted: Adopted | None = None) -> None:
        self._timeout = timeout
        self._path: SocketPath | None = None
        try:
            if isinstance(place, Path):
                self._path = SocketPath(str(place), adopted=adopted)
                self._socket = self._path.socket
            elif adopted is not None:
                self._socket = socket.socket(fileno=adopted.fd)
            else:
                self._socket = _bound(place)
        except ConfigError as error:
            raise DeviceError(str(error)) from None
        except OSError as error:
            raise DeviceError(f"cannot listen at {place}: {error.strerror or error}") from error
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """What the loop watches."""
        return self._socket.fileno()

    def accept(self) -> Link | None:
        """The link to the next one; None if there is none, or it has gone again.

        Raises OSError if this process has no descriptor for it now: it waits in the socket's queue, where the loop sees
        it again and again, so ask after ACCEPT_PAUSE.
        """
        try:
            stream, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return None
        try:
            if stream.family != socket.AF_UNIX:
                live(stream, self._timeout)
            return Link(stream)
        except OSError:
            stream.close()
            return None

    @property
    def state(self) -> ListenerState:
        """What another process has to know of the socket to listen there in the place of this one."""
        return listener_state(self._path)

    def forget(self) -> None:
        """Another process listens there: close what is ours of it."""
        if self._path is not None:
            self._path.forget()
        else:
            self._socket.close()

    def close(self) -> None:
        """Nobody comes any more."""
        if self._path is not None:
            self._path.close()
        else:
            self._socket.close()


def _bound(place: Place) -> socket.socket:
    if not place.host:
        return socket.create_server(("", place.port), backlog=_BACKLOG, family=socket.AF_INET6, dualstack_ipv6=True)
    family = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((place.host, place.port), backlog=_BACKLOG, family=family)
