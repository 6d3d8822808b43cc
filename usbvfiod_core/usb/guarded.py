"""Calls of a device's own code in the middle of a change that has to come to its end: one that is unplugged leaves its
port and its attachment whatever its plugin's code raises. It is logged with the plugin's name.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


def guarded(device: Any, method: str, *args: object) -> object:
    """What a method of `device` returns, and None if it raises, which is logged. It may be no device at all: a backend
    may have returned anything."""
    try:
        return getattr(device, method)(*args)
    except Exception as error:
        tell(device, method, error)
    return None


def guarded_text(device: Any, method: str) -> str:
    """The same where it has to be a text; empty if it is none."""
    text = guarded(device, method)
    if text is None or isinstance(text, str):
        return text or ""
    tell(device, method, TypeError(f"it returned {text!r} instead of a text"))
    return ""


def tell(device: Any, method: str, error: Exception) -> None:
    """Log what a method of `device` has raised."""
    where = _package(device, error)
    log.error("%s: %s raised (plugin %s)", _name(device), method, where, exc_info=error)


def _name(device: Any) -> str:
    try:
        return str(device.name)
    except Exception:
        return repr(type(device))


def _package(device: Any, error: Exception) -> str:
    """The package whose code was called: not that of what is around the device, which only passes the call on."""
    frame = error.__traceback__
    while frame is not None:
        package = str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package != "usbvfiod_core":
            return package
        frame = frame.tb_next
    return type(device).__module__.partition(".")[0]
