"""Real devices of the host through libusb: the backend `libusb` of usbvfiod."""

from __future__ import annotations

from collections.abc import Callable

from usbvfiod_core import Backend, hookimpl

from .backend import LibusbBackend

usbvfiod_requires = ">=1,<2"


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    """Register the backend. The library is loaded when the first device is opened, not here."""
    register(LibusbBackend())
