"""Where a virtual network adapter's cable leads: the other end takes and gives Ethernet frames. `tap` has another one.

An end never blocks. What it has no room for is lost, as in a network; what is lost because nobody reads is counted.
"""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from ..state import U64
from ..usb.device import Loop, Timer
from ..usb.handover import CannotHandOver
from ..usb.transfer import behind
from .connection import Connection, Taken

_log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds for which a program that does not read may hold up the guest, and the guest a program; then what is sent is
lost."""
_LENGTH = Struct(">I")
_LONGEST = 4096 + 65536
"""Bytes of the longest frame that a program may send; QEMU has the same limit."""
_EMPTY = 256
"""Frames without a byte that are left out before others have their turn."""
_PIECES = 512
"""What one system call sends: frames and their lengths (IOV_MAX is 1024)."""


class FrameEnd(ABC):
    """One end of a network cable. Made in any thread; the methods are for the loop's thread, `start` first."""

    label: str
    """What it is, for people."""
    connected = True
    """Whether somebody is there: what the adapter shows as carrier."""
    has_room = True
    """Whether `send` may be called now without holding what it cannot send."""
    lost = 0
    """Frames that `send` could not send."""

    @abstractmethod
    def start(self, loop: Loop, arrived: Callable[[], object], changed: Callable[[], object]) -> None:
        """Begin. `arrived` is called while there is something to receive, and has to receive some of it; `changed`
        when `connected` or `has_room` have changed."""

    @abstractmethod
    def receive(self, room: memoryview) -> int:
        """Put the next frame into `room`; its length, 0 for none now. A frame that is longer is cut off to what there
        is room for, or skipped."""

    def wait(self) -> bool:
        """There is no room for more from here: whether it can stay where it is. Then `arrived` is not called before
        `go_on`, or before it has waited too long: after that, the answer is no."""
        return False

    def go_on(self) -> None:
        """There is room again."""
        return

    @abstractmethod
    def send(self, frames: Sequence[memoryview]) -> None:
        """Send frames. They may change afterwards."""

    @abstractmethod
    def close(self) -> None:
        """End it and give back what it holds; if another process goes on with it, nothing but that."""

    @abstractmethod
    def state(self) -> EndState:
        """What another process has to know to go on with it."""

    @property
    @abstractmethod
    def descriptors(self) -> dict[str, int]:
        """What another process gets to go on with it; none if nobody is there."""


class EndKind(Enum):
    """Where a cable leads."""

    TAP = "tap"
    SOCKET = "socket"


@dataclass
class EndState:
    """An end that goes over. Of a stream: what was received and is not the adapter's yet, and what is not sent yet; and
    whether nobody has read for too long."""

    kind: EndKind
    lost: U64
    received: bytes = b""
    unsent: bytes = b""
    deaf: bool = False


