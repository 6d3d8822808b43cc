"""One client of the control socket: lines in, lines out, descriptors with them, and bounds on all of it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ..usb.device import Loop
from ..vfio_user import expendable
from ..vfio_user.ancillary import descriptors, room_for
from .peers import Peer
from .share import SLICE

MAX_LINE: Final = 64 << 10
"""Bytes of a request, its newline included."""
MAX_FDS: Final = 4
"""Descriptors of a client that no request has taken yet."""
MAX_PENDING: Final = 16
"""Requests of a client that are not answered yet; more of them are not read."""
MAX_OUTPUT: Final = 256 << 10
"""Bytes that wait for a client to read them; then its requests are not read, and events pass it by."""

_REPLACED: Final = {
    "kind": "failure",
    "message": "the server was replaced before it could answer; see what has become of it, and ask again",
}

Reply = Callable[[dict[str, Any]], None]
Handle = Callable[["ControlClient", dict[str, Any], list[int], Reply], None]


@dataclass
class ControlClientState:
    """A client between two requests: what has come of the next ones and with how many descriptors, what it has not
    read yet, and whether it watches. `owed` are the ids of requests that are not answered, as JSON; empty for one
    that has none."""

    input: bytes = b""
    output: bytes = b""
    watching: bool = False
    watches_devices: bool = False
    descriptors: int = 0
    owed: list[str] = field(default_factory=list)


class ControlClient:
    """One connection. `work` reads and executes; the owner calls it when the socket is readable or `busy` holds.

    `handle` gets each request with its descriptors, which then belong to it, and answers once through the reply.
    `changed` is called when it may have become `readable`, and when it was closed (`open` tells which).
    `watching` is the owner's: whether events are sent to it. Those in `when_closed` are called when it was closed; a
    client that has any is there for long.
    """

    def __init__(
        self, sock: socket.socket, peer: Peer, loop: Loop, handle: Handle, changed: Callable[[ControlClient], object]
    ) -> None:
        self.peer = peer
        self._socket = sock
        self._loop = loop
        self._handle = handle
        self._changed = changed
        self._input = bytearray()
        self._scanned = 0
        self._output = bytearray()
        self._writing = False
        self._ending = False
        self._fds: deque[int] = deque()
        self._lost = 0
        self.open = True
        self._owed: list[dict[str, Any]] = []
        self._stopped = False
        self.watching = False
        self.watches_devices = False
        self.when_closed: list[Callable[[], object]] = []
        self.active = loop.time()
        """When it asked for something last."""

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> int:
        """Requests that are not answered yet."""
        return len(self._owed)

    @property
    def readable(self) -> bool:
        """Whether it may send: not while it does not read, or has enough to wait for."""
        return (
            self.open
            and not (self._ending or self._stopped)
            and len(self._output) < MAX_OUTPUT
            and self.pending < MAX_PENDING
        )

    @property
    def busy(self) -> bool:
        """Whether requests wait in its buffer."""
        return self.readable and self._line_end() >= 0

    def work(self, until: float | None = None) -> None:
        """Read once, unless requests wait, and execute requests until `until` of time.thread_time, at least one."""
        if until is None:
            until = time.thread_time() + SLICE
        if self.readable and self._line_end() < 0:
            self._receive()
        while self.readable and (end := self._line_end()) >= 0:
            line = bytes(self._input[:end])
            del self._input[: end + 1]
            self._scanned = 0
            self._execute(line)
            if time.thread_time() >= until:
                break
        if not self._input:
            self._drop_fds()  # nobody wants them

    def send(self, message: dict[str, Any]) -> None:
        """Send a line now or when the client reads."""
        if not self.open:
            return
        self._output += json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
        if not (self._writing or self._stopped):
            self._flush()

    def send_event(self, line: bytes) -> None:
        """Send a line that is left out if the client does not read; it is told how many were."""
        if not self.open:
            return
        if self._lost or len(self._output) + len(line) > MAX_OUTPUT:
            self._lost += 1
            return
        self._output += line
        if not (self._writing or self._stopped):
            self._flush()

    def refuse(self, kind: str, message: str) -> None:
        """The last words: an error that the connection does not survive."""
        self.send({"ok": False, "error": {"kind": kind, "message": message}})
        self._end()

    def close(self) -> None:
        """Close at once."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self.fd)
        if self._writing:
            self._loop.remove_writer(self.fd)
        self._drop_fds()
        self._input.clear()
        self._output.clear()
        self._socket.close()
        for call in self.when_closed:
            call()
        self._changed(self)

    def stop(self) -> None:
        """Send nothing until `go_on`, and count as one that may not send."""
        self._stopped = True
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self.fd)

    def go_on(self) -> None:
        """End what `stop` has begun; or begin, after `restore`."""
        self._stopped = False
        if self.open:
            self._flush()

    def state(self) -> tuple[ControlClientState, list[int]]:
        """What another process needs, and its socket, then descriptors that it has sent; those belong to the caller."""
        state = ControlClientState(
            bytes(self._input), bytes(self._output), self.watching, self.watches_devices, len(self._fds)
        )
        state.owed = [json.dumps(each["id"]) if each else "" for each in self._owed]
        return state, [os.dup(fd) for fd in (self.fd, *self._fds)]

    def restore(self, state: ControlClientState, fds: list[int]) -> None:
        """Go on where another process was, with descriptors that it had been sent. Raises ValueError."""
        self._stopped = True
        self._input += state.input
        self._output += state.output
        self._fds.extend(fds)
        self.watching, self.watches_devices = state.watching, state.watches_devices
        for each in state.owed:
            identity = {"id": json.loads(each)} if each else {}
            self._output += json.dumps({**identity, "ok": False, "error": _REPLACED}).encode() + b"\n"

    # -- own ---------------------------------------------------------------------------------------------------------

    def _line_end(self) -> int:
        end = self._input.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._input)
        return end

    def _receive(self) -> None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                MAX_LINE - len(self._input), room_for(MAX_FDS), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._fds.extend(descriptors(ancillary))
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            self._drop_fds()
            self.refuse("request", f"more than {MAX_FDS} file descriptors")
            return
        if not data:
            self._end()
            return
        self._input += data
        if len(self._input) >= MAX_LINE and self._line_end() < 0:
            self.refuse("request", f"a line is longer than {MAX_LINE} bytes")

    def _execute(self, line: bytes) -> None:
        if not line.strip():
            return
        self.active = self._loop.time()
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            self.send({"ok": False, "error": {"kind": "request", "message": "a line is not JSON"}})
            return
        if not isinstance(request, dict):
            self.send({"ok": False, "error": {"kind": "request", "message": "a request is a JSON object"}})
            return
        identity = {"id": request.pop("id")} if "id" in request else {}
        if not isinstance(identity.get("id", 0), int | str):
            self.send({"ok": False, "error": {"kind": "request", "message": "an id is a number or a text"}})
            return
        fds = [self._fds.popleft() for _ in range(min(_wanted(request), len(self._fds)))]
        self._owed.append(identity)
        answered = False

        def reply(answer: dict[str, Any]) -> None:
            nonlocal answered
            assert not answered, "a request is answered once"
            answered = True
            self._owed.remove(identity)
            self.send(identity | answer)
            if self._ending:
                self._end()
            else:
                self._changed(self)

        self._handle(self, request, fds, reply)

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: self._socket.send(self._output, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)]
                if self._lost and not self._output:
                    lost, self._lost = self._lost, 0
                    self._output += json.dumps({"event": "lost", "count": lost}).encode() + b"\n"
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if bool(self._output) != self._writing:
            self._writing = bool(self._output)
            if self._writing:
                self._loop.add_writer(self.fd, self._flush)
            else:
                self._loop.remove_writer(self.fd)
                self._changed(self)
        if self._ending and not self._output and not self.pending:
            self.close()

    def _end(self) -> None:
        """Nothing more is read; what is to be said is said."""
        if not self.open:
            return  # who is told why has hung up
        self._ending = True
        self._input.clear()
        self._loop.remove_reader(self.fd)
        if not self._output and not self.pending:
            self.close()

    def _drop_fds(self) -> None:
        if self._fds:
            expendable.close(*self._fds)
            self._fds.clear()


def _wanted(request: dict[str, Any]) -> int:
    """How many descriptors belong to a request."""
    files = request.get("files")
    return (request.get("fd") is True) + (len(files) if isinstance(files, list) else 0)
