"""Which interface a request is for that goes to an interface (USB 2.0 9.3.4)."""

from __future__ import annotations

from typing import Final

from . import requests
from .descriptors import Configuration
from .requests import SetupPacket

PRINTER: Final = 0x07
"""The class of printers."""
GET_DEVICE_ID: Final = (requests.DIRECTION_IN | requests.TYPE_CLASS | requests.RECIPIENT_INTERFACE, 0)
"""(bmRequestType, bRequest) of a printer's request for its IEEE 1284 device ID (USB printer class 1.1, 4.2.1)."""


def interface_of(setup: SetupPacket, configuration: Configuration | None) -> int:
    """The number of the interface that a request to an interface is for, in the configuration that is set.

    It is the low byte of wIndex; the high byte is for the class. GET_DEVICE_ID alone has the interface in the high
    byte, and its alternate setting in the low one: Linux lets it pass where there is such a setting of a printer.
    """
    if (setup.request_type, setup.request) == GET_DEVICE_ID and configuration is not None:
        wanted = (setup.index >> 8, setup.index & 0xFF, PRINTER)
        if any((each.number, each.alternate, each.class_code) == wanted for each in configuration.interfaces):
            return setup.index >> 8
    return setup.index & 0xFF
