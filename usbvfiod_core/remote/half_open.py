"""TCP connections that have ended here and perhaps not at the other end, which the network kept from hearing of it.

A server keeps a device for an importer in which it still believes, for hours if nothing is to be sent. So the next
connection to the same place comes from the same port. The other end answers it for the old connection, is told that
there is no such connection, and forgets that one (RFC 9293, 3.5.1).
"""

from __future__ import annotations

import errno
import socket
import sys
from collections import deque
from typing import Any, Final

MOST: Final = 32
"""Ports that are remembered for one place: a device has one connection."""
PLACES: Final = 256
"""Places that are remembered; one more, and all are forgotten."""

_LOCAL_PORT_RANGE: Final = 51
"""ip(7)."""
_IN_USE: Final = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
"""The old connection has not ended here, it was not long ago, or the address is not ours any more."""

Address = tuple[Any, ...]
"""As sockets of the Internet families have it."""


class HalfOpen:
    """What is remembered, for all connections of a process. Called in any thread."""

    def __init__(self) -> None:
        self._ports: dict[Address, deque[Address]] = {}

    def remember(self, local: Address, remote: Address) -> None:
        """A connection between these has ended here, and the other end has not said that it knows."""
        if remote not in self._ports and len(self._ports) >= PLACES:
            self._ports.clear()
        self._ports.setdefault(remote, deque(maxlen=MOST)).append(local)

    def connect(self, family: int, remote: Address, timeout: float) -> socket.socket:
        """Connect from the port of an old connection to `remote`, if there is one. Raises OSError."""
        try:
            local = self._ports[remote].popleft()
        except LookupError:
            return _connected(family, remote, timeout, None)
        try:
            return _connected(family, remote, timeout, local)
        except OSError as error:
            if not isinstance(error, ConnectionError):
                self.remember(local, remote)
            if error.errno not in _IN_USE:
                raise
        return _connected(family, remote, timeout, None)


def _choose(stream: socket.socket, local: Address) -> None:
    """Have `connect` choose this port. The range of one port needs no right to bind, which a sandbox does not give."""
    port = local[1]
    try:
        stream.setsockopt(socket.IPPROTO_IP, _LOCAL_PORT_RANGE, (port | port << 16).to_bytes(4, sys.byteorder))
    except OSError:  # Linux before 6.3, whose Landlock does not look at ports
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stream.bind(local)


def _connected(family: int, remote: Address, timeout: float, local: Address | None) -> socket.socket:
    stream = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if local is not None:
            _choose(stream, local)
        stream.settimeout(timeout)
        stream.connect(remote)
    except BaseException:
        stream.close()
        raise
    return stream
