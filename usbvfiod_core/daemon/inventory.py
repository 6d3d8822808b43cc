"""What the backends list, read again when they say that it changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from ..errors import PluginError, UsbvfiodError
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Loop, Timer

log = logging.getLogger(__name__)

SCAN_PACE = 0.03
"""Seconds from the end of one scan of a backend to the start of one because of an event, or because somebody wants to
know: flapping costs no more, nor does asking."""

IDLE_PACE = 0.5
"""Seconds from an event to the scan of a backend of which no attachment wants a device: then it is only news."""

Listed: TypeAlias = "Callable[[list[DeviceInfo] | BaseException], object]"


@dataclass(slots=True)
class _Scan:
    """The scans of one backend."""

    running: bool = False
    wanted: bool = False
    """Something changed since the scan that is running began."""
    event: bool = False
    """The next scan is because of an event."""
    urgent: bool = False
    """What is wanted while a scan is running is not to wait."""
    ended: float = float("-inf")
    timer: Timer | None = None
    due: float = 0.0
    """When the timer starts the next scan."""
    stop: Callable[[], object] | None = None
    """Ends the watch; None if there is none."""
    watched: bool = False
    """Whether it was tried to watch."""
    events: bool = False
    devices: dict[str, DeviceInfo] | None = None
    """By address, what the last scan found; None before the first."""
    asked: list[Listed] = field(default_factory=list)
    """Who wants to know what the next scan finds."""


class Inventory:
    """Lists devices in threads, one scan of a backend at a time. All methods are called on the loop's thread.

    `wanted` tells whether an attachment waits for a device of a backend. `listed` is called after each scan with the
    backend's name, the devices or the exception, and whether it was made because of an event. `changed` is called with
    "added" or "removed" and a device that the last scan did not list, or did list; nothing is new in the first.
    """

    def __init__(
        self,
        loop: Loop,
        backends: Mapping[str, Backend],
        listed: Callable[[str, list[DeviceInfo] | BaseException, bool], object],
        wanted: Callable[[str], bool],
    ) -> None:
        self._loop = loop
        self._backends = backends
        self._listed = listed
        self._wanted = wanted
        self._scans = {name: _Scan() for name in backends}
        self._closed = False
        self.held = False
        """While it is set, no attachment learns what was listed."""
        self.changed: Callable[[str, DeviceInfo], object] = lambda change, info: None

    def look(self, backend: str, *, event: bool = False, urgent: bool = True) -> None:
        """Make a scan that begins after this call: at once if it is `urgent` and not because of an event, else soon.
        The backend is watched from now on."""
        scan = self._scans[backend]
        if self._closed:
            return
        self.watch(backend)
        scan.event |= event
        if scan.running:
            scan.wanted = True
            scan.urgent |= urgent and not event
            return
        wait, now = 0.0, self._loop.time()
        if event and not self._wanted(backend):
            wait = IDLE_PACE
        elif event or not urgent:
            wait = scan.ended + SCAN_PACE - now
        if wait <= 0:
            self._start(backend)
        elif scan.timer is None or now + wait < scan.due:
            if scan.timer is not None:
                scan.timer.cancel()
            scan.due = now + wait
            scan.timer = self._loop.call_later(wait, self._start, backend)

    def ask(self, backend: str, done: Listed) -> None:
        """Give `done` what a scan that begins after this call finds. Many who ask at once share one."""
        self._scans[backend].asked.append(done)
        self.look(backend, urgent=False)

    def watch(self, backend: str) -> None:
        """Notice from now on when devices of a backend come and go."""
        scan = self._scans[backend]
        if scan.watched or self._closed:
            return
        scan.watched = True
        implementation = self._backends[backend]
        try:
            scan.stop = implementation.watch(self._loop, partial(self.look, backend, event=True))
        except Exception as error:
            what = error if isinstance(error, UsbvfiodError) else f"{type(error).__name__}: {error}"
            log.warning("backend %s has no events, so devices that come are noticed late: %s", backend, what)
        else:
            scan.events = type(implementation).watch is not Backend.watch

    def has_events(self, backend: str) -> bool:
        """Whether the backend says when devices come and go."""
        return self._scans[backend].events

    def close(self) -> None:
        """End all watches; nothing is listed any more."""
        self._closed = True
        for name, scan in self._scans.items():
            if scan.timer is not None:
                scan.timer.cancel()
            if scan.stop is not None:
                stop, scan.stop = scan.stop, None
                try:
                    stop()
                except Exception:  # a plugin's; the others end, and the server does
                    log.exception("backend %s: the end of its watch raised", name)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _start(self, backend: str) -> None:
        scan = self._scans[backend]
        if scan.timer is not None:
            scan.timer.cancel()
            scan.timer = None
        scan.running = True
        event, scan.event = scan.event, False
        asked, scan.asked = scan.asked, []
        self._loop.run_blocking(partial(_list, self._backends[backend]), partial(self._ended, backend, event, asked))

    def _ended(self, backend: str, event: bool, asked: list[Listed], result: list[DeviceInfo] | BaseException) -> None:
        scan = self._scans[backend]
        scan.running = False
        scan.ended = self._loop.time()
        if self._closed:
            return
        if not isinstance(result, BaseException):
            before, now = scan.devices, {info.address: info for info in result}
            scan.devices = now
            if before is not None:
                for change, some, others in (("removed", before, now), ("added", now, before)):
                    for address in some.keys() - others.keys():
                        self.changed(change, some[address])
        if not self.held:
            self._listed(backend, result, event)
        for done in asked:
            done(result)
        if scan.wanted:
            scan.wanted = False
            urgent, scan.urgent = scan.urgent, False
            self.look(backend, event=scan.event and not urgent, urgent=urgent)


def _list(backend: Backend) -> list[DeviceInfo]:
    """What it lists; in a thread. Raises PluginError for what is no list of devices, or whatever the backend raises."""
    found: object = backend.list_devices()
    if not isinstance(found, list | tuple):
        raise PluginError(f"list_devices returned {found!r} instead of a list")
    for each in found:
        if not isinstance(each, DeviceInfo):
            raise PluginError(f"list_devices returned {each!r} instead of a DeviceInfo")
    return list(found)
