"""One client's conversation, without its socket: bytes and file descriptors go in, replies come out.

The transport receives into `space`, says so with `received`, and calls `process` until that returns False; then it
sends `output`. It receives nothing while `process` returns True. Everything is executed strictly in the order of
arrival and answered at once, but for DMA_UNMAP and DEVICE_RESET: they are answered when no transfer uses the memory any
more, and what comes behind them waits.

What a client can do wrong is a ClientError. It becomes an error reply, which is a header alone; with `fatal`, where the
stream cannot be trusted any more, `process` raises it and the connection must be closed. A region access is never
refused for what a guest can cause, because one client waits for the whole reply for ever.

A fault of our own costs one message: it is logged with its traceback and answered with EIO; a region access with ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from errno import EINVAL, EIO
from functools import partial
from struct import Struct
from typing import Final

from ..errors import ClientError
from ..memory import GuestMemory
from ..pci.function import REGISTERS_SIZE, PciFunction
from ..state import require
from .commands import Commands
from .irqs import Eventfds, Holder
from .session_state import SessionState, capabilities_of
from .version import MAX_VERSION_DATA, ClientVersion, negotiate
from .wire import (
    COMMAND_NAMES,
    DEVICE_RESET,
    ERROR,
    HEADER,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    NO_REPLY,
    ONE_DWORD,
    READ_REPLY,
    REGION_MESSAGE,
    REGION_READ,
    REGION_WRITE,
    REGISTER_FIELDS,
    REGISTER_MESSAGE,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    VERSION,
    VERSION_FIELDS,
    WRITE_REPLY,
)

log = logging.getLogger(__name__)

BUFFER_SIZE: Final = 16384
"""Bytes received at a time. A larger message gets a larger buffer while it lasts."""
MAX_PENDING_FDS: Final = 64
"""File descriptors that may come with one message, however it is cut into pieces."""
MAX_COMPLAINTS: Final = 50
"""Refused messages that are logged, per session."""

OTHER_MESSAGE: Final = 16
"""As how many accesses of a register any other message counts: a reset takes sixty times as long."""
_WRITE_SIZE: Final = REGISTER_MESSAGE.size
_READ_SIZE: Final = REGION_MESSAGE.size
_Fields = tuple[int, int, int, int, int, int, int]
"""REGISTER_FIELDS. Compiled code that knows what they are computes with them as numbers, not as objects."""
_unpack: Final = REGISTER_FIELDS.unpack_from
_WRITTEN: Final = Struct("<HIII").pack(REGION_WRITE, _READ_SIZE, TYPE_REPLY, 0)
_READ: Final = Struct("<HIII").pack(REGION_READ, _WRITE_SIZE, TYPE_REPLY, 0)
"""What all replies to such an access have in their headers, behind the ID."""
_SHUT: Final = -1  # no offset: before VERSION, and while descriptors are on their way
_ONES: Final = 0xFFFF_FFFF


class _Hold:
    """A message whose reply waits for `done`."""

    __slots__ = ("command", "finish", "flags", "message_id", "session", "settled")

    def __init__(self, finish: Callable[[], bytes]) -> None:
        self.finish = finish
        self.settled = False
        self.session: Session | None = None  # set while the session waits for this
        self.message_id = self.command = self.flags = 0

    def done(self) -> None:
        self.settled = True
        if self.session is not None:
            self.session.release()


class Session:
    """The conversation with one client, from its first byte on.

    `eventfds` takes over the client's eventfds, `is_private` says of a file whether the client keeps for
    itself what the guest writes to it (see UnsharedRanges), `close_fd` closes a descriptor that nobody took, `resume`
    is called when a held message has been answered from outside `process`, which must then be called again, and
    `introduced` when `client` is known.
    """

    def __init__(
        self,
        function: PciFunction,
        memory: GuestMemory,
        *,
        eventfds: Eventfds,
        is_private: Callable[[int], bool] = lambda fd: False,
        close_fd: Callable[[int], object],
        resume: Callable[[], object],
        introduced: Callable[[], object] = lambda: None,
        holder: Holder | None = None,
    ) -> None:
        self._commands: Final = Commands(
            function,
            memory,
            eventfds=eventfds,
            is_private=is_private,
            wait=self._wait,
            complain=self._complain,
            fault=self._fault,
            send_fd=self._send_fd,
            holder=holder,
        )
        self._close_fd: Final = close_fd
        self._resume: Final = resume
        self._introduced: Final = introduced
        self._read: Final = function.controller.read
        self._write: Final = function.controller.write
        self.client: ClientVersion | None = None
        """Who the client is; None until it has said VERSION."""
        self.interrupts: Final = self._commands.interrupts
        self.output = bytearray()
        """Replies to send, in order; little more than one message's. The transport deletes what it has sent."""
        self.output_fds: list[tuple[int, int]] = []
        """Where in `output` a reply begins that has a descriptor, and the descriptor, which stays its owner's."""
        self.space: memoryview
        """Where to receive to; never empty while `process` has returned False."""
        self.partial = False
        """Part of a message has been received, and `process` has returned False."""
        self.consumed = 0
        """Bytes of messages that have been processed."""
        self._fence = _SHUT  # up to this offset an access of a register goes the short way, in `process` itself
        self._hold: _Hold | None = None
        self._complaints = 0
        self._carried_fds: list[int] = []  # of the message that the last chunk left incomplete
        self._chunk_fds: list[int] = []  # of the last message that starts in the present chunk
        self._chunk_start = 0
        self._start = self._end = 0  # what of the buffer is received and not yet processed
        self._held_from = 0  # where the message begins that is held
        self._set_buffer(BUFFER_SIZE)
        self._handlers: Final = {VERSION: self._version, **self._commands.handlers}

    # -- the transport's side ----------------------------------------------------------------------------------------

    def received(self, count: int, fds: list[int]) -> None:
        """`count` bytes have come into `space`, and `fds` with them; these are the session's to close from now on."""
        self._chunk_start = self._end
        self._chunk_fds = fds
        self._end += count

    def process(self, limit: int = 256) -> bool:
        """Execute what has been received: at most `limit` accesses of registers, and fewer messages of other kinds.

        True: there may be more to do without receiving anything; call again later, or, while `held`, after `resume`.
        Raises ClientError when the connection is to be closed; a reply to that may be in `output`.
        """
        if self.held:
            return True
        buffer, pos, end, out = self._buffer, self._start, self._end, self.output
        unpack, read, write = _unpack, self._read, self._write
        fence = _SHUT if self._chunk_fds or self._carried_fds else self._fence
        stop = pos
        while True:
            try:
                while pos < end and limit > 0:
                    limit -= 1
                    fields: _Fields = unpack(buffer, pos)
                    message_id, command, size, flags, offset, where, value = fields
                    stop = pos + size
                    # Registers, four bytes at a time: nearly everything that ever comes. `stop` within `end` says that
                    # what was unpacked has been received.
                    if offset <= fence and where == ONE_DWORD and not offset & 3 and stop <= end:
                        if command == REGION_WRITE:
                            if size == _WRITE_SIZE:
                                if flags == NO_REPLY:
                                    pos = stop
                                    write(offset, value, 4)
                                    continue
                                if not flags:
                                    pos = stop
                                    out += WRITE_REPLY.pack(message_id, _WRITTEN, offset, ONE_DWORD)
                                    write(offset, value, 4)
                                    continue
                        elif command == REGION_READ and size == _READ_SIZE and not flags:
                            pos = stop
                            out += READ_REPLY.pack(message_id, _READ, offset, ONE_DWORD, read(offset, 4))
                            continue
                    begin, produced = pos, len(out)
                    pos = self._message(begin, end)
                    if pos == begin:  # incomplete
                        self._settle(pos)
                        return False
                    # A large one counts for more: 16 bytes may be four registers. This bounds `output` as well.
                    limit -= OTHER_MESSAGE - 1 + ((pos - begin + len(out) - produced) >> 4)
                    if self._hold is not None:
                        limit, self._held_from = 0, begin
                    fence = _SHUT if self._chunk_fds or self._carried_fds else self._fence
                break
            except ClientError:
                raise
            except Exception as error:
                if pos != stop:
                    raise ClientError(EIO, "a fault of the server's own", fatal=True) from error
                self._fault(command)
                if command == REGION_READ:
                    out += READ_REPLY.pack(message_id, _READ, offset, ONE_DWORD, _ONES)
        if pos < end or self._hold is not None:
            self.consumed += pos - self._start
            self._start = pos
            return True
        self._settle(pos)
        return limit <= 0

    @property
    def held(self) -> bool:
        """A message waits for transfers to end."""
        return self._hold is not None

    def release(self) -> None:
        """Answer the message that is held, if there is one: no transfer uses the memory any more."""
        hold = self._hold
        if hold is None:
            return
        self._hold = hold.session = None
        self._answer(hold.message_id, hold.command, hold.flags, hold.finish)
        self._resume()

    def close(self) -> None:
        """The client is gone: give its descriptors back. What it had mapped, and the device's state, stay."""
        if (hold := self._hold) is not None:
            self._hold = hold.session = None
        self._commands.close()
        self._close_all(self._carried_fds)
        self._close_all(self._chunk_fds)

    # -- to another process, and from one ----------------------------------------------------------------------------

    @property
    def between(self) -> bool:
        """Whether it can go on in another process now: nothing is held, and no descriptor is on its way."""
        return not (self.held or self._carried_fds or self._chunk_fds or self.output_fds)

    def state(self) -> SessionState:
        """What another process needs; while `between`."""
        client = self.client
        state = SessionState(
            input=bytes(self._view[self._start : self._end]), output=bytes(self.output), complaints=self._complaints
        )
        if client is not None:
            state.name, state.version = client.name, client.version
            state.capabilities = json.dumps(client.capabilities)
        state.unshared = self._commands.unshared.told
        return state

    def restore(self, state: SessionState) -> None:
        """Go on where a session in another process was, which has said who the client is. `process` comes next, when
        that may be. Raises StateError."""
        if state.version:
            self.client = ClientVersion(state.name, state.version, capabilities_of(state))
            self._fence = REGISTERS_SIZE - 4
        require(len(state.input) <= MAX_MESSAGE_SIZE + BUFFER_SIZE, "session.input", f"{len(state.input)} bytes")
        if len(state.input) > len(self._view):
            self._set_buffer(len(state.input))
        self._end = self._chunk_start = len(state.input)
        self._view[: self._end] = state.input
        self.output += state.output
        self._complaints = state.complaints
        self._commands.unshared.told = list(state.unshared)

    # -- messages ----------------------------------------------------------------------------------------------------

    def _message(self, pos: int, end: int) -> int:
        """Execute the message at `pos`; return where the next one begins, or `pos` if it is not complete."""
        if end - pos < HEADER_SIZE:
            return pos
        message_id, command, size, flags, _ = HEADER.unpack_from(self._buffer, pos)
        self._check_header(command, size, flags)
        stop: int = pos + size
        if stop > end:
            return pos
        payload = bytes(self._view[pos + HEADER_SIZE : stop])
        fds = self._take_fds(pos, stop, end)
        try:
            handler = self._handlers.get(command)
            if handler is None:
                self._refuse(message_id, command, flags, ClientError(EINVAL, "not supported"))
            elif command != REGION_READ or not flags & NO_REPLY:  # a read that nobody sees is not worth its time
                self._answer(message_id, command, flags, partial(handler, payload, fds))
        finally:
            self._close_all(fds)
        return stop

    def _check_header(self, command: int, size: int, flags: int) -> None:
        if flags & TYPE_MASK == TYPE_REPLY:
            raise ClientError(EINVAL, "a reply to nothing that was asked", fatal=True)
        if flags & TYPE_MASK != TYPE_COMMAND:
            raise ClientError(EINVAL, f"flags {flags:#x} are neither a command's nor a reply's", fatal=True)
        if not HEADER_SIZE <= size <= MAX_MESSAGE_SIZE:
            raise ClientError(EINVAL, f"a message of {size} bytes", fatal=True)
        if size == HEADER_SIZE and command in self._handlers and command != DEVICE_RESET:
            raise ClientError(EINVAL, f"{_name(command)} without a payload", fatal=True)
        if command == VERSION and size > HEADER_SIZE + VERSION_FIELDS.size + MAX_VERSION_DATA:
            raise ClientError(EINVAL, f"VERSION of {size} bytes", fatal=True)
        if self.client is None and command != VERSION:
            raise ClientError(EINVAL, f"{_name(command)} before VERSION", fatal=True)

    def _answer(self, message_id: int, command: int, flags: int, call: Callable[[], bytes | None]) -> None:
        """Make the call that executes a command, and reply with the payload it returns."""
        try:
            payload = call()
        except ClientError as error:
            self._refuse(message_id, command, flags, error)
            return
        except Exception:
            self._fault(command)
            if not flags & NO_REPLY:
                self.output += HEADER.pack(message_id, command, HEADER_SIZE, TYPE_REPLY | ERROR, EIO)
            return
        if payload is None:
            if (hold := self._hold) is not None:
                hold.message_id, hold.command, hold.flags = message_id, command, flags
        elif not flags & NO_REPLY:
            self.output += HEADER.pack(message_id, command, HEADER_SIZE + len(payload), TYPE_REPLY, 0)
            self.output += payload

    def _refuse(self, message_id: int, command: int, flags: int, error: ClientError) -> None:
        if not flags & NO_REPLY:
            self.output += HEADER.pack(message_id, command, HEADER_SIZE, TYPE_REPLY | ERROR, error.errno)
        if error.fatal:
            raise ClientError(error.errno, f"{_name(command)}: {error}", fatal=True)
        self._complain(f"{_name(command)}: {error}")

    def _version(self, payload: bytes, fds: list[int]) -> bytes:
        if self.client is not None:
            raise ClientError(EINVAL, "the version has been negotiated already")
        if fds:
            raise ClientError(EINVAL, "file descriptors with the version", fatal=True)
        reply, self.client = negotiate(payload)
        self._fence = REGISTERS_SIZE - 4
        self._introduced()
        return reply

    def _send_fd(self, fd: int) -> None:
        self.output_fds.append((len(self.output), fd))

    def _wait(self, begin: Callable[[Callable[[], object]], object], finish: Callable[[], bytes]) -> bytes | None:
        """Reply with `finish()` once `begin` is done, which may be at once; None if later."""
        hold = _Hold(finish)
        begin(hold.done)
        if hold.settled:
            return finish()
        hold.session, self._hold = self, hold
        return None

    # -- buffer and descriptors --------------------------------------------------------------------------------------

    def _settle(self, pos: int) -> None:
        """All whole messages have been executed: keep what is left of an incomplete one at `pos` for the next chunk."""
        end, left = self._end, self._end - pos
        self.consumed += pos - self._start
        self._start = 0
        self.partial = left > 0
        if not left:
            if self._end > BUFFER_SIZE:
                self._set_buffer(BUFFER_SIZE)
            self._end = 0
            self.space = self._view
            return
        self._end = left
        if pos:
            self._view[:left] = self._view[pos:end]
        self._carry_fds()
        if left >= HEADER_SIZE:
            size = HEADER.unpack_from(self._buffer)[2]
            if size > len(self._view):
                begun = self._view
                self._set_buffer(size)
                self._view[:left] = begun[:left]
        self.space = self._view[left:]

    def _carry_fds(self) -> None:
        """The descriptors of the chunk belong to a message of which more is to come."""
        if self._chunk_fds:
            self._carried_fds += self._chunk_fds
            self._chunk_fds = []
            if len(self._carried_fds) > MAX_PENDING_FDS:
                raise ClientError(EINVAL, f"more than {MAX_PENDING_FDS} file descriptors with one message", fatal=True)

    def _set_buffer(self, size: int) -> None:
        # The fast path unpacks a register message wherever a message begins, so there is room for one past the end.
        self._buffer: bytearray | memoryview = bytearray(size + REGISTER_MESSAGE.size)
        self._view = self.space = memoryview(self._buffer)[:size]

    def _take_fds(self, pos: int, stop: int, end: int) -> list[int]:
        """The descriptors of the message from `pos` to `stop`: those of a chunk belong to the last message that starts
        in it, because the kernel ends a chunk behind the piece that brought descriptors along."""
        fds: list[int] = []
        if pos < self._chunk_start:
            fds, self._carried_fds = self._carried_fds, fds
        if stop >= end:
            fds += self._chunk_fds
            self._chunk_fds = []
        return fds

    def _close_all(self, fds: list[int]) -> None:
        while fds:
            self._close_fd(fds.pop())

    # -- what is logged ----------------------------------------------------------------------------------------------

    def _complain(self, text: str) -> None:
        self._complaints += 1
        if self._complaints <= MAX_COMPLAINTS:
            log.warning("client: %s", text)
            if self._complaints == MAX_COMPLAINTS:
                log.warning("client: nothing further of this kind is logged for this connection")

    def _fault(self, command: int) -> None:
        """Called while an exception that is our own is handled."""
        self._complaints += 1
        if self._complaints <= MAX_COMPLAINTS:
            log.exception("%s failed by a fault of the server's own; the connection goes on", _name(command))


def _name(command: int) -> str:
    return COMMAND_NAMES.get(command, f"command {command}")
