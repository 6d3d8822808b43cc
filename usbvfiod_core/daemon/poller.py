"""What the loop waits with: an epoll set that is looked at for a moment before it sleeps, and whose readers and writers
are called right here.

A vCPU that has had its answer mostly comes back within some tens of microseconds. Going to sleep and being woken costs
about as much again on each side, so while the traffic is dense it is cheaper to look a few times more. It notices where
that does not pay, and stops: messages come later than that, there is only one processor, or somebody else wants the one
that polling keeps busy, above all a thread of the VMM.

A turn of asyncio's loop costs as much as a message does. So the loop has a turn only when there is something for it: a
callback, a timer, or a descriptor of its own.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

FULL_CREDIT: Final = 16
PROBE_EVERY: Final = 64
PREEMPTED: Final = 40e-6
"""Seconds between two looks after which somebody else has had the processor in between."""
PAUSE: Final = 5000
"""Sleeps without polling after that."""

IN: Final = int(select.EPOLLIN)
OUT: Final = int(select.EPOLLOUT)

_COARSE: Final = 0.005
_FD_SETSIZE: Final = 1024
_EVENTS: Final = 64
"""Descriptors that one look finds; what is more has its turn at the next."""

Callback = Callable[[], object]
Events = list[tuple[int, int]]
"""Descriptors, and the mask of what they are ready for."""


class Epoll(Protocol):
    """A `select.epoll`, or a test's stand-in. Times are in seconds; None is for ever."""

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> Events: ...
    def register(self, fd: int, eventmask: int) -> None: ...
    def modify(self, fd: int, eventmask: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def fileno(self) -> int: ...


class Readable(Protocol):
    """`select.select` for one descriptor that becomes readable."""

    def __call__(self, fd: int, seconds: float) -> bool: ...


def readable(fd: int, seconds: float) -> bool:
    """Wait for so many seconds at most, to the microsecond."""
    return bool(select.select((fd,), (), (), seconds)[0])


class Watch:
    """Who is called about a descriptor."""

    __slots__ = ("reader", "writer")

    def __init__(self) -> None:
        self.reader: Callback | None = None
        self.writer: Callback | None = None

    @property
    def mask(self) -> int:
        return (IN if self.reader is not None else 0) | (OUT if self.writer is not None else 0)


class Poller:
    """Waits for `epoll`, and calls who watches what is ready there.

    It polls while polling has paid lately: a poll that finds something earns credit, up to FULL_CREDIT, one that does
    not loses it, and without credit only every PROBE_EVERYth sleep is preceded by one, to see whether that has
    changed. So a burst of messages is met awake, and a device that reports every millisecond costs no polling.
    A poll that was preempted is the last one for PAUSE sleeps. `spin` is in seconds; 0 turns it off.

    `failed` is told of exceptions of those that are called. All on the loop's thread.
    """

    def __init__(
        self,
        epoll: Epoll,
        spin: float,
        failed: Callable[[BaseException], object],
        *,
        clock: Callable[[], float] = perf_counter,
        sleep: Readable = readable,
    ) -> None:
        self._epoll: Final = epoll
        self._spin: Final = spin
        self._failed: Final = failed
        self._clock: Final = clock
        self._sleep: Final = sleep
        self._fd: Final = epoll.fileno()
        self._watches: Final[dict[int, Watch]] = {}
        self._credit = FULL_CREDIT
        self._until_probe = PROBE_EVERY
        self._in_event = False
        self._afterwards: list[Callback] = []
        self.due = False
        """Set by the loop whenever there is something new for it to do, so that `wait` returns."""

    # -- who is called -------------------------------------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call `callback` while `fd` is readable. Raises OSError."""
        watch = self._watches.get(fd, _NOBODY)
        self._change(fd, watch, callback, watch.writer)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call `callback` while `fd` is writable. Raises OSError."""
        watch = self._watches.get(fd, _NOBODY)
        self._change(fd, watch, watch.reader, callback)

    def remove_reader(self, fd: int) -> bool:
        """Stop watching; whether there was something to stop."""
        watch = self._watches.get(fd, _NOBODY)
        if watch.reader is None:
            return False
        self._change(fd, watch, None, watch.writer)
        return True

    def remove_writer(self, fd: int) -> bool:
        """Stop watching; whether there was something to stop."""
        watch = self._watches.get(fd, _NOBODY)
        if watch.writer is None:
            return False
        self._change(fd, watch, watch.reader, None)
        return True

    def _change(self, fd: int, old: Watch, reader: Callback | None, writer: Callback | None) -> None:
        # Always another object: what was found ready for the old one may be under way in `_call`.
        new = Watch()
        new.reader, new.writer = reader, writer
        if not new.mask:
            del self._watches[fd]
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # it has been closed, and epoll has forgotten it; or epoll has
            return
        if not old.mask:
            self._epoll.register(fd, new.mask)
        elif old.mask != new.mask:
            self._epoll.modify(fd, new.mask)
        self._watches[fd] = new

    def call_afterwards(self, callback: Callback) -> bool:
        """Call `callback` when what is being seen to has been seen to; False if nothing is."""
        if self._in_event:
            self._afterwards.append(callback)
        return self._in_event

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> Events:
        """Wait for `timeout` seconds (None: for ever, 0 or less: not at all), calling readers and writers, until there
        is something for the loop: events that nobody here watches, or what `due` says."""
        self.due = False
        if timeout is not None and timeout <= 0:
            return self._call(self._epoll.poll(0, _EVENTS))
        end = 0.0 if timeout is None else self._clock() + timeout
        while True:
            others = self._call(self._look(timeout))
            if others or self.due:
                return others
            if timeout is not None:
                timeout = end - self._clock()
                if timeout <= 0:
                    return others

    def _call(self, events: Events) -> Events:
        """Call those who watch; what is left. A reader is also told of an error, and so is a writer."""
        if not events:
            return events
        watches = [self._watches.get(fd, _NOBODY) for fd, _ in events]
        others: Events = []
        for number, watch in enumerate(watches):
            fd, mask = events[number]
            if watch is _NOBODY:
                others.append((fd, mask))
                continue
            # Each may be gone, or another one, by what was called before it.
            if mask & ~OUT and watch.reader is not None and (not number or self._watches.get(fd) is watch):
                self.see_to(watch.reader)
            if mask & ~IN and self._watches.get(fd) is watch and watch.writer is not None:
                self.see_to(watch.writer)
        return others

    def see_to(self, callback: Callback) -> None:
        """Call this, and then what it leaves to `call_afterwards`; a fault of one costs the others nothing."""
        self._in_event = True
        self._try(callback)
        self._in_event = False
        if self._afterwards:
            afterwards, self._afterwards = self._afterwards, []
            for each in afterwards:
                self._try(each)

    def _try(self, callback: Callback) -> None:
        try:
            callback()
        except (SystemExit, KeyboardInterrupt):
            self._in_event = False
            raise
        except BaseException as error:
            self._failed(error)

    def _look(self, timeout: float | None) -> Events:
        """What is ready, at once or when it is; empty after `timeout` seconds."""
        if self._spin and (self._credit or self._probing()):
            start = self._clock()
            events = self._poll(start, self._spin if timeout is None else min(self._spin, timeout))
            if events:
                return events
            if timeout is not None:
                timeout -= self._clock() - start
                if timeout <= 0:
                    return events
        if timeout is None or timeout >= _COARSE or self._fd >= _FD_SETSIZE:
            return self._epoll.poll(timeout, _EVENTS)
        # epoll_wait counts in milliseconds, which is 25 times the interval of interrupt moderation that Linux asks for.
        return self._epoll.poll(0, _EVENTS) if self._sleep(self._fd, timeout) else []

    def _poll(self, now: float, seconds: float) -> Events:
        """Look again and again for `seconds` from `now` on, and learn from what comes of it."""
        poll, clock = self._epoll.poll, self._clock
        end = now + seconds
        while True:
            events = poll(0, _EVENTS)
            before, now = now, clock()
            if now - before > PREEMPTED:
                self._credit = 0
                self._until_probe = PAUSE
                return events
            if events:
                if self._credit < FULL_CREDIT:
                    self._credit += 1
                return events
            if now >= end:
                if self._credit:
                    self._credit -= 1
                return events

    def _probing(self) -> bool:
        self._until_probe -= 1
        if self._until_probe:
            return False
        self._until_probe = PROBE_EVERY
        return True


_NOBODY: Final = Watch()
