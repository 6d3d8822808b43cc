"""A way to the other end: TCP, TLS over it, a Unix socket, or a command that leads there."""

from __future__ import annotations

import errno
import select
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..errors import DeviceAway, DeviceError
from .half_open import HalfOpen
from .options import RemoteOptions
from .place import Place

if TYPE_CHECKING:
    import ssl

IOV_MAX: Final = 1024
"""Windows that one system call takes."""
_TLS_PIECE: Final = 1 << 14
"""Bytes of a TLS record (RFC 8446 5.1)."""
_KEEPALIVES: Final = 3
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_half_open: Final = HalfOpen()


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
        self._ends = (stream.getsockname(), stream.getpeername()) if stream.family in _INTERNET else None
        self.silent = False

    def fileno(self) -> int:
        """What the loop watches."""
        return self._socket.fileno()

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
            raise LinkLost("the other end has closed the connection")
        return count

    def send(self, windows: Sequence[memoryview]) -> int:
        """Send from the beginning of `windows`: the number of bytes, 0 for no room now. Raises LinkLost."""
        try:
            return self._socket.sendmsg(windows[:IOV_MAX])
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self._lost(error) from None

    def close(self) -> None:
        """End it."""
        if self._ends is not None and self.silent:
            _half_open.remember(*self._ends)
            self._ends = None
        _end(self._socket, self._child)
        self._child = None

    def _lost(self, error: OSError) -> LinkLost:
        self.silent = not isinstance(error, ConnectionError)
        if isinstance(error, TimeoutError):
            return LinkLost("the other end, or the network, does not answer any more")
        return LinkLost(error.strerror or str(error))

    # -- in a thread, before there is a device --------------------------------------------------------------------

    def send_all(self, data: bytes, deadline: float) -> None:
        """Send everything until `deadline` of `time.monotonic`. Raises LinkLost."""
        rest = memoryview(data)
        while rest:
            sent = self.send([rest])
            rest = rest[sent:]
            if not sent:
                self._wait(select.POLLOUT, deadline)

    def receive_exactly(self, count: int, deadline: float) -> bytes:
        """The next `count` bytes, which must be there until `deadline` of `time.monotonic`. Raises LinkLost."""
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            got = self.receive([rest])
            if got is None:
                self._wait(select.POLLIN, deadline)
            else:
                rest = rest[got:]
        return bytes(data)

    def _wait(self, events: int, deadline: float) -> None:
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._socket, events)
        if left <= 0 or not poll.poll(left * 1000):
            self.silent = True
            raise LinkLost("the other end does not answer")


