"""Pieces of guest memory, as a transfer has them, and the one buffer that an URB wants."""

from __future__ import annotations

from collections.abc import Sequence

from usbvfiod_core.usb.transfer import part, scatter

from .ioctl import address_of

__all__ = ["contiguous", "gather", "part", "scatter"]


def contiguous(windows: Sequence[memoryview]) -> tuple[int, object] | None:
    """Where the windows lie, and what keeps them there, if each begins where the one before it ends; else None.

    None also for memory that cannot be written, which has no address for us, and for no memory at all.
    """
    try:
        start, first = address_of(windows[0])
        if len(windows) == 1:
            return start, first
        pins: list[object] = [first]
        end = start + len(windows[0])
        for window in windows[1:]:
            address, pin = address_of(window)
            if address != end:
                return None
            pins.append(pin)
            end += len(window)
    except (TypeError, ValueError, IndexError):
        return None
    return start, pins


def gather(windows: Sequence[memoryview], buffer: bytearray, start: int = 0) -> int:
    """Copy the windows to `buffer` from `start` on; return where they end."""
    for window in windows:
        end = start + len(window)
        buffer[start:end] = window
        start = end
    return start
