"""What must hold while a target plays an input: nothing but what it expects is raised or logged as a fault, and no turn
of its loop costs the others much.

Costs are processor time, memory blocks of Python's allocator, lines of the log, and descriptors. All limits are those
of one input, of a few kilobytes.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.heard import Heard, told
from usbvfiod_core.testing.limits import eventually, scaled
from usbvfiod_core.testing.loop import StepLoop

TURN_SECONDS = scaled(0.05)
"""Processor time of one turn. By design half a millisecond and one TD; the rest is for coverage and slow machines."""
MOST_TURNS = 1_500
"""Of one input, until its story ends."""
BLOCKS = 400_000
"""Objects, about 64 bytes each, that an input may make a server keep."""
LEFT_SECONDS = scaled(5.0)
"""After which a descriptor that a thread was to close is left."""
LINES = 300
"""Lines of the log for users."""


class FindError(AssertionError):
    """Something that must not happen has happened."""


class TooSlowError(FindError):
    """A turn took too long. The machine may be to blame: play the input again."""


class EnoughError(Exception):
    """The other side keeps the server busy for ever, as it may, and would keep the fuzzer busy too."""


class Watch:
    """Watches one input: `with Watch() as watch: play(Actions(data), watch)`.

    Not `exact`, it takes the time of a turn by the clock on the wall, which costs a fraction of asking for processor
    time: too much of it is worth another look.
    """

    def __init__(self, turn_seconds: float = TURN_SECONDS, *, exact: bool = True) -> None:
        self.turn_seconds = turn_seconds
        self._time = time.thread_time if exact else time.perf_counter
        self.slowest = 0.0
        self.blocks = 0
        self.lines = 0
        self.turns = 0
        self._heard = Heard()
        self.loop_exception = self._heard.loop_exception

    def __enter__(self) -> Watch:
        self._descriptors = descriptors()
        self._blocks = sys.getallocatedblocks()
        self._collecting = gc.isenabled()
        self._heard.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._heard.__exit__(kind, *error)
        if self._collecting:
            gc.enable()
        if kind is not None:
            return
        self.lines = self._heard.lines
        if self._heard.faults:
            raise FindError("logged: " + "\n".join(map(told, self._heard.faults)))
        if self.lines > LINES:
            raise FindError(f"{self.lines} lines of the log")
        if self.blocks > BLOCKS:
            raise FindError(f"{self.blocks} objects were kept")
        if len(descriptors()) > len(self._descriptors):
            gc.collect()  # what is in cycles is not lost, and threads may still close some (`vfio_user.expendable`)
            if not eventually(lambda: len(descriptors()) <= len(self._descriptors), LEFT_SECONDS):
                left = sorted(what for fd, what in descriptors().items() if self._descriptors.get(fd) != what)
                raise FindError(f"descriptors are left: {', '.join(left)}")

    def look(self) -> None:
        """Note how much memory is used now, which is where it may be most."""
        self.blocks = max(self.blocks, sys.getallocatedblocks() - self._blocks)

    @contextmanager
    def turn(self, what: object) -> Iterator[None]:
        """One turn: everything that the others have to wait for. Without the collector, whose time the tests cause."""
        gc.disable()
        start = self._time()
        yield
        took = self._time() - start
        if self._collecting:
            gc.enable()
        self.turns += 1
        self.slowest = max(self.slowest, took)
        if took > self.turn_seconds:
            raise TooSlowError(f"a turn took {took * 1000:.1f} ms: {what}")


class WatchedLoop(StepLoop):
    """A loop in virtual time whose turns are watched. `between` is called before each turn: what the other side does
    while the server is busy. Raises EnoughError after `most_turns`."""

    def __init__(self, watch: Watch, *, virtual_time: bool = True) -> None:
        super().__init__(virtual_time=virtual_time)
        self.watch = watch
        self.between: Callable[[], object] = lambda: None
        self.most_turns = MOST_TURNS
        self.call_afterwards = self.call_soon

    def _step(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self.watch.turns >= self.most_turns:
            self._ready.appendleft((callback, args))  # for whoever goes on
            raise EnoughError
        self.between()
        with self.watch.turn(callback):
            super()._step(callback, args)


def descriptors() -> dict[str, str]:
    """Those of this process, and what they are of."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of this list
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found