class Stream(FrameEnd):
    """A connection to a Unix stream socket with frames that have their length before them, 4 bytes, big end first:
    what QEMU's `-netdev stream` and passt speak. Raises DeviceError if nobody listens there.

    When the other end closes it, it is made again as soon as somebody listens.
    """

    def __init__(self, path: str, *, taken: tuple[EndState, Taken] | None = None) -> None:
        """`taken`: another process has connected it and handed it over. Raises CannotHandOver."""
        if taken is not None and len(taken[0].received) > 2 * (_LENGTH.size + _LONGEST):
            raise CannotHandOver(f"virtual:network: there is no room for {len(taken[0].received)} bytes received")
        self.label = path
        self._loop: Loop | None = None
        self._arrived: Callable[[], object] = lambda: None
        self._changed: Callable[[], object] = lambda: None
        self._patience: Timer | None = None
        self._connection = Connection(path, "virtual:network: socket=", taken=taken[1] if taken is not None else None)
        self.connected = self._connection.socket is not None
        self._is_deaf = False
        """Nobody has read for too long."""
        self._buffer = memoryview(bytearray(2 * (_LENGTH.size + _LONGEST)))
        self._start = self._end = 0
        """What of the buffer has been received and not been given away."""
        self._empty = 0
        """How many of the present turn have been left out."""
        self._is_called = False
        """Whether it is going to be looked at."""
        self._waiting: Timer | None = None
        """How long nothing is received because there is no room."""
        self._is_overdue = False
        """There was none for too long."""
        self._unsent: list[memoryview] = []
        """The rest of what `send` could not send."""
        if taken is not None:
            self._go_on_from(taken[0])

    def _go_on_from(self, state: EndState) -> None:
        self.lost, self._end = state.lost, len(state.received)
        self._buffer[: self._end] = state.received
        self._is_deaf = state.deaf
        if state.unsent:
            self._unsent = [memoryview(state.unsent)]

    def start(self, loop: Loop, arrived: Callable[[], object], changed: Callable[[], object]) -> None:
        self._loop, self._arrived, self._changed = loop, arrived, changed
        self._connection.start(loop, self._made)
        if self._socket is not None:
            loop.add_reader(self._socket.fileno(), self._readable)
            if self._has_frame:
                self._call()
            if self._unsent:
                self._hold()

    def state(self) -> EndState:
        received = bytes(self._buffer[self._start : self._end])
        return EndState(EndKind.SOCKET, self.lost, received, b"".join(self._unsent), self._is_deaf)

    @property
    def descriptors(self) -> dict[str, int]:
        return self._connection.descriptors

    def close(self) -> None:
        self._arrived = self._changed = lambda: None
        self._disconnect()
        self._connection.close()
        self._loop = None

    # -- frames from there -------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._empty = 0
        self._arrived()
        # What has been read from the socket does not make it readable any more.
        if self._has_frame and self._waiting is None:
            self._call()

    def _call(self) -> None:
        if not self._is_called and self._loop is not None:
            self._is_called = True
            self._loop.call_soon(self._called)

    def _called(self) -> None:
        self._is_called = False
        if self._has_frame and self._waiting is None:
            self._readable()

    @property
    def _has_frame(self) -> bool:
        have = self._end - self._start - _LENGTH.size
        return have >= 0 and have >= _LENGTH.unpack_from(self._buffer, self._start)[0]

    def receive(self, room: memoryview) -> int:
        while self._socket is not None and self._empty < _EMPTY:
            have = self._end - self._start
            length = _LENGTH.unpack_from(self._buffer, self._start)[0] if have >= _LENGTH.size else 0
            if length > _LONGEST:
                self._lose(f"it says that a frame has {length} bytes")
            elif have >= _LENGTH.size + length:
                first = self._start + _LENGTH.size
                self._start = first + length
                if length:
                    size = min(length, len(room))
                    room[:size] = self._buffer[first : first + size]
                    return size
                self._empty += 1
            elif not self._read(self._socket):
                return 0
        return 0

    def wait(self) -> bool:
        if self._waiting is None and not self._is_overdue and self._loop is not None and self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._waiting = self._loop.call_later(_PATIENCE, self._waited)
        return self._waiting is not None

    def _waited(self) -> None:
        self._is_overdue = True
        self._receive_again()

    def go_on(self) -> None:
        self._is_overdue = False
        self._receive_again()

    def _receive_again(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            if self._loop is not None and self._socket is not None:
                self._loop.add_reader(self._socket.fileno(), self._readable)
                self._call()

    def _read(self, connection: socket.socket) -> bool:
        have = self._end - self._start
        if self._start:
            self._buffer[:have] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have
        try:
            count = connection.recv_into(self._buffer[have:])
        except BlockingIOError:
            return False
        except OSError as error:
            self._lose(error.strerror or str(error))
            return False
        if not count:
            self._lose("the other end has closed it")
            return False
        self._end += count
        return True

    # -- frames to there ---------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[memoryview]) -> None:
        if self._socket is None or self._is_deaf:
            self.lost += len(frames)
            return
        rest: list[memoryview] = []
        for frame in frames:
            rest.append(memoryview(_LENGTH.pack(len(frame))))
            rest.append(frame)
        if not self._unsent:
            rest = self._write(rest)
        if rest and self._socket is not None:
            # At most the one block that was just begun: with that there is no room for more.
            self._unsent.append(memoryview(b"".join(rest)))
            self._hold()

    def _write(self, pieces: list[memoryview]) -> list[memoryview]:
        """Send from the beginning; what is left."""
        while pieces and self._socket is not None:
            try:
                count = self._socket.sendmsg(pieces[:_PIECES])
            except BlockingIOError:
                break
            except OSError as error:
                self._lose(error.strerror or str(error))
                return []
            pieces = behind(pieces, count)
        return pieces

    def _hold(self) -> None:
        if self._loop is not None and self._socket is not None and self.has_room:
            self.has_room = False
            self._loop.add_writer(self._socket.fileno(), self._writable)
            self._patience = self._loop.call_later(_PATIENCE, self._give_up)

    def _writable(self) -> None:
        before = sum(map(len, self._unsent))
        self._unsent = self._write(self._unsent)
        if self._socket is None or self._loop is None:
            return
        if not self._unsent:
            self._release()
            self._changed()
        elif self._patience is not None and sum(map(len, self._unsent)) < before:
            self._patience.cancel()
            self._patience = self._loop.call_later(_PATIENCE, self._give_up)

    def _release(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._loop is not None and self._socket is not None:
            self._loop.remove_writer(self._socket.fileno())
        self._is_deaf, self.has_room = False, True

    def _give_up(self) -> None:
        self._patience = None
        self._is_deaf, self.has_room = True, True
        self._changed()

    # -- the connection ----------------------------------------------------------------------------------------------

    @property
    def _socket(self) -> socket.socket | None:
        return self._connection.socket

    def _made(self, made: socket.socket) -> None:
        self.connected = True
        if self._loop is not None:
            self._loop.add_reader(made.fileno(), self._readable)
        self._changed()

    def _lose(self, why: str) -> None:
        if self._socket is None:
            return
        _log.info("virtual:network: socket=%s: the connection is lost: %s", self.label, why)
        self._disconnect()
        self._connection.lose()
        self._changed()

    def _disconnect(self) -> None:
        """Stop watching the socket, and forget what was on its way."""
        self._release()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self._loop is not None and self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
        self.connected = False
        self._start = self._end = 0
        self._unsent = []
