"""The limits that libusb has, and what people are told of them."""

from __future__ import annotations

import logging
from typing import Final

from usbvfiod_core import SetupPacket, Transfer
from usbvfiod_core.usb import descriptors, requests
from usbvfiod_core.usb.descriptors import Configuration, DescriptorError

log = logging.getLogger("usbvfiod_libusb.device")

CONTROL_LIMIT: Final = 4096
"""Bytes in the data stage of a control transfer; libusb for Linux refuses more."""


def warn_of_control_limit(name: str, setup: SetupPacket) -> None:
    """libusb refuses a control transfer with more data."""
    log.warning(
        "%s: libusb moves at most %d bytes in a control transfer, and the guest asks for %d (%s); "
        "the backend usbfs has no such limit",
        name,
        CONTROL_LIMIT,
        setup.length,
        setup,
    )


def is_cut(name: str, transfer: Transfer, actual: int, configuration: Configuration | None) -> bool:
    """Whether a request that has read so many bytes would have read more without the limit, which is told then. Of
    descriptors that say how long they are, those may be whole that fill it: Windows asks for 64 bytes more."""
    setup = transfer.setup
    if setup is None or not setup.is_in or not actual == CONTROL_LIMIT < setup.length:
        return False
    if _length(setup, b"".join(transfer.windows)[:4], configuration) == CONTROL_LIMIT:
        return False
    log.warning("%s: libusb cannot read more than %d bytes of %s", name, CONTROL_LIMIT, setup)
    return True


def _length(setup: SetupPacket, beginning: bytes, configuration: Configuration | None) -> int | None:
    """How long a descriptor is; None for one that does not say it."""
    kind = setup.value >> 8
    if setup.recipient == requests.RECIPIENT_DEVICE and kind == descriptors.BOS:
        return int.from_bytes(beginning[2:4], "little")
    for interface in () if configuration is None else configuration.interfaces:
        if setup.recipient == requests.RECIPIENT_INTERFACE and interface.number == setup.index & 0xFF:
            for found, data in descriptors.walk(interface.extra):
                lengths = _named(data) if found == descriptors.HID else {}
                if kind in lengths:
                    return lengths[kind]
    return None


def _named(hid: bytes) -> dict[int, int]:
    try:
        return dict(descriptors.parse_hid(hid))
    except DescriptorError:
        return {}
