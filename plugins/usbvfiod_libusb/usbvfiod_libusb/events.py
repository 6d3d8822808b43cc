"""The events of one libusb context on the loop."""

from __future__ import annotations

import select
from collections.abc import Callable

from usbvfiod_core import Loop

from .binding import Context


class ContextEvents:
    """Has `ready` called on the loop's thread whenever libusb has something to do; libusb's own timers are among its
    file descriptors, so nothing is polled.

    The descriptors come and go by libusb's notifiers. While it is paused these may be called in any thread, and the
    loop watches nothing.
    """

    def __init__(self, loop: Loop, context: Context, ready: Callable[[], object]) -> None:
        self._loop = loop
        self._ready = ready
        self._watched = False
        self._wanted: dict[int, int] = {}
        self.removed: set[int] = set()
        """Descriptors that libusb has given up."""
        self._context = context
        context.setPollFDNotifiers(self._added, self._removed)
        for fd, events in context.getPollFDList():
            self._wanted[fd] = events

    def watch(self) -> None:
        """Begin, or go on. On the loop's thread."""
        if not self._watched:
            self._watched = True
            for fd, events in self._wanted.items():
                self._watch(fd, events)

    def pause(self) -> None:
        """Stop for a while. On the loop's thread."""
        if self._watched:
            self._watched = False
            for fd, events in self._wanted.items():
                self._forget(fd, events)

    def _added(self, fd: int, events: int, user_data: object = None) -> None:
        self._wanted[fd] = events
        self.removed.discard(fd)
        if self._watched:
            self._watch(fd, events)

    def _removed(self, fd: int, user_data: object = None) -> None:
        events = self._wanted.pop(fd, 0)
        self.removed.add(fd)
        if self._watched:
            self._forget(fd, events)

    def _watch(self, fd: int, events: int) -> None:
        if events & select.POLLIN:
            self._loop.add_reader(fd, self._ready)
        if events & select.POLLOUT:
            self._loop.add_writer(fd, self._ready)

    def _forget(self, fd: int, events: int) -> None:
        if events & select.POLLIN:
            self._loop.remove_reader(fd)
        if events & select.POLLOUT:
            self._loop.remove_writer(fd)
