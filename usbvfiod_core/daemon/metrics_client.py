"""One connection of somebody who reads metrics: requests in, answers out, and bounds on all of it.

The bytes of HTTP are h11's. What is here is the socket, and the bytes, reads and seconds that a client may take.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Final, NamedTuple, Protocol

import h11

from ..usb.device import Loop, Timer
from .exposition import TEXT

MAX_REQUEST: Final = 8 << 10
"""Bytes of a request, all its headers included."""
MAX_READS: Final = 32
"""Pieces in which a request may come."""
PATIENCE: Final = 10.0
"""Seconds for a request to be complete, and for an answer to be read."""
IDLE: Final = 150.0
"""Seconds between two requests of a connection; those who scrape do it every minute or more often."""
_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
OK: Final = 200


class Owner(Protocol):
    """What a client needs of the socket that has let it in."""

    @property
    def resting(self) -> bool: ...
    def answer(self, request: h11.Request) -> tuple[int, str, list[bytes]]: ...
    def spent(self, seconds: float) -> object: ...
    def ended(self, client: MetricsClient) -> object: ...


class _Known(NamedTuple):
    """A request that h11 has read and answered, for when the same bytes come again: Prometheus sends nothing else."""

    data: bytes
    request: h11.Request
    before: bytes
    after: bytes
    """The head of the answer, before and behind the length of what follows."""


class MetricsClient:
    """One connection. `since` is when it was accepted, or last answered."""

    def __init__(self, sock: socket.socket, loop: Loop, owner: Owner) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._owner = owner
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        self._output: list[memoryview] = []
        self._reads = 0
        self._known: _Known | None = None
        self._reading = self._writing = False
        self._timer: Timer | None = None
        self._due = self._deadline = 0.0
        self.since = loop.time()
        self._within(PATIENCE)
        self.arm()

    def arm(self) -> None:
        """Read from it, if that may be now."""
        wanted = not self._output and not self._owner.resting
        if wanted and not self._reading:
            self._loop.add_reader(self._fd, self._readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._fd)
        self._reading = wanted

    def close(self) -> None:
        """Close it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._reading:
            self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._reading = self._writing = False
        self._output = []
        self._socket.close()
        self._owner.ended(self)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _within(self, seconds: float) -> None:
        """What is due has so much time from now on. The timer stays where it is if it comes soon enough to see."""
        now = self._loop.time()
        self._deadline = now + seconds
        if self._timer is not None:
            if self._due <= self._deadline:
                return
            self._timer.cancel()
        self._due = self._deadline
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        left = self._deadline - self._loop.time()
        if left > 0:
            self._within(left)
        else:
            self.close()

    def _readable(self) -> None:
        started = time.thread_time()
        self._read()
        self._owner.spent(time.thread_time() - started)

    def _read(self) -> None:
        try:
            data = self._socket.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        known = self._known
        if known is not None and not self._reads and data == known.data:
            self._answer_again(known)
            return
        if not self._reads:
            self._within(PATIENCE)
        self._reads += 1
        self._http.receive_data(data)
        self._go_on(data)

    def _answer_again(self, known: _Known) -> None:
        """The bytes are those of a request that was answered, so h11 has nothing to say about them."""
        status, kind, body = self._owner.answer(known.request)
        if status == OK:
            length = sum(map(len, body))
            self._send([known.before + b"%d" % length + known.after, *body])
            return
        self._reads = 1
        self._http.receive_data(known.data)
        self._http.next_event()
        self._answer(status, kind, body)

    def _go_on(self, data: bytes) -> None:
        """See what there is of a request, now that `data` have come."""
        http = self._http
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            if http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                text = [b"this is not a request that can be answered\n"]
                self._answer(error.error_status_hint, TEXT, text, ends=True)
            else:
                self.close()
            return
        if isinstance(event, h11.Request):
            status, kind, body = self._owner.answer(event)
            again = (data, event) if self._reads == 1 and event.method == b"GET" and status == OK else None
            self._answer(status, kind, body, head=event.method == b"HEAD", again=again)
        elif event is h11.NEED_DATA and self._reads < MAX_READS:
            return
        elif event is h11.NEED_DATA:
            self._answer(400, TEXT, [b"the request comes in too many pieces\n"], ends=True)
        else:
            self.close()  # it has hung up

    def _answer(
        self,
        status: int,
        kind: str,
        body: list[bytes],
        *,
        head: bool = False,
        ends: bool = False,
        again: tuple[bytes, h11.Request] | None = None,
    ) -> None:
        """`again`: the request, if it is all that there is in these bytes."""
        http, length = self._http, str(sum(map(len, body)))
        headers = [("Content-Type", kind), ("Content-Length", length), ("X-Content-Type-Options", "nosniff")]
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        if ends:
            headers.append(("Connection", "close"))
        response: Any = h11.Response(status_code=status, headers=headers)
        parts = [http.send(response) or b""]
        if again is not None:
            before, found, after = parts[0].rpartition(f"Content-Length: {length}".encode())
            self._known = _Known(*again, before + found[: -len(length)], after) if found else None
        if not head:
            for part in body:
                parts += http.send_with_data_passthrough(h11.Data(data=part)) or ()
        parts.append(http.send(h11.EndOfMessage()) or b"")
        self._send(parts)

    def _send(self, parts: list[bytes]) -> None:
        """Send an answer, in pieces that are nowhere put together."""
        self._output = [memoryview(part) for part in parts if part]
        self._send_on()
        if self._output:
            self._within(PATIENCE)

    def _send_on(self) -> None:
        try:
            sent = self._socket.sendmsg(self._output, (), _FLAGS)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        output = self._output
        if sent == sum(map(len, output)):
            self._output = []
            self._answered()
            return
        while sent >= len(output[0]):
            sent -= len(output.pop(0))
        output[0] = output[0][sent:]
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)
            self.arm()

    def _writable(self) -> None:
        started = time.thread_time()
        self._send_on()
        self._owner.spent(time.thread_time() - started)

    def _answered(self) -> None:
        """Its answer is on its way: wait for another request, if there may be one."""
        if self._writing:
            self._loop.remove_writer(self._fd)
            self._writing = False
        http = self._http
        if self._reads:  # else h11 has seen nothing of this request
            if http.their_state is h11.SEND_BODY:
                try:
                    http.next_event()
                except h11.RemoteProtocolError:
                    self.close()
                    return
            if http.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                self.close()  # with a body that nobody wants, or because it said so
                return
            http.start_next_cycle()
            if http.trailing_data[0]:
                self.close()  # nobody needs two requests at once
                return
        self._reads = 0
        self.since = self._loop.time()
        self._within(IDLE)
        self.arm()
