"""usbvfiod-usbfs: real USB devices for usbvfiod, through Linux's usbfs."""

from __future__ import annotations

from collections.abc import Callable

from usbvfiod_core import Backend, hookimpl

from .backend import UsbfsBackend

usbvfiod_requires = ">=1,<2"


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(UsbfsBackend())
