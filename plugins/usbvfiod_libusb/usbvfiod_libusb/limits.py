"""What people are told of the limits that libusb has."""

from __future__ import annotations

import logging

from usbvfiod_core import SetupPacket

log = logging.getLogger("usbvfiod_libusb.device")


def warn_of_control_limit(name: str, limit: int, setup: SetupPacket) -> None:
    """libusb for Linux refuses a control transfer with more data."""
    log.warning(
        "%s: libusb moves at most %d bytes in a control transfer, and the guest asks for %d (%s); "
        "the backend usbfs has no such limit",
        name,
        limit,
        setup.length,
        setup,
    )
