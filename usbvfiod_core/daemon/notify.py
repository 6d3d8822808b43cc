"""Telling the service manager how the server is doing (sd_notify(3)), when it wants to know."""

from __future__ import annotations

import logging
import os
import socket

from ..visible import visible

log = logging.getLogger(__name__)


def watchdog_interval() -> float | None:
    """Seconds between two `WATCHDOG=1` (sd_watchdog_enabled(3)): half of what the service manager allows; None if it
    does not watch us."""
    allowed, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not allowed.isascii() or not allowed.isdigit() or int(allowed) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(allowed) / 2e6


def notify(state: str) -> bool:
    """Send `state` ("READY=1", "STOPPING=1") to $NOTIFY_SOCKET; nothing without it. Never raises or waits: False if the
    service manager has more to read than it gets round to, and should be told again."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A line is a message of its own.
            sender.sendto(visible(state).encode(), socket.MSG_DONTWAIT, address)
    except BlockingIOError:
        return False
    except (OSError, ValueError) as error:
        log.warning("the service manager cannot be told %s: %s", state, error)
    return True
