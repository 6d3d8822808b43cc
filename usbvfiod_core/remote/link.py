"""A connected stream to the other end: TCP, a Unix socket, or a command that leads there; tls.py has TLS over it."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from .half_open import HalfOpen
from .patience import Patience

IOV_MAX: Final = 1024
"""Windows that one system call takes."""
_TLS_ALERTS: Final = (b"\x15\x03\x00", b"\x15\x03\x01", b"\x15\x03\x02", b"\x15\x03\x03")
"""The beginning of an alert (RFC 8446 5.1), with which a server answers to what is no TLS."""
_RESET: Final = struct.pack("ii", 1, 0)
"""Of SO_LINGER (socket(7)): nothing is waited for."""
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Before an IPv4 address where a socket is of IPv6 (RFC 4291 2.5.5.2)."""
half_open: Final = HalfOpen()


class LinkLost(Exception):
    """The other end, or the way there, is gone; the message says for people how that showed."""


class Link:
    """A connected, non-blocking stream. Made by `connect` in a thread; then used on one thread, the loop's say.

    receive, send: see there. `close` gives everything back, also the command.
    silent   the other end may not hear of the end, since it is not heard of any more
    """

    def __init__(self, stream: socket.socket, child: subprocess.Popen[bytes] | None = None) -> None:
        stream.setblocking(False)
        self._socket = stream
        self._child = child
        self._ends = _ends(stream)
        self._is_begun = False
        """Whether the other end has said something."""
        self.silent = False

    def fileno(self) -> int:
        """What the loop watches."""
        return self._socket.fileno()

    @property
    def origin(self) -> bytes:
        """Whose it is, for shares of what there is little of: the other end's IPv4 address, or the 64-bit prefix of its
        network, as a host has that for itself (RFC 4291 2.5.4). Empty for a way within this host."""
        if self._ends is None:
            return b""
        address = socket.inet_pton(self._socket.family, self._ends[1][0].partition("%")[0])
        return address[len(_MAPPED) :] if address.startswith(_MAPPED) else address[:8]

    @property
    def pending(self) -> bool:
        """Whether there is something to receive that the descriptor does not show."""
        return False

    @property
    def committed(self) -> bool:
        """Whether `send` has to be given again what it had no room for."""
        return False

    def receive(self, windows: Sequence[memoryview]) -> int | None:
        """Fill `windows` from their beginning: the number of bytes, None for nothing now. Raises LinkLost."""
        try:
            count = self._socket.recvmsg_into(windows[:IOV_MAX])[0]
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self._lost(error) from None
        if not count:
            raise self._closed()
        if not self._is_begun:
            self._is_begun = True
            if count >= len(_TLS_ALERTS[0]) and bytes(windows[0][: len(_TLS_ALERTS[0])]) in _TLS_ALERTS:
                raise LinkLost("the other end speaks TLS, and we do not; tls=yes is for that")
        return count

    def send(self, windows: Sequence[memoryview]) -> int:
        """Send from the beginning of `windows`: the number of bytes, 0 for no room now. Raises LinkLost."""
        try:
            return self._socket.sendmsg(windows[:IOV_MAX])
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self._lost(error) from None

    def hand_over(self) -> int:
        """The descriptor with which another process goes on with it (`taken_over`); it stays this one's, too. Raises
        CannotHandOver."""
        return self._socket.fileno()

    @classmethod
    def taken_over(cls, fd: int) -> Link:
        """That of another process. The descriptor belongs to the link unless OSError is raised."""
        made = cls(socket.socket(fileno=fd))
        made._is_begun = True
        return made

    def forget(self) -> None:
        """Another process goes on with it: close the descriptor, and leave a command alone, which ends when the other
        process closes its."""
        self._ends = self._child = None
        self._socket.close()

    def close(self) -> None:
        """End it."""
        if self._ends is not None and self.silent:
            half_open.remember(*self._ends)
            self._ends = None
            # With a reset, which does not wait for the other end, so that the port can be used again.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end(self._socket, self._child)
        self._child = None

    def _closed(self) -> LinkLost:
        if self._is_begun or self._ends is None:
            return LinkLost("the other end has closed the connection")
        # Servers of OpenSSL, such as stunnel, send no alert to what does not begin as TLS does.
        return LinkLost("the other end has closed the connection without a word; perhaps it wants TLS (tls=yes)")

    def _lost(self, error: OSError) -> LinkLost:
        self.silent = not isinstance(error, ConnectionError)
        if not (self.silent or self._is_begun):
            return self._closed()
        if isinstance(error, TimeoutError):
            return LinkLost("the other end, or the network, does not answer any more")
        return LinkLost(error.strerror or str(error))

    # -- in a thread, before there is a device --------------------------------------------------------------------

    def send_all(self, data: bytes, patience: Patience) -> None:
        """Send everything. Raises LinkLost, also where patience is over."""
        rest = memoryview(data)
        while rest:
            try:
                sent = self.send([rest])
            except LinkLost:
                self.receive([memoryview(bytearray(4096))])  # the other end may have said why before it hung up
                raise
            rest = rest[sent:]
            patience.moved(sent)
            if not sent:
                self._wait(select.POLLOUT, patience)

    def receive_exactly(self, count: int, patience: Patience) -> bytes:
        """The next `count` bytes. Raises LinkLost, also where patience is over."""
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            got = self.receive([rest])
            if got is None:
                self._wait(select.POLLIN, patience)
            else:
                rest = rest[got:]
                patience.moved(got)
        return bytes(data)

    def _wait(self, events: int, patience: Patience) -> None:
        left = patience.left
        poll = select.poll()
        poll.register(self._socket, events)
        if not left or not poll.poll(left * 1000):
            self.silent = True
            raise LinkLost("the other end does not answer")


def _ends(stream: socket.socket) -> tuple[Any, Any] | None:
    """The addresses of both ends of a connection over the network that is still there."""
    if stream.family not in _INTERNET:
        return None
    try:
        return stream.getsockname(), stream.getpeername()
    except OSError:
        return None  # the other end has reset it; what it has said before can be read


def end(stream: socket.socket, child: subprocess.Popen[bytes] | None) -> None:
    """Close a stream, and end the command that it leads to."""
    stream.close()
    if child is not None:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
