"""The VMM's end of a vfio-user socket: whole messages, sent and received, with their file descriptors."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..errors import UsbvfiodError
from ..vfio_user import wire
from .limits import PATIENCE

_RECEIVE_SIZE = 1 << 16
_FD_SPACE = socket.CMSG_SPACE(4 * wire.MAX_MSG_FDS)


class VfioUserError(UsbvfiodError):
    """The server broke the protocol, or the connection is gone."""


class ReplyTimeoutError(VfioUserError):
    """The server did not answer, or did not read, in time."""


class ReplyError(VfioUserError):
    """The server refused a message; `errno` is the reply's."""

    def __init__(self, command: int, number: int) -> None:
        name = wire.COMMAND_NAMES.get(command, str(command))
        super().__init__(f"{name} was refused: {errno.errorcode.get(number, number)} ({os.strerror(number)})")
        self.command = command
        self.errno = number


@dataclass(frozen=True)
class Message:
    """One message from the server. `fds` belong to the receiver. `errno` is 0 for a success."""

    message_id: int
    command: int
    flags: int
    errno: int
    payload: bytes
    fds: tuple[int, ...] = ()

    @property
    def is_reply(self) -> bool:
        """Whether it answers a command of ours."""
        return self.flags & wire.TYPE_MASK == wire.TYPE_REPLY

    @property
    def is_error(self) -> bool:
        """Whether the Error flag is set."""
        return bool(self.flags & wire.ERROR)


class ClientConnection:
    """One connection to a vfio-user server, without knowledge of what the messages mean.

    `timeout` (seconds) bounds every send and every wait for a reply. Use it as a context manager, or call `close`.
    Not thread-safe.
    """

    def __init__(self, sock: socket.socket, *, timeout: float = PATIENCE) -> None:
        self.socket = sock
        self._next_id = 0
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._closed = False
        self.timeout = timeout
        # Timeouts of the kernel's, not of Python's, which would poll before each call.
        timeout = max(timeout, 0.001)  # 0 would mean for ever
        seconds = struct.pack("@ll", int(timeout), int(timeout % 1 * 1_000_000))
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def close(self) -> None:
        """Close the connection, and file descriptors that came and were not taken."""
        if not self._closed:
            self._closed = True
            self.socket.close()
            for fd in self._fds:
                os.close(fd)
            self._fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- raw messages ----------------------------------------------------------------------------------------------

    def send(
        self,
        command: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = wire.TYPE_COMMAND,
        message_id: int | None = None,
        size: int | None = None,
        error: int = 0,
    ) -> int:
        """Send one message in one sendmsg and return its id. `size` overrides the size in the header."""
        if message_id is None:
            message_id = self.next_id()
        length = wire.HEADER_SIZE + len(payload) if size is None else size
        self.send_bytes(wire.HEADER.pack(message_id, command, length, flags, error) + payload, fds)
        return message_id

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are. Raises ReplyTimeoutError when the server does not read, VfioUserError when gone."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self.socket.sendmsg([data], ancillary)
            if sent < len(data):
                self.socket.sendall(memoryview(data)[sent:])
        except BlockingIOError:
            raise ReplyTimeoutError(f"the server has not read for {self.timeout} s") from None
        except OSError as error:
            raise VfioUserError(f"the connection is gone: {error.strerror}") from None

    def receive(self) -> Message:
        """The next message from the server, whatever it is."""
        self._fill(wire.HEADER_SIZE)
        message_id, command, size, flags, error = wire.HEADER.unpack_from(self._buffer)
        if not wire.HEADER_SIZE <= size <= wire.MAX_MESSAGE_SIZE:
            raise VfioUserError(f"the server sent a message of {size} bytes")
        self._fill(size)
        payload = bytes(self._buffer[wire.HEADER_SIZE : size])
        del self._buffer[:size]
        fds: tuple[int, ...] = ()
        if self._fds and not self._buffer:
            fds, self._fds = tuple(self._fds), []
        return Message(message_id, command, flags, error, payload, fds)

    def message(
        self,
        command: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = wire.TYPE_COMMAND,
        message_id: int | None = None,
        size: int | None = None,
    ) -> Message:
        """Send a message of any kind and return the reply to it, error or not; checks id, command and type of it."""
        sent = self.send(command, payload, fds, flags=flags, message_id=message_id, size=size)
        return self.receive_reply(command, sent)

    def receive_reply(self, command: int, message_id: int) -> Message:
        """The reply to a command that was sent. A command of the server's on the way is refused, as QEMU does it."""
        while True:
            reply = self.receive()
            if reply.is_reply:
                break
            if not reply.flags & wire.NO_REPLY:
                flags = wire.TYPE_REPLY | wire.ERROR
                self.send(reply.command, flags=flags, message_id=reply.message_id, error=errno.ENOSYS)
        if (reply.message_id, reply.command) != (message_id, command):
            raise VfioUserError(
                f"the reply has id {reply.message_id} and command {reply.command}, "
                f"the command had id {message_id} and command {command}"
            )
        if bool(reply.errno) and not reply.is_error:
            raise VfioUserError(f"the reply has errno {reply.errno} without the Error flag")
        return reply

    def request(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a command and return its reply. Raises ReplyError for a refusal."""
        reply = self.message(command, payload, fds)
        if reply.is_error:
            raise ReplyError(command, reply.errno)
        return reply

    def next_id(self) -> int:
        """The id for the next message."""
        number = self._next_id
        self._next_id = number + 1 & 0xFFFF
        return number

    def send_posted(self, messages: bytes) -> None:
        """Send messages that have no reply."""
        try:
            self.socket.sendall(messages)
        except BlockingIOError:
            raise ReplyTimeoutError(f"the server has not read for {self.timeout} s") from None
        except OSError as error:
            raise VfioUserError(f"the connection is gone: {error.strerror}") from None

    # -- own -------------------------------------------------------------------------------------------------------

    def _fill(self, length: int) -> None:
        """Have at least `length` bytes in the buffer."""
        buffer = self._buffer
        while len(buffer) < length:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(_RECEIVE_SIZE, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                raise ReplyTimeoutError(f"no answer within {self.timeout} s") from None
            except OSError as error:
                raise VfioUserError(f"the connection is gone: {error.strerror}") from None
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(content[: len(content) - len(content) % 4])
                    self._fds.extend(fds)
            if not data:
                raise VfioUserError("the server has closed the connection")
            buffer += data
