"""USB devices of other machines by usbredir: the backend `usbredir` of usbvfiod."""

from __future__ import annotations

from collections.abc import Callable

from usbvfiod_core import Backend, hookimpl

from .backend import UsbredirBackend

usbvfiod_requires = ">=1,<2"


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    """Register the backend. What it connects and where it listens is the core's to know, by its devices."""
    register(UsbredirBackend())
