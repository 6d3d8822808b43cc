"""Where clients come from: a socket path of our own, or a descriptor that was handed down.

All sockets here are AF_UNIX streams, non-blocking and not inherited. Whatever prevents one is a ConfigError.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection
from dataclasses import dataclass
from errno import ECONNREFUSED, ENOENT, EPROTOTYPE
from typing import Final, NamedTuple

from ..errors import ConfigError
from .access import OWN_USER, OWNER_ONLY, SocketAccess
from .directory import Directory

MAX_PATH: Final = 107
"""Bytes of a socket path: what sockaddr_un holds besides the NUL."""
BACKLOG: Final = 64
_PATIENCE: Final = 2.0
_LAST_PATIENCE: Final = 0.2
"""Seconds that the start, and the end, wait for others who are busy in the same directory."""


@dataclass
class ListenerState:
    """A listening socket: its path, and what is there (its device and inode), empty and 0 for one that was handed down
    by whoever has started the server."""

    path: str = ""
    device: int = 0
    inode: int = 0


class Adopted(NamedTuple):
    """A listening socket of another process, and the descriptor of it that is ours now."""

    state: ListenerState
    fd: int


class SocketPath:
    """A listening socket at a path that is removed again by `close`, if it is still ours then.

    A stale socket is replaced, one that answers is not, and of servers that start together one has it. `access` says
    who may connect besides root, and holds before anybody can; unless told otherwise that is our own user only.
    """

    def __init__(self, path: str, access: SocketAccess = OWN_USER, adopted: Adopted | None = None) -> None:
        """`adopted` is the socket that listens there already, in the server that hands over to this one; it is left to
        the caller if this raises."""
        _check_form(path)
        self.path: Final = path
        self._directory: Final = Directory(path)
        try:
            self.socket: Final = _unix_socket() if adopted is None else socket.socket(fileno=adopted.fd)
        except BaseException:
            self._directory.close()
            raise
        self._inode: tuple[int, int]
        if adopted is not None:
            self._inode = adopted.state.device, adopted.state.inode
            return
        try:
            with self._directory.alone(_PATIENCE):
                self._inode = self._listen(path, access)
        except BaseException:
            self._directory.close()
            raise

    @property
    def state(self) -> ListenerState:
        """What another process needs to take its place."""
        return ListenerState(self.path, *self._inode)

    def forget(self) -> None:
        """Another process listens there: close what is ours of it."""
        self.socket.close()
        self._directory.close()

    def close(self) -> None:
        """Stop listening, and remove the path unless somebody else has replaced it."""
        # While the socket is open, no other can have the number of its inode.
        with self._directory.alone(_LAST_PATIENCE):
            try:
                status = os.lstat(self.path)
                if (status.st_dev, status.st_ino) == self._inode:
                    os.unlink(self.path)
            except OSError:
                pass  # gone already, or no longer ours to remove
        self.socket.close()
        self._directory.close()

    def _listen(self, path: str, access: SocketAccess) -> tuple[int, int]:
        try:
            _remove_stale(path)
            os.fchmod(self.socket.fileno(), OWNER_ONLY)  # before bind, which takes the mode over
            self.socket.bind(path)
            status = os.lstat(path)
            try:
                access.apply(path)
                self.socket.listen(BACKLOG)
            except BaseException:
                os.unlink(path)
                raise
        except ConfigError:
            self.socket.close()
            raise
        except FileNotFoundError:
            self.socket.close()
            raise ConfigError(_no_directory(path)) from None
        except OSError as error:
            self.socket.close()
            raise ConfigError(f"cannot listen at socket path {path}: {error.strerror}") from None
        return status.st_dev, status.st_ino


def listener_state(own: SocketPath | None) -> ListenerState:
    """That of a listening socket, which is `own` unless it was handed down."""
    return ListenerState() if own is None else own.state


def check_path(path: str) -> None:
    """Whether there could be a socket at `path`, as far as this is seen without making one; a server that runs may
    have it. Raises ConfigError."""
    _check_form(path)
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise ConfigError(_no_directory(path))
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot listen at socket path {path}: Permission denied")
    _check_kind(path)


Listening = tuple[socket.socket, SocketPath | None]
"""A listening socket, and its path if that is ours."""


def listening(
    path: str | None,
    fd: int | None,
    access: SocketAccess = OWN_USER,
    adopted: Adopted | None = None,
    kinds: Collection[int] = (socket.AF_UNIX,),
) -> Listening:
    """A listening socket at `path`, for those of `access`; or the one that was handed down as `fd`, which must be
    listening; or the `adopted` one of a server that hands over, which is left to the caller if this raises. Raises
    ConfigError."""
    if adopted is not None:
        if adopted.state.path:
            own = SocketPath(adopted.state.path, access, adopted)
            return own.socket, own
        sock = socket.socket(fileno=adopted.fd)
        if sock.family not in kinds:
            sock.detach()
            raise ConfigError(f"file descriptor {adopted.fd} is a socket of another family")
        return sock, None
    if path is not None:
        own = SocketPath(path, access)
        return own.socket, own
    assert fd is not None
    sock, listens = inherited(fd)
    if not listens:
        sock.close()
        raise ConfigError(f"file descriptor {fd} is not a listening socket")
    return sock, None


def inherited(fd: int) -> tuple[socket.socket, bool]:
    """The socket that was handed down as `fd`, and whether it listens (else it is connected)."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConfigError(f"file descriptor {fd} is not a socket")
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"file descriptor {fd} cannot be used: {error.strerror}") from None
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ConfigError(f"file descriptor {fd} is not a Unix stream socket")
        sock.set_inheritable(False)
        sock.setblocking(False)
        listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if not listens:
            sock.getpeername()
    except OSError:
        sock.detach()
        raise ConfigError(f"file descriptor {fd} is a socket that neither listens nor is connected") from None
    except ConfigError:
        sock.detach()
        raise
    return sock, listens


def probe(path: str) -> int:
    """The error code of connecting a datagram socket to `path`. EPROTOTYPE says that somebody has a stream socket
    there, and who listens at it does not see a client come and go; ECONNREFUSED says that the socket is stale."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        try:
            return sock.connect_ex(path)
        except OSError:  # a path that no socket can have
            return ENOENT


def _check_form(path: str) -> None:
    length = len(os.fsencode(path))
    if not 0 < length <= MAX_PATH:
        raise ConfigError(f"socket path {path!r} is {length} bytes long; it must have 1 to {MAX_PATH}")
    if "\0" in path:
        raise ConfigError(f"socket path {path!r} contains a NUL")


def _no_directory(path: str) -> str:
    return f"socket path {path}: the directory {os.path.dirname(path)} does not exist"


def _check_kind(path: str) -> bool:
    """Whether a socket is there; anything else is a ConfigError."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"socket path {path} exists and is not a socket; choose another or remove it")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"socket path {path}: {error.strerror}") from None
    return True


def _remove_stale(path: str) -> None:
    if not _check_kind(path):
        return
    code = probe(path)
    if code == ECONNREFUSED:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ConfigError(f"stale socket {path} cannot be removed: {error.strerror}") from None
    elif code == EPROTOTYPE:
        raise ConfigError(f"socket path {path} is in use by a running server")
    elif code == 0:
        raise ConfigError(f"socket path {path} exists and cannot be replaced: it is a datagram socket in use")
    elif code != ENOENT:
        raise ConfigError(f"socket path {path} exists and cannot be replaced: {os.strerror(code)}")


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
