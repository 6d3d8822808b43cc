"""A small deterministic event loop for tests: the `Loop` of `usb.device`, stepped by whoever waits for something.

With virtual time (the default) nothing sleeps: when no callback is ready, the clock jumps to the next timer, and a
wait for something that can never come ends at once. A device that works with file descriptors or threads of its own
needs real time.
"""

from __future__ import annotations

import heapq
import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")

STEP_LIMIT = 100_000
"""Callbacks that one call of `run_ready` executes at most; a loop that keeps itself busy for ever is a bug."""
_PACE = 0.02
"""Seconds of real time after which `run_until` asks its condition again."""


class LoopError(RuntimeError):
    """The callbacks of the loop call each other for ever."""


class StepTimer:
    """What `StepLoop.call_later` returns."""

    __slots__ = ("args", "callback", "cancelled", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        """The callback will not be called."""
        self.cancelled = True


class StepLoop:
    """Runs callbacks only inside `run_ready`, `run_until` and `advance`, on the caller's thread.

    `run_blocking` executes its call in the next step on this thread: the order of everything is the same each time.
    """

    def __init__(self, *, virtual_time: bool = True) -> None:
        self.virtual_time = virtual_time
        self._now = 0.0
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, StepTimer]] = []
        self._order = count()
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, {})
        self._readers: dict[int, dict[int, tuple[Callable[..., object], tuple[Any, ...]]]] = {}

    def close(self) -> None:
        """Forget everything that is still to be called, and close the loop's own file descriptors."""
        self._ready.clear()
        self._timers.clear()
        if self._wake >= 0:
            self._selector.close()
            os.close(self._wake)
            self._wake = -1

    # -- Loop ------------------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback` in the next step."""
        self._ready.append((callback, args))

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """The same, from any thread; ends a wait in real time."""
        self._ready.append((callback, args))
        os.eventfd_write(self._wake, 1)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> StepTimer:
        """Call `callback` after `delay` seconds."""
        timer = StepTimer(self.time() + max(delay, 0.0), callback, args)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback` while `fd` is readable."""
        self._watch(fd, selectors.EVENT_READ, (callback, args))

    def remove_reader(self, fd: int) -> bool:
        """Stop watching; whether there was something to stop."""
        return self._watch(fd, selectors.EVENT_READ, None)

    def add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback` while `fd` is writable."""
        self._watch(fd, selectors.EVENT_WRITE, (callback, args))

    def remove_writer(self, fd: int) -> bool:
        """Stop watching; whether there was something to stop."""
        return self._watch(fd, selectors.EVENT_WRITE, None)

    def run_blocking(self, call: Callable[[], T], then: Callable[[T | BaseException], object]) -> None:
        """Run `call` in the next step and give its result, or its exception, to `then`."""
        self.call_soon(self._blocking, call, then)

    def apart(self, *, awaited: bool = True, threads: int = 0) -> StepLoop:
        """The same loop: there are no threads that could hang."""
        return self

    def retire(self) -> None:
        """Nothing: there are no threads that wait."""

    @property
    def watched(self) -> tuple[int, ...]:
        """File descriptors that are being watched; empty again when everything is closed."""
        return tuple(self._readers)

    # -- stepping --------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds since some beginning."""
        return self._now if self.virtual_time else time.monotonic()

    def run_ready(self) -> None:
        """Run what is due now, and what that makes due, without waiting. Raises LoopError after STEP_LIMIT calls."""
        for _ in range(STEP_LIMIT):
            if not self._ready:
                self._collect(0.0)
                if not self._ready:
                    return
            callback, args = self._ready.popleft()
            self._step(callback, args)
        raise LoopError(f"the loop is still busy after {STEP_LIMIT} callbacks; the last was {callback!r}")

    def _step(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        callback(*args)

    def run_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Run until `condition()` holds, for at most `timeout` seconds of this loop's time; whether it holds. In real
        time it is asked even if nothing happens here: it may be about another thread."""
        deadline = self.time() + timeout
        while True:
            self.run_ready()
            if condition():
                return True
            if not self._wait(deadline):
                return condition()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, and run what becomes due on the way."""
        self.run_until(lambda: False, seconds)

    def stall(self, seconds: float) -> None:
        """Let `seconds` pass in which nothing runs, as if the process had been stopped: what was due is late."""
        if self.virtual_time:
            self._now += seconds
        else:
            time.sleep(seconds)

    # -- own -------------------------------------------------------------------------------------------------------

    def _wait(self, deadline: float) -> bool:
        """Let time pass until something is due; False when the deadline comes first."""
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        due = min(self._timers[0][0], deadline) if self._timers else deadline
        if self.virtual_time:
            if due >= deadline and not (self._timers and self._timers[0][0] <= deadline):
                self._now = deadline
                return False
            self._now = max(self._now, due)
            return True
        remaining = due - time.monotonic()
        if remaining > 0:
            self._collect(min(remaining, _PACE))
        return bool(self._ready) or time.monotonic() < deadline or due < deadline

    def _collect(self, timeout: float) -> None:
        for key, events in self._selector.select(timeout) if timeout > 0 or self._readers else ():
            if key.fd == self._wake:
                os.eventfd_read(self._wake)
                continue
            for event, call in list(key.data.items()):
                if events & event:
                    self._ready.append((self._event, (key.fd, event, call)))
        now = self.time()
        while self._timers and self._timers[0][0] <= now:
            _, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.cancelled = True
                self._ready.append((timer.callback, timer.args))

    def _event(self, fd: int, event: int, call: tuple[Callable[..., object], tuple[Any, ...]]) -> None:
        """Something has happened, unless nobody watches any more: as asyncio's, which cancels it then."""
        if self._readers.get(fd, {}).get(event) is call:
            callback, args = call
            callback(*args)

    def _watch(self, fd: int, event: int, call: tuple[Callable[..., object], tuple[Any, ...]] | None) -> bool:
        if fd < 0:
            raise ValueError(f"a file that is closed is watched, or not watched any more: {fd}")  # as asyncio does
        calls = self._readers.get(fd, {})
        had = event in calls
        if call is not None:
            calls[event] = call
        else:
            calls.pop(event, None)
        events = sum(calls)
        if not events:
            if self._readers.pop(fd, None) is not None:
                self._selector.unregister(fd)
        elif fd in self._readers:
            self._selector.modify(fd, events, calls)
        else:
            self._readers[fd] = calls
            self._selector.register(fd, events, calls)
        return had

    def _blocking(self, call: Callable[[], T], then: Callable[[T | BaseException], object]) -> None:
        result: T | BaseException
        try:
            result = call()
        except Exception as error:
            result = error
        then(result)
