"""The loop that everything runs on: asyncio's, with a selector of ours and a door to threads for what blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from threading import Condition, Thread
from typing import Any, TypeVar, TypeVarTuple

from .on_demand import load_on_demand
from .selector import SPIN, PollingSelector

for _name in ("ssl", "asyncio.sslproto"):
    load_on_demand(_name)

import asyncio  # noqa: E402  # behind those that it would load

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_THREADS = 32
"""Of a loop, and of each that is apart."""
IDLE = 10.0
"""Seconds after which a thread without work ends."""

SWITCH_INTERVAL = 0.0002
"""Seconds that the loop waits at most for a thread that computes (sys.setswitchinterval, for the whole process).
Listing and opening devices is mostly that, and Python's own 5 ms are many transfers."""


class BlockingCalls(ABC):
    """`Loop.run_blocking` by threads, for a loop that has `call_soon_threadsafe`."""

    def __init__(self, threads: int = MAX_THREADS) -> None:
        self._threads = _Threads(threads)
        self.blocking = 0
        """Calls that `run_blocking` has not given back yet; with those of loops that are apart and awaited."""

    @abstractmethod
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object:
        """Call `callback` soon, on the loop's thread; from any thread. Raises RuntimeError if the loop is closed."""

    def run_blocking(self, call: Callable[[], T], then: Callable[[T | BaseException], object]) -> None:
        """Run `call` in a thread; give its result, or the exception it raised, to `then` on the loop's thread.

        Calls do not wait for each other while there are fewer than MAX_THREADS, and their order is not kept. A call
        that is still running when the loop is closed is abandoned; it does not keep the process.
        """

        def given_back(result: T | BaseException) -> None:
            self.count(-1)
            then(result)

        def job() -> None:
            result: T | BaseException
            try:
                result = call()
            except BaseException as error:
                result = error
            try:
                self.call_soon_threadsafe(given_back, result)
            except RuntimeError:
                pass  # the loop has been closed meanwhile: nobody is waiting any more

        self.count(1)
        self._threads.run(job)

    def retire(self) -> None:
        """No thread waits for another call any more; one that comes all the same is made, in a thread of its own."""
        self._threads.retire()

    def count(self, change: int) -> None:
        """So many calls more have begun, or ended."""
        self.blocking += change


class EmbeddingLoop(BlockingCalls):
    """Somebody else's running asyncio event loop, as a loop for devices and controllers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.time = loop.time
        self.call_soon = self.call_afterwards = loop.call_soon
        self.call_later = loop.call_later
        self.add_reader, self.remove_reader = loop.add_reader, loop.remove_reader
        self.add_writer, self.remove_writer = loop.add_writer, loop.remove_writer
        self._loop = loop

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object:
        return self._loop.call_soon_threadsafe(callback, *args)

    def apart(self, *, awaited: bool = True, threads: int = MAX_THREADS) -> LoopApart:
        """See `LoopApart`."""
        return LoopApart(self, awaited, threads)


class ServerLoop(asyncio.SelectorEventLoop, BlockingCalls):
    """An asyncio event loop that is also a `usb.device.Loop`.

    Readers and writers are called by its poller, without a turn of asyncio's; see there.
    """

    def __init__(self, spin: float = SPIN) -> None:
        selector = PollingSelector(self._callback_failed, spin)
        self._poller = selector.poller
        super().__init__(selector)
        BlockingCalls.__init__(self)

    def apart(self, *, awaited: bool = True, threads: int = MAX_THREADS) -> LoopApart:
        """See `LoopApart`."""
        return LoopApart(self, awaited, threads)

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """As asyncio's, and what `callback` leaves to `call_afterwards` is done in the same turn of the loop."""
        self._poller.add_reader(_number(fd), partial(callback, *args) if args else callback)

    def add_writer(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """As `add_reader`."""
        self._poller.add_writer(_number(fd), partial(callback, *args) if args else callback)

    def remove_reader(self, fd: Any) -> bool:
        """As asyncio's."""
        return self._poller.remove_reader(_number(fd))

    def remove_writer(self, fd: Any) -> bool:
        """As asyncio's."""
        return self._poller.remove_writer(_number(fd))

    def call_afterwards(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the descriptor or timer that is being seen to has been seen to, and otherwise soon. A
        turn of the loop costs several microseconds and a system call, as much as a transfer's way through a backend."""
        if not self._poller.call_afterwards(callback):
            self.call_soon(callback)

    # What a reader or writer asks of asyncio is done when the poller has returned.

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        self._poller.due = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's, and `call_later` comes here. What `callback` leaves to `call_afterwards` is done in the same
        turn of the loop."""
        self._poller.due = True
        call = partial(callback, *args) if args else callback
        return super().call_at(when, self._poller.see_to, call, context=context)

    def stop(self) -> None:
        """As asyncio's."""
        self._poller.due = True
        super().stop()

    def _callback_failed(self, error: BaseException) -> None:
        self.call_exception_handler({"message": "Exception in a reader, writer or timer", "exception": error})


def _number(fd: Any) -> int:
    """A descriptor, or that of a file or socket."""
    return fd if isinstance(fd, int) else int(fd.fileno())


class LoopApart(BlockingCalls):
    """A loop with threads of its own: what hangs in them, such as a file on a server that does not answer, keeps
    nobody waiting who uses the loop itself or another one apart. `awaited`: the end waits for its calls. At most so
    many `threads`."""

    def __init__(self, loop: EmbeddingLoop | ServerLoop, awaited: bool, threads: int) -> None:
        super().__init__(threads)
        self.time, self.call_soon, self.call_later = loop.time, loop.call_soon, loop.call_later
        self.add_reader, self.remove_reader = loop.add_reader, loop.remove_reader
        self.add_writer, self.remove_writer = loop.add_writer, loop.remove_writer
        self._loop = loop
        self._awaited = awaited

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object:
        return self._loop.call_soon_threadsafe(callback, *args)

    def count(self, change: int) -> None:
        super().count(change)
        if self._awaited:
            self._loop.count(change)


class _Threads:
    """Threads that are started when they are needed, and kept until there has been no call for IDLE seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = Condition()
        self._idle = 0
        self._started = 0
        self._retired = False

    def run(self, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.append(job)
            if self._idle:
                self._changed.notify()
            # Of those who wait, each takes one. Where no more may be started, whoever is done first takes the next.
            start = self._idle < len(self._jobs) and self._started < self._most
            self._started += start
        if start:
            # A daemon thread, because a device that never answers must not keep the process from ending.
            Thread(target=self._serve, name="usbvfiod-blocking", daemon=True).start()

    def retire(self) -> None:
        """See `BlockingCalls`."""
        with self._changed:
            self._retired = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            job()
            del job

    def _next(self) -> Callable[[], None] | None:
        """What to do next; None if there has been nothing for a while, or nothing is to come."""
        with self._changed:
            self._idle += 1
            try:
                if not self._jobs:
                    self._changed.wait_for(lambda: self._jobs or self._retired, IDLE)
                if not self._jobs:
                    self._started -= 1
                    return None
                return self._jobs.popleft()
            finally:
                self._idle -= 1
