"""A session of which another process goes on with the client if this one is killed; see `kept_input`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import ClientError
from ..memory import GuestMemory
from ..pci.function import PciFunction
from .irqs import Eventfds, Holder
from .kept_input import KeptInput
from .session import BUFFER_SIZE, Session
from .session_state import SessionState
from .wire import (
    DEVICE_RESET,
    DEVICE_SET_IRQS,
    DMA_MAP,
    DMA_UNMAP,
    HEADER,
    HEADER_SIZE,
    NO_REPLY,
    REGION_MESSAGE,
    REGION_WRITE,
    REGION_WRITE_MULTI,
    TYPE_REPLY,
    WRITE_MULTI_COUNT,
)

SIZE: Final = 2 * BUFFER_SIZE
"""Bytes that are received before what is answered of them makes room."""


class KeptSession(Session):
    """The transport says when it sends (`executed`), and when nothing is left to send (`answered`)."""

    def __init__(
        self,
        function: PciFunction,
        memory: GuestMemory,
        kept: KeptInput,
        *,
        eventfds: Eventfds,
        is_private: Callable[[int], bool],
        close_fd: Callable[[int], object],
        resume: Callable[[], object],
        introduced: Callable[[], object],
        holder: Holder,
    ) -> None:
        self._kept: Final = kept
        self.doubtful = 0
        """Of what is received, bytes of messages that another process has executed, and has answered or not: nothing is
        processed before that is `resolved`."""
        self._low = 0
        """Up to where messages may come before there has to be room again."""
        super().__init__(
            function,
            memory,
            eventfds=eventfds,
            is_private=is_private,
            close_fd=close_fd,
            resume=resume,
            introduced=introduced,
            holder=holder,
        )

    def executed(self, *, in_parts: bool = False) -> None:
        """`output` is about to be sent; or, `in_parts`, a part of it may have been."""
        self._kept.executed(self._position, in_parts=in_parts or bool(self.output_fds))

    def answered(self) -> None:
        """All of `output` has been sent, or there was none."""
        if self.held:
            self._kept.answered(self._position)
            return
        start, end = self._start, self._end
        self._kept.answered(start)
        if start == end <= self._low:
            return  # as after most messages, each of which comes here
        left, size = end - start, len(self._view)
        needed = HEADER.unpack_from(self._view, start)[2] if left >= HEADER_SIZE else 0
        if size - end < BUFFER_SIZE or needed > size - start:
            size = max(needed, SIZE)
            buffer = self._kept.turn(self._view[start:end], end, size)
            self._buffer, self._view = buffer, buffer[:size]
            self._low = size - BUFFER_SIZE
            self._start, self._end = 0, left
            self.space = self._view[left:]

    def state(self) -> SessionState:
        state = super().state()
        state.doubtful = self.doubtful
        return state

    def restore(self, state: SessionState) -> None:
        super().restore(state)
        if not 0 <= state.doubtful <= len(state.input):
            raise ValueError(f"{state.doubtful} bytes are doubtful of {len(state.input)}")
        self.doubtful = state.doubtful
        if state.doubtful:
            self._kept.executed(state.doubtful, in_parts=False)

    def resolved(self, *, answered: bool) -> None:
        """It is known whether the doubtful messages were answered: if they were not, `output` has the replies then.
        What they have written is in the registers and is not written again."""
        stop, self.doubtful = self._start + self.doubtful, 0
        if answered:
            self._start = stop
            self.answered()
        while self._start < stop:
            self._start = self._answer_again(self._start, stop)

    # -- own ---------------------------------------------------------------------------------------------------------

    @property
    def _position(self) -> int:
        """Of the first message that is not executed, or is held."""
        return self._held_from if self.held else self._start

    def _answer_again(self, pos: int, end: int) -> int:
        """Answer the message at `pos`, without executing what it has done."""
        message_id, command, size, flags, _ = HEADER.unpack_from(self._view, pos)
        if size < HEADER_SIZE or pos + size > end:
            raise ClientError(0, "what was executed does not end with a message", fatal=True)
        payload = self._done(command, bytes(self._view[pos + HEADER_SIZE : pos + size]))
        if payload is None:
            self._message(pos, end)
        elif not flags & NO_REPLY:
            self.output += HEADER.pack(message_id, command, HEADER_SIZE + len(payload), TYPE_REPLY, 0) + payload
        stop: int = pos + size
        return stop

    @staticmethod
    def _done(command: int, payload: bytes) -> bytes | None:
        """What is replied to a command that has been executed; None if it can be executed again."""
        if command == REGION_WRITE:
            return payload[: REGION_MESSAGE.size - HEADER_SIZE]
        if command == REGION_WRITE_MULTI:
            return payload[: WRITE_MULTI_COUNT.size]
        if command == DMA_UNMAP:
            return payload
        if command in (DMA_MAP, DEVICE_SET_IRQS, DEVICE_RESET):
            return b""
        return None

    def _settle(self, pos: int) -> None:
        """What is executed stays where it is until it is answered."""
        self.consumed += pos - self._start
        self._start = pos
        self.partial = pos < self._end
        self.space = self._view[self._end :]
        if self.partial:
            self._carry_fds()

    def _set_buffer(self, size: int) -> None:
        size = max(size, SIZE)
        self._buffer = self._kept.window(size)
        self._view = self.space = self._buffer[:size]
        self._low = size - BUFFER_SIZE
