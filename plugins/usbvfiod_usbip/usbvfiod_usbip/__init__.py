"""usbvfiod-usbip: USB devices of other machines for usbvfiod, by USB/IP."""

from __future__ import annotations

from collections.abc import Callable

from usbvfiod_core import Backend, RegisterNeeds, RegisterOptions, hookimpl
from usbvfiod_core.remote import register_remote_needs

from .backend import UsbipBackend
from .options import UsbipConfig

usbvfiod_requires = ">=1,<2"

_backend = UsbipBackend()


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(_backend)


@hookimpl
def usbvfiod_register_options(register: RegisterOptions) -> None:
    register(config=UsbipConfig)


@hookimpl
def usbvfiod_take_config(config: UsbipConfig) -> None:
    """The hosts at which devices are looked for."""
    _backend.config = config


@hookimpl
def usbvfiod_register_needs(register: RegisterNeeds) -> None:
    """Connections to the hosts at which devices are looked for; those of configured devices are the core's to know."""
    register_remote_needs(register, [place.port for place in _backend.places()])
