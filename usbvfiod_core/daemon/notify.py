"""Telling the service manager how the server is doing (sd_notify(3)), when it wants to know."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from ..usb.device import Loop
from ..visible import visible

log = logging.getLogger(__name__)

TRIES: Final = 100
PAUSE: Final = 0.1
"""Seconds until the service manager is told again what there was no room for."""
PATIENCE: Final = TRIES * PAUSE
"""Seconds for it to hear what is told until it is heard."""


class ServiceManager:
    """Tells it what is new, as soon as it reads. On the loop's thread."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._news = ""

    def tell(self, state: str, tries: int = TRIES, then: Callable[[], object] | None = None) -> None:
        """`READY=1` and the like. Only the newest news is told again. `then` is called when it has been told, or there
        is no point in trying any more; inside this call or later."""
        if tries == TRIES:
            self._news = state
        if state == self._news and not notify(state):
            if tries:
                self._loop.call_later(PAUSE, self.tell, state, tries - 1, then)
                return
            log.warning("the service manager was not told %s: it does not read", state)
        if then is not None:
            then()

    def feed_watchdog(self) -> None:
        """Say from now on that the loop runs, if somebody wants to know."""
        interval = watchdog_interval()
        if interval is not None:
            notify("WATCHDOG=1")  # and again soon, if nobody could be told
            self._loop.call_later(interval, self.feed_watchdog)


def watchdog_interval() -> float | None:
    """Seconds between two `WATCHDOG=1` (sd_watchdog_enabled(3)): half of what the service manager allows; None if it
    does not watch us."""
    allowed, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not allowed.isascii() or not allowed.isdigit() or int(allowed) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(allowed) / 2e6


def notify(state: str) -> bool:
    """Send `state` ("READY=1", "STOPPING=1") to $NOTIFY_SOCKET; nothing without it. Never raises or waits: False if the
    service manager is behind with reading, and should be told again."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A line is a message of its own.
            sender.sendto(visible(state).encode(), socket.MSG_DONTWAIT, address_of(address))
    except BlockingIOError:
        return False
    except (OSError, ValueError) as error:
        log.warning("the service manager cannot be told %s: %s", state, error)
    return True


def address_of(told: str) -> str:
    """The address of a socket that the environment names so: one with an abstract name begins with `@`."""
    return "\0" + told[1:] if told.startswith("@") else told
