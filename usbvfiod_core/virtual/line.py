"""What a virtual serial port's line leads to: a pseudo-terminal, a socket, or a file.

A line never blocks. It takes and gives what it can now, and calls `moved` when it could be more, so that a port with
nothing to do costs nothing. While nobody is at the other end, what the guest sends is lost, as on a real line; so a
guest that logs to its serial port is never held up by it.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import termios
import tty
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..errors import ConfigError, DeviceError
from ..state import U64
from ..usb.device import Loop
from .connection import Connection, Taken
from .files import claim, make_or_open
from .image import IOV_MAX

_log = logging.getLogger(__name__)

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_TERMINALS = "/dev/pts/"


class Line(ABC):
    """One end of a line. Made in any thread; the methods are for the loop's thread, `start` first."""

    label: str
    """Where the other end is, for people."""
    connected = True
    """Whether somebody is there, as far as this can be known: what the port shows as carrier."""

    def start(self, loop: Loop, moved: Callable[[], object]) -> None:
        """Begin. `moved` is called when there may be something to read, room to write, or `connected` has changed."""
        return

    @abstractmethod
    def read(self, windows: list[memoryview]) -> int:
        """Fill the windows from their beginning with what is there; the number of bytes, 0 for nothing now."""

    @abstractmethod
    def write(self, windows: list[memoryview]) -> int:
        """Send from the beginning of the windows; the number of bytes, 0 for no room now. What nobody hears counts."""

    @abstractmethod
    def close(self) -> None:
        """End it and give back what it holds."""

    @abstractmethod
    def state(self) -> LineState:
        """What another process has to know to go on with it."""

    @property
    @abstractmethod
    def descriptors(self) -> dict[str, int]:
        """What another process gets to go on with it; none if the other end is gone."""

    def forget(self) -> None:
        """Another process goes on with it: close what is open here, and nothing else."""
        self.close()


@dataclass
class LineState:
    """A line that goes over: `kind` is that of the other end, and `path` where that is for this system, if it has been
    made for the line."""

    kind: LineKind
    path: str = ""
    heard: bool = False
    """Whether somebody has been sent something that may not be read yet."""
    lost: U64 = 0
    """Bytes that were not taken."""


class LineKind(Enum):
    """What is at the other end."""

    TERMINAL = "terminal"
    CONNECT = "connect"
    FILE = "file"


class _Watched(Line):
    """A line on a file descriptor that is watched for changes, once for each: a level that stays would keep the loop
    busy, and a pseudo-terminal that nobody has opened hangs up all the time."""

    def __init__(self) -> None:
        self._moved: Callable[[], object] = lambda: None
        self._loop: Loop | None = None
        self._epoll: select.epoll | None = None

    def start(self, loop: Loop, moved: Callable[[], object]) -> None:
        self._loop, self._moved = loop, moved
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._ready)

    def _watch(self, fd: int) -> None:
        if self._epoll is not None:
            self._epoll.register(fd, _EVENTS)

    def _ready(self) -> None:
        if self._epoll is not None and self._epoll.poll(0):
            self._moved()

    def close(self) -> None:
        if self._epoll is not None and self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None


class Terminal(_Watched):
    """A new pseudo-terminal in raw mode; the other end is the device file that `label` names.

    `link` is a path for a symbolic link to it, removed by `close`; a link to a terminal that is there already is
    replaced, anything else is a ConfigError. Raises DeviceError if the system has no terminal left.
    """

    def __init__(self, link: str = "", *, taken: tuple[LineState, int] | None = None) -> None:
        """`taken`: another process has made it and handed it over, with this descriptor."""
        super().__init__()
        self._link = link
        self._was_heard = False
        if taken is not None:
            state, self._fd = taken
            self.path, self._was_heard = state.path, state.heard
            self.label = link or self.path
            return
        try:
            self._fd, slave = os.openpty()
        except OSError as error:
            raise DeviceError(f"virtual:serial gets no pseudo-terminal: {error.strerror}") from None
        try:
            tty.setraw(slave)
            self.path = os.ttyname(slave)
            # From now on the system tells whether somebody has it open.
            os.close(slave)
            os.set_blocking(self._fd, False)
            if link:
                _make_link(self.path, link)
        except BaseException:
            os.close(self._fd)
            raise
        self.label = link or self.path

    def start(self, loop: Loop, moved: Callable[[], object]) -> None:
        super().start(loop, moved)
        self._watch(self._fd)

    def read(self, windows: list[memoryview]) -> int:
        try:
            return os.readv(self._fd, windows[:IOV_MAX])
        except OSError:  # nothing there, or (EIO) nobody
            return 0

    def write(self, windows: list[memoryview]) -> int:
        if self._is_alone():
            if self._was_heard:
                self._was_heard = False
                self._forget_unread()
            return sum(map(len, windows))
        try:
            count = os.writev(self._fd, windows[:IOV_MAX])
        except OSError:
            return 0
        self._was_heard = True
        return count

    def _is_alone(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def _forget_unread(self) -> None:
        """What the last one has left unread is not for the next one. From this end Linux would keep some of it."""
        try:
            slave = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            termios.tcflush(slave, termios.TCIFLUSH)
        finally:
            os.close(slave)

    def state(self) -> LineState:
        return LineState(LineKind.TERMINAL, self.path, self._was_heard)

    @property
    def descriptors(self) -> dict[str, int]:
        return {"terminal": self._fd}

    def forget(self) -> None:
        super().close()
        os.close(self._fd)

    def close(self) -> None:
        self.forget()
        if self._link:
            try:
                if os.readlink(self._link) == self.path:
                    os.unlink(self._link)
            except OSError:
                pass  # it is somebody else's now


def _make_link(target: str, link: str) -> None:
    what = f"virtual:serial: link={link}"
    try:
        if os.path.islink(link):
            old = os.readlink(link)
            if not old.startswith(_TERMINALS):
                raise ConfigError(f"{what} is a symbolic link to {old}, and not to a pseudo-terminal; use another")
            os.unlink(link)
        os.symlink(target, link)
    except FileExistsError:
        raise ConfigError(f"{what} exists and is not a symbolic link; use another") from None
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror}") from None


