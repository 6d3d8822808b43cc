"""usbvfiod-usbfs: real USB devices for usbvfiod, through Linux's usbfs."""

from __future__ import annotations

from collections.abc import Callable

from usbvfiod_core import Backend, RegisterNeeds, hookimpl
from usbvfiod_core.host.needs import register_host_needs

from .backend import UsbfsBackend

usbvfiod_requires = ">=1,<2"


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(UsbfsBackend())


@hookimpl
def usbvfiod_register_needs(register: RegisterNeeds) -> None:
    """Register what all backends of real devices need."""
    register_host_needs(register)
