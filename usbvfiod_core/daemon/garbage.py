"""When Python's collector of cycles looks at a server's objects: as little as can be while a guest waits.

What leaves cycles behind that hold much, devices and clients, is followed by a collection. Otherwise the oldest
objects, among them all that guests have queued, are seldom looked at: it would take 10 ms if they have queued what they
may.
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
    """The collector's hours in a server that works on `loop`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._due = False

    @contextmanager
    def seldom(self) -> Iterator[None]:
        """While a server runs."""
        usual = gc.get_threshold()
        gc.set_threshold(*_THRESHOLDS)
        try:
            yield
        finally:
            gc.set_threshold(*usual)

    def settle(self) -> None:
        """What is alive now stays so: it is not looked at again. What starting has taken beside that is given back."""
        gc.collect()
        gc.freeze()
        heap.give_back()

    def unplugged(self) -> None:
        """A device has gone."""
        if not self._due:
            self._due = True
            self._loop.call_later(AFTER, self._collect)

    def client_ended(self) -> None:
        """Views of its guest's memory in cycles of objects would keep all of it."""
        self._loop.call_soon(gc.collect)

    def _collect(self) -> None:
        self._due = False
        gc.collect()
