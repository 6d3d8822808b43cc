"""One client's socket: what arrives goes to its session, what the session says goes out.

Reading stops, and with it everything this client can make us do or keep, while it does not take its replies, while a
message is held, and while more than a fair share of its messages waits to be processed. It goes on from the loop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..errors import ClientError
from ..memory import GuestMemory
from ..pci.function import PciFunction
from ..usb.device import Loop, Timer
from . import expendable
from .ancillary import descriptors, hung_up, peer, room_for, unread
from .eventfd import LoopEventfds
from .expendable import MAX_UNCLOSED, unclosed
from .kept_input import KeptInput
from .kept_session import KeptSession
from .peer import Look, PrivateFiles, is_private
from .session import MAX_PENDING_FDS, Session

if TYPE_CHECKING:
    from ..state_file import StateFile

MESSAGE_DEADLINE: Final = 10.0
"""Seconds within which a message that has begun, or the first one, must be complete."""
SETTLE_DELAY: Final = 0.5
"""Seconds after a change of the DMA maps until files that are no longer mapped are let go."""
CHUNKS: Final = 4
"""Times that the socket is read before the loop has its turn."""

DOUBT_SECONDS: Final = 1.0
"""How long a client that has got its answer is waited for to say something, when nobody knows whether it has."""

_ANCILLARY: Final = room_for(MAX_PENDING_FDS)
# A socket that was handed down may be shared, and its flag O_NONBLOCK with it.
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_CTRUNC: Final = int(socket.MSG_CTRUNC)


class Connection:
    """A connected, non-blocking socket and its session, from now until `close` or until the client is gone.

    `on_introduced` is called when the client has said who it is, `on_drained` when everything that had arrived is
    executed and answered. `on_gone` is called once, with a reason if the client was dropped for one and None if it
    left; the socket is closed by then.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        function: PciFunction,
        memory: GuestMemory,
        *,
        on_introduced: Callable[[], object],
        on_drained: Callable[[], object],
        on_gone: Callable[[str | None], object],
        first_message_deadline: bool,
        message_deadline: float = MESSAGE_DEADLINE,
        look: Look = is_private,
        stopped: bool = False,
        state_file: StateFile | None = None,
    ) -> None:
        """`stopped`: nothing is read before `go_on`. `state_file`: what is received stays there until answered."""
        self._socket: Final = sock
        self._fd: Final = sock.fileno()
        self._receive: Final = sock.recvmsg_into
        self._loop: Final = loop
        self._memory: Final = memory
        self._on_drained: Final = on_drained
        self._on_gone: Final = on_gone
        self._message_deadline: Final = message_deadline
        self._greeted = not first_message_deadline
        self.pid, self.uid = peer(sock)
        self._kept: KeptSession | None = None
        eventfds, is_private = LoopEventfds(loop), PrivateFiles(self.pid, look)
        close_fd, resume = expendable.close, self._resume
        if state_file is None:
            self.session: Session = Session(
                function,
                memory,
                eventfds=eventfds,
                is_private=is_private,
                close_fd=close_fd,
                resume=resume,
                introduced=on_introduced,
            )
        else:
            self.session = self._kept = KeptSession(
                function,
                memory,
                KeptInput(state_file.area("session").cast("Q"), state_file.area("input")),
                eventfds=eventfds,
                is_private=is_private,
                close_fd=close_fd,
                resume=resume,
                introduced=on_introduced,
                holder=state_file,
            )
        self._output: Final = self.session.output
        self.draining = False
        """Messages are being executed; `on_drained` is called at the end."""
        self._open = True
        self._stopped = stopped
        self._dropped: str | None = None
        self._reading = False
        self._writing = False
        self._deadline: Timer | None = None
        self._settle_timer: Timer | None = None
        self._doubt_timer: Timer | None = None
        self._generation = memory.generation
        if first_message_deadline:
            self._deadline = loop.call_later(message_deadline, self._overdue, 0)
        self._listen()

    def close(self) -> None:
        """Drop the client without a word; `on_gone` is not called."""
        if not self._open:
            return
        self._open = False
        self._pause()
        self._end_doubt()
        if self._writing:
            self._loop.remove_writer(self._fd)
        for timer in (self._deadline, self._settle_timer):
            if timer is not None:
                timer.cancel()
        self.session.close()
        self._socket.close()

    def drop(self, reason: str) -> None:
        """End the connection because of something that the client has done; `on_gone` is told why. One that is stopped
        ends when it goes on."""
        if self._stopped:
            self._dropped = reason
        else:
            self._gone(reason)

    def stop(self) -> None:
        """Read nothing and send nothing more until `go_on`."""
        self._stopped = True
        self.session.interrupts.stop()
        self._pause()
        self._end_doubt()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def go_on(self) -> None:
        """End what `stop` has begun."""
        self._stopped = False
        self.session.interrupts.go_on()
        if self._dropped is not None:
            self._gone(self._dropped)
        elif self._kept is not None and self._kept.doubtful:
            self._doubt()
        elif self._output:
            self._await_room()
        else:
            self._loop.call_soon(self._continue)

    def forget(self) -> None:
        """Another process serves the client: close what is ours of the connection, and tell nobody."""
        self.stop()
        self._open = False
        for timer in (self._deadline, self._settle_timer):
            if timer is not None:
                timer.cancel()
        self.session.interrupts.forget()
        self._socket.close()

    def catch_up(self) -> None:
        """Execute what another process has received and not answered, before `go_on`: the controller stands still yet,
        and the driver is told of nothing before."""
        session = self.session
        if self._kept is not None and self._kept.doubtful:
            return
        try:
            while session.process() and not session.held:
                pass
        except ClientError as error:
            self._dropped = str(error)

    @property
    def socket(self) -> socket.socket:
        """For whoever passes it on."""
        return self._socket

    def check(self) -> None:
        """Notice at once if the other end is closed: its successor may be at the door before that is read."""
        if hung_up(self._fd):
            self._gone(None)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self.draining = True
        session, receive = self.session, self._receive
        for _ in range(CHUNKS):
            space = session.space
            try:
                room = _ANCILLARY if len(unclosed) <= MAX_UNCLOSED else 0
                count, ancillary, flags, _address = receive((space,), room, _RECEIVE)
            except BlockingIOError:
                break
            except OSError as error:
                self._gone(None if isinstance(error, ConnectionError) else str(error))
                return
            session.received(count, descriptors(ancillary) if ancillary else [])
            if flags & _CTRUNC:
                self._gone(f"more than {MAX_PENDING_FDS} file descriptors with one message, or no room for them")
                return
            if not count:
                self._gone("the connection ended in the middle of a message" if session.partial else None)
                return
            # The kernel fills the space unless the socket is empty or descriptors were in between.
            if not self._advance() or (count < len(space) and not ancillary):
                break
        if self._open:
            self.draining = False
            self._on_drained()

    def _advance(self) -> bool:
        """Execute what has been received and send the replies. False: stop receiving, it goes on from the loop."""
        session, output = self.session, self._output
        try:
            more = session.process()
        except ClientError as error:
            self._flush()
            self._gone(str(error))
            return False
        kept = self._kept
        if output:
            if kept is not None:
                kept.executed()
            if not self._flush():
                if kept is not None:
                    kept.executed(in_parts=True)
                self._pause()
                self._await_room()
                return False
        if kept is not None:
            kept.answered()
        if self._memory.generation != self._generation:
            self._maps_changed()
        if more or self._deadline is not None or session.partial:
            return self._attend(more)
        return True

    def _attend(self, more: bool) -> bool:
        """What is not the common case: messages that wait, and deadlines to set or to drop."""
        session = self.session
        if more:
            self._pause()
            if not session.held:
                self._loop.call_soon(self._continue)
            return False
        if session.partial:
            if self._deadline is None:
                self._deadline = self._loop.call_later(self._message_deadline, self._overdue, session.consumed)
        elif self._deadline is not None and session.client is not None:
            self._deadline.cancel()
            self._deadline = None
        return True

    def _continue(self) -> None:
        """Go on where `_advance` stopped, unless something else still holds this client up."""
        if not self._open or self._writing or self._stopped:
            return
        self.draining = True
        if self._advance():
            self._listen()
        if self._open:
            self.draining = False
            self._on_drained()

    def _resume(self) -> None:
        """The session has answered a message that it held."""
        self._loop.call_soon(self._continue)

    def _listen(self) -> None:
        if self._open and not self._reading and not self._stopped:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _await_room(self) -> None:
        if not self._writing and self._open and not self._stopped:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)

    def _flush(self) -> bool:
        """Send what the socket takes; True if that was all."""
        output = self._output
        try:
            sent = self._send_with_fd() if self.session.output_fds else self._socket.send(output, _SEND)
        except BlockingIOError:
            return not output
        except OSError:
            output.clear()  # the client is gone; reading says so
            self.session.output_fds.clear()
            return True
        if sent < len(output):
            del output[:sent]
            return False
        output.clear()
        return True

    def _send_with_fd(self) -> int:
        """Send what comes before the next reply that has a descriptor; or that reply, and what follows it up to the
        next one. A descriptor arrives with the first byte that is sent with it."""
        fds, output = self.session.output_fds, bytes(self._output)
        start, fd = fds[0]
        if start:
            sent = self._socket.send(output[:start], _SEND)
        else:
            stop = fds[1][0] if len(fds) > 1 else len(output)
            sent = socket.send_fds(self._socket, [output[:stop]], [fd], _SEND)
            del fds[0]
        fds[:] = [(at - sent, fd) for at, fd in fds]
        return sent

    def _writable(self) -> None:
        kept = self._kept
        if kept is not None:
            kept.executed(in_parts=True)
        if self._flush():
            if kept is not None:
                kept.answered()
            self._writing = False
            self._loop.remove_writer(self._fd)
            self._continue()

    # -- replies that another process may have sent ------------------------------------------------------------------

    def _doubt(self) -> None:
        """Whoever has an answer reads it, and goes on; or it still lies in the socket."""
        if unread(self._fd):
            self._resolved(True)
            return
        self._loop.add_reader(self._fd, self._resolved, True)
        self._doubt_timer = self._loop.call_later(DOUBT_SECONDS, self._resolved, False)

    def _end_doubt(self) -> None:
        if self._doubt_timer is not None:
            self._doubt_timer.cancel()
            self._doubt_timer = None
            self._loop.remove_reader(self._fd)

    def _resolved(self, answered: bool) -> None:
        self._end_doubt()
        assert self._kept is not None
        try:
            self._kept.resolved(answered=answered)
        except ClientError as error:
            self._gone(str(error))
            return
        self._continue()

    # -- deadlines and the end ---------------------------------------------------------------------------------------

    def _overdue(self, consumed: int) -> None:
        session = self.session
        self._deadline = None
        if self._stopped:  # it is not its fault
            self._deadline = self._loop.call_later(self._message_deadline, self._overdue, session.consumed)
        elif session.client is None and not self._greeted:
            self._gone(f"no version within {self._message_deadline:g} s")
        elif session.partial and session.consumed == consumed and not self._writing and not session.held:
            self._gone(f"a message was not complete within {self._message_deadline:g} s")
        elif session.partial:
            self._deadline = self._loop.call_later(self._message_deadline, self._overdue, session.consumed)

    def _maps_changed(self) -> None:
        self._generation = self._memory.generation
        if self._settle_timer is None:
            self._settle_timer = self._loop.call_later(SETTLE_DELAY, self._settle)

    def _settle(self) -> None:
        self._settle_timer = None
        self._memory.settle()

    def _gone(self, reason: str | None) -> None:
        if self._open:
            self.close()
            self._on_gone(reason)
