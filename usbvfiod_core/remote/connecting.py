"""Connecting the other end, in every way that the options of a remote device have."""

from __future__ import annotations

import errno
import shlex
import socket
import subprocess
import time
from contextlib import suppress
from typing import Final

from ..errors import DeviceAway, DeviceError
from .link import Link, end, half_open
from .options import RemoteOptions
from .place import Place
from .tls import encrypted, tls_refusal

_KEEPALIVES: Final = 3


def connect(place: Place, options: RemoteOptions) -> Link:
    """Connect `place` in the way that `options` say. In a thread. When its name is known, which takes as long as the
    system's resolver does, the other end has `options.timeout` seconds to be there, and as many for TLS.

    Raises DeviceAway if nobody is there now, DeviceError if that will not change by itself.
    """
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
            stream = _tcp(place, options.timeout)
    except OSError as error:
        raise _refusal(where, error) from error
    if not options.tls:
        return Link(stream, child)
    try:
        return encrypted(stream, child, place.host, options)
    except BaseException as error:
        end(stream, child)
        if isinstance(error, OSError | ValueError):
            raise tls_refusal(where, options, error) from error
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


def _tcp(place: Place, timeout: int) -> socket.socket:
    failure: OSError | None = None
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=_numeric(place.host))
    deadline = time.monotonic() + timeout
    for number, (family, *_, address) in enumerate(found):
        left = max(deadline - time.monotonic(), 0.1) / (len(found) - number)
        try:
            stream = half_open.connect(family, address, left)
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