class TlsLink(Link):
    """A link that is encrypted."""

    _socket: ssl.SSLSocket

    def __init__(self, stream: ssl.SSLSocket, child: subprocess.Popen[bytes] | None) -> None:
        super().__init__(stream, child)
        self._unsent = b""
        """What OpenSSL has to be given again, unchanged, before anything else."""

    @property
    def pending(self) -> bool:
        return self._socket.pending() > 0

    @property
    def committed(self) -> bool:
        return bool(self._unsent)

    def receive(self, windows: Sequence[memoryview]) -> int | None:
        import ssl

        done = 0
        try:
            for window in windows[:IOV_MAX]:
                while window:
                    count = self._socket.recv_into(window)
                    if not count:
                        if done:
                            return done
                        raise LinkLost("the other end has closed the connection")
                    done += count
                    window = window[count:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            if not done:
                raise self._lost(error) from None
        return done or None

    def send(self, windows: Sequence[memoryview]) -> int:
        import ssl

        done = 0
        try:
            for window in windows[:IOV_MAX]:
                while window:
                    piece = self._unsent or bytes(window[:_TLS_PIECE])
                    self._unsent = piece
                    count = self._socket.send(piece)
                    self._unsent = b""
                    done += count
                    window = window[count:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            raise self._lost(error) from None
        return done


def connect(place: Place, options: RemoteOptions) -> Link:
    """Connect `place` in the way that `options` say. In a thread; takes `options.timeout` seconds at most.

    Raises DeviceAway if nobody is there now, DeviceError if that will not change by itself.
    """
    deadline = time.monotonic() + options.timeout
    child = None
    try:
        if options.unix is not None:
            where = str(options.unix)
            stream = _unix(where, options.timeout)
        elif options.command is not None:
            where = options.command
            stream, child = _command(options.command)
        else:
            where = str(place)
            stream = _tcp(place, options.timeout, deadline)
    except OSError as error:
        raise _refusal(where, error) from error
    if not options.tls:
        return Link(stream, child)
    try:
        return TlsLink(_encrypted(stream, place, options, max(deadline - time.monotonic(), 0.1)), child)
    except BaseException as error:
        _end(stream, child)
        if isinstance(error, OSError | ValueError):
            raise _tls_refusal(where, error) from error
        raise


# -- own ---------------------------------------------------------------------------------------------------------------


def _unix(path: str, timeout: float) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        stream.settimeout(timeout)
        stream.connect(path)
    except BaseException:
        stream.close()
        raise
    return stream


def _tcp(place: Place, timeout: int, deadline: float) -> socket.socket:
    failure: OSError | None = None
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=_numeric(place.host))
    for number, (family, *_, address) in enumerate(found):
        left = max(deadline - time.monotonic(), 0.1) / (len(found) - number)
        try:
            stream = _half_open.connect(family, address, left)
        except OSError as error:
            failure = failure or error
        else:
            live(stream, timeout)
            return stream
    raise failure or OSError(errno.EADDRNOTAVAIL, "it has no address")


def _numeric(host: str) -> int:
    """An address is not looked up anywhere."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host.partition("%")[0])
            return socket.AI_NUMERICHOST
    return 0


def live(stream: socket.socket, timeout: int) -> None:
    """Notice within `timeout` that the other end is gone, whether something is on its way to it or not (tcp(7))."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(timeout // (_KEEPALIVES + 1), 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(timeout - _KEEPALIVES * interval, 1))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVES)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout * 1000)


def _command(command: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            end = theirs.fileno()
            child = subprocess.Popen(shlex.split(command), stdin=end, stdout=end, start_new_session=True)
        except BaseException:
            ours.close()
            raise
    return ours, child


def _end(stream: socket.socket, child: subprocess.Popen[bytes] | None) -> None:
    stream.close()
    if child is not None:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(1.0)


def _encrypted(stream: socket.socket, place: Place, options: RemoteOptions, timeout: float) -> ssl.SSLSocket:
    import ssl

    context = ssl.create_default_context(cafile=None if options.tls_ca is None else str(options.tls_ca))
    if options.tls_cert is not None:
        context.load_cert_chain(options.tls_cert, options.tls_key, password=_no_password)
    stream.settimeout(timeout)
    return context.wrap_socket(stream, server_hostname=options.tls_name or place.host)


def _no_password() -> str:
    raise ValueError("its key has a password, which nobody is there to type")


def _refusal(where: str, error: OSError) -> DeviceError:
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
        return DeviceAway(f"{where}: no such host is known")
    if isinstance(error, TimeoutError):
        return DeviceAway(f"{where} does not answer")
    if isinstance(error, PermissionError):
        return DeviceError(
            f"{where}: {error.strerror}; in the sandbox, a server connects what its configuration names at its start"
        )
    return DeviceAway(f"{where}: {error.strerror or error}")


def _tls_refusal(where: str, error: OSError | ValueError) -> DeviceError:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return DeviceError(f"{where}: its certificate is not accepted: {error.verify_message}")
    if isinstance(error, TimeoutError):
        return DeviceAway(f"{where} does not answer by TLS")
    if isinstance(error, ssl.SSLError):
        return DeviceAway(f"{where} does not speak TLS with us: {error.reason or error}")
    return DeviceError(f"{where}: TLS: {getattr(error, 'strerror', None) or error}")
