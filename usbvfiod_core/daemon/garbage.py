"""When Python's collector of cycles looks at a server's objects: as little as can be while a guest waits.

A device or a client that goes leaves cycles that hold much, so a collection follows. Otherwise the oldest objects are
seldom looked at: with all that guests may have queued, that takes 10 ms.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..usb.device import Loop
from . import heap

AFTER: Final = 1.0
"""Seconds from an unplugging to the collection of what the device has left: flapping makes one a second at most."""

_THRESHOLDS: Final = (700, 10, 1000)
"""The last one is a hundred times the usual one."""


class Garbage:
    """When the collector runs in a server that works on `loop`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._due = False

    @contextmanager
    def seldom(self) -> Iterator[None]:
        """Run it seldom, while a server runs."""
        usual = gc.get_threshold()
        gc.set_threshold(*_THRESHOLDS)
        try:
            yield
        finally:
            gc.set_threshold(*usual)

    def settle(self) -> None:
        """The start is over: what is alive now is not looked at again, and the memory that is free is given back."""
        gc.collect()
        gc.freeze()
        heap.give_back()

    def unplugged(self) -> None:
        """A device has gone: collect some time later, once for several."""
        if not self._due:
            self._due = True
            self._loop.call_later(AFTER, self._collect)

    def client_ended(self) -> None:
        """Collect soon: a view of its guest's memory in a cycle of objects would keep all of it."""
        self._loop.call_soon(gc.collect)

    def _collect(self) -> None:
        self._due = False
        gc.collect()