class Remote(_Watched):
    """A connection to a listening Unix stream socket. Raises DeviceError if nobody listens there.

    When the other end closes it, the carrier is gone; it is made again as soon as somebody listens.
    """

    def __init__(self, path: str, *, taken: Taken | None = None) -> None:
        """`taken`: another process has made it and handed it over."""
        super().__init__()
        self.label = path
        self._connection = Connection(path, "virtual:serial: connect=", taken=taken)
        self.connected = self._connection.socket is not None

    def start(self, loop: Loop, moved: Callable[[], object]) -> None:
        super().start(loop, moved)
        self._connection.start(loop, self._made)
        if self._connection.socket is not None:
            self._watch(self._connection.socket.fileno())

    def _made(self, made: socket.socket) -> None:
        self.connected = True
        self._watch(made.fileno())
        self._moved()

    def read(self, windows: list[memoryview]) -> int:
        if self._connection.socket is None or not windows:
            return 0
        try:
            count = os.readv(self._connection.socket.fileno(), windows[:IOV_MAX])
        except BlockingIOError:
            return 0
        except OSError:
            count = 0
        if not count:
            self._lost()
        return count

    def write(self, windows: list[memoryview]) -> int:
        if self._connection.socket is not None:
            try:
                return os.writev(self._connection.socket.fileno(), windows[:IOV_MAX])
            except BlockingIOError:
                return 0
            except OSError:
                self._lost()
        return sum(map(len, windows))

    def _lost(self) -> None:
        self.connected = False
        self._connection.lose()
        self._moved()

    def state(self) -> LineState:
        return LineState(LineKind.CONNECT)

    @property
    def descriptors(self) -> dict[str, int]:
        return self._connection.descriptors

    def close(self) -> None:
        super().close()
        self._connection.close()


class Recording(Line):
    """A file to which what the guest sends is appended; it never says anything. Raises ConfigError or DeviceError.

    It is made if it is not there, and nothing that is in it is changed. Regular files only: they take what is written
    without letting anybody wait for a reader. One that somebody else has locked, a drive's image say, is refused. What
    a full disk does not take is lost, and the first time said.
    """

    def __init__(self, path: str, *, taken: tuple[LineState, int] | None = None) -> None:
        """`taken`: another process has opened and locked it, and handed it over with this descriptor."""
        self.label = path
        self.lost = 0
        """Bytes that the file has not taken."""
        if taken is not None:
            self.lost, self._fd = taken[0].lost, taken[1]
            return
        what = f"virtual:serial: file={path}"
        try:
            self._fd = make_or_open(path, os.O_RDWR | os.O_APPEND, what=what)
        except (OSError, ValueError) as error:
            raise DeviceError(f"{what}: {getattr(error, 'strerror', None) or error}") from None
        claim(self._fd, exclusive=True, what=what, remedy="detach it there, or use another file")

    def read(self, windows: list[memoryview]) -> int:
        return 0

    def write(self, windows: list[memoryview]) -> int:
        try:
            return os.writev(self._fd, windows[:IOV_MAX])
        except OSError as error:
            if not self.lost:
                _log.warning("virtual:serial: file=%s: %s; what it does not take is lost", self.label, error.strerror)
            count = sum(map(len, windows))
            self.lost += count
            return count

    def state(self) -> LineState:
        return LineState(LineKind.FILE, lost=self.lost)

    @property
    def descriptors(self) -> dict[str, int]:
        return {"file": self._fd}

    def close(self) -> None:
        os.close(self._fd)
