"""A link on the loop: what comes goes where a reader wants it, what is sent waits in order, and neither for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ..usb.device import Loop, Timer
from ..usb.transfer import behind
from .link import IOV_MAX, Link, LinkLost

_BURST: Final = 1 << 20
"""Bytes received in one go; then others have their turn."""
_READS: Final = 64
"""System calls in one go."""
MESSAGES: Final = 64
"""Messages in one go. Those that have come with them wait in the reader (`Reader.backlog`)."""
_SLOWEST: Final = 1 << 14
"""Bytes a second at least while a message is under way."""


class PeerError(Exception):
    """What the other end has sent is not what it may send; the message says what, for people."""


class Reader(Protocol):
    """The machine behind the stream, without a socket: it says where the next bytes go, and is told that they came.

    unfinished  bytes that are missing of a message that has begun; 0 between messages
    messages    messages that have been taken so far
    backlog     whether some may have come that are not taken yet, as it takes no more than `MESSAGES` in one call
    """

    @property
    def unfinished(self) -> int: ...

    @property
    def messages(self) -> int: ...

    @property
    def backlog(self) -> bool: ...

    def windows(self) -> list[memoryview]:
        """Buffers for the next bytes, of one byte at least; they may be longer than the message. Not called while there
        is a backlog."""
        ...

    def received(self, count: int) -> object:
        """So many bytes are there now, none where only the backlog is to be taken. Raises PeerError; then nothing more
        is asked of it."""
        ...


class Outgoing:
    """A message on its way; `parts` are sent as they are then, so they must not change before."""

    __slots__ = ("begun", "left", "parts")

    def __init__(self, parts: list[memoryview]) -> None:
        self.parts = parts
        self.left = sum(map(len, parts))
        self.begun = False


class Channel:
    """On the loop's thread. `lost` is called once, with a reason for people, when the link is lost or the other end
    breaks the rules; the channel is closed then. After `timeout` seconds in which nothing moves that should, the link
    is given up."""

    def __init__(
        self, loop: Loop, link: Link, reader: Reader, lost: Callable[[str], object], *, timeout: float
    ) -> None:
        self._loop = loop
        self._link = link
        self._reader = reader
        self._lost = lost
        self._timeout = timeout
        self._queue: deque[Outgoing] = deque()
        self._watch: Timer | None = None
        self._seen = (0, 0, 0)
        """Messages received, bytes received and bytes sent when the watch was set."""
        self._received = self._sent = 0
        self._is_writing = False
        self._is_called = False
        self._is_due = False
        """Whether what is queued is sent when the turn of the loop is over."""
        self._is_broken = False
        self._is_paused = self._may_split = False
        self._waiting: list[Callable[[], object]] = []
        """Who waits for it to be between two messages."""
        self.closed = False

    def start(self) -> None:
        """Receive from now on."""
        self._loop.add_reader(self._link.fileno(), self._readable)
        if self._link.pending or self._reader.backlog:
            self._call()
        if self._reader.unfinished and self._watch is None:
            self._set_watch()

    def send(self, *parts: bytes | memoryview, soon: bool = False) -> Outgoing:
        """Send a message as soon as there is room, after those before it.

        With `soon` it waits until the turn of the loop is over, and goes in one system call and one segment with all
        others that came in it: for requests of which several are in flight, so that nobody waits for this one alone.
        """
        message = Outgoing([memoryview(part) for part in parts if len(part)])
        if not self.closed:
            self._queue.append(message)
            if not soon:
                self._flush_now()
            elif not self._is_due:
                self._is_due = True
                self._loop.call_soon(self._turn_over)
        return message

    def withdraw(self, message: Outgoing) -> bool:
        """The parts of a message are not to be used any more: it is not sent, if nothing of it has been, which is the
        answer; else the rest of it is copied."""
        if not message.left or self.closed:
            return False
        if message.begun:
            message.parts = [memoryview(b"".join(message.parts))]
            return False
        self._queue.remove(message)
        return True

    @property
    def unsent(self) -> int:
        """Messages that wait, or are under way."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether it is between two messages both ways."""
        return not (self._queue or self._reader.unfinished or self._reader.backlog or self._link.pending)

    @property
    def paused(self) -> bool:
        """Whether it is, by `pause`: nothing may be sent then."""
        return self._is_paused

    def pause(self, done: Callable[[], object], *, split: bool = False) -> None:
        """Receive nothing more as soon as it is `idle`, and call `done` then, inside this call or later. What comes
        from then on is for another process, or for this one after `go_on`. With `split` it does not wait for the end of
        a message that has begun to come: the reader can tell another process what it has of it."""
        if self.closed:
            done()
            return
        self._may_split = split
        self._waiting.append(done)
        self._pause_if_idle()

    def go_on(self) -> None:
        """After `pause`: receive again."""
        self._waiting.clear()
        if self._is_paused and not self.closed:
            self.start()
        self._is_paused = False

    def forget(self) -> None:
        """Another process has the link: end it here. The other end hears nothing of it."""
        if not self.closed:
            self._end_use()
            self._link.forget()

    def detach(self) -> bool:
        """End it, and leave the link to the caller; not where there is something left to send. Whether that was
        done."""
        if self.closed or self._queue:
            return False
        self._end_use()
        return True

    def close(self) -> None:
        """End it, and the link. Nothing is called any more."""
        if not self.closed:
            self._end_use()
            self._link.close()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _pause_if_idle(self) -> None:
        if not self._waiting or self._queue or self._link.pending or self._reader.backlog:
            return
        if self._reader.unfinished and not self._may_split:
            return
        if not self._is_paused:
            self._is_paused = True
            self._loop.remove_reader(self._link.fileno())
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done()

    def _end_use(self) -> None:
        self.closed = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            self._loop.call_soon(done)
        self._queue.clear()
        self._loop.remove_reader(self._link.fileno())
        self._write(False)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _end(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._lost(reason)

    def _end_silent(self, reason: str) -> None:
        self._link.silent = True
        self._end(reason)

    def _readable(self) -> None:
        reader, link = self._reader, self._link
        taken, most = 0, self._reader.messages + MESSAGES
        try:
            for _ in range(_READS):
                if reader.backlog:
                    reader.received(0)
                    if self.closed or reader.backlog or (self._waiting and self._may_split):
                        break
                windows = reader.windows()
                count = link.receive(windows)
                if count is None:
                    break
                taken += count
                self._received += count
                reader.received(count)
                if self.closed or taken >= _BURST or reader.messages >= most:
                    break
                if count < sum(map(len, windows)) and not (link.pending or reader.backlog):
                    break  # there is no more now
        except LinkLost as error:
            self._end(str(error))
        except PeerError as error:
            self._end(f"the other end does not keep to the protocol: {error}")
        if self.closed:
            return
        if reader.unfinished and self._watch is None:
            self._set_watch()
        if link.pending or reader.backlog:
            self._call()
        self._pause_if_idle()

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon(self._called)

    def _called(self) -> None:
        self._is_called = False
        if not self.closed:
            self._readable()

    def _turn_over(self) -> None:
        self._is_due = False
        if self._queue:
            self._flush_now()

    def _flush_now(self) -> None:
        """Send what there is room for, unless somebody has found that there is none."""
        if not (self._is_writing or self._is_broken or self.closed):
            self._flush()

    def _flush(self) -> None:
        queue = self._queue
        try:
            while queue:
                if len(queue) == 1:
                    parts: Sequence[memoryview] = queue[0].parts
                else:
                    parts = []
                    for message in queue:
                        parts += message.parts
                        if len(parts) >= IOV_MAX:
                            break
                count = self._link.send(parts)
                if not count:
                    break
                self._sent += count
                self._forget(count)
        except LinkLost as error:
            # Whoever sends is in the middle of something.
            self._is_broken = True
            self._write(False)
            self._loop.call_soon(self._broken, str(error))
            return
        if queue and self._link.committed:
            queue[0].begun = True
        self._write(bool(queue))
        if self._waiting:
            self._loop.call_soon(self._pause_if_idle)
        if queue and self._watch is None:
            self._set_watch()

    def _broken(self, reason: str) -> None:
        """Nothing can be sent any more; what has come is still to be read."""
        if not self.closed:
            self._readable()
        self._end(reason)

    def _forget(self, count: int) -> None:
        """So many bytes have been sent."""
        queue = self._queue
        while count:
            message = queue[0]
            if count < message.left:
                message.parts = behind(message.parts, count)
                message.left -= count
                message.begun = True
                return
            count -= message.left
            message.left = 0
            message.parts = []
            queue.popleft()

    def _write(self, wanted: bool) -> None:
        if wanted != self._is_writing:
            self._is_writing = wanted
            if wanted:
                self._loop.add_writer(self._link.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._link.fileno())

    def _set_watch(self) -> None:
        self._seen = (self._reader.messages, self._received, self._sent)
        self._watch = self._loop.call_later(self._timeout, self._look)

    def _look(self) -> None:
        """Give the link up if what was under way has not moved."""
        self._watch = None
        if self._is_paused:
            self._set_watch()
            return
        messages, received, sent = self._seen
        if self._queue and self._sent == sent:
            self._end_silent(f"the other end has taken nothing for {self._timeout:.0f} s")
            return
        stuck = self._reader.unfinished and self._reader.messages == messages
        if stuck and self._received - received < _SLOWEST * self._timeout:
            self._end_silent(f"the other end has not finished a message in {self._timeout:.0f} s")
            return
        if self._queue or self._reader.unfinished:
            self._set_watch()
