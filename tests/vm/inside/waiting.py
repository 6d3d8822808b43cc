"""In the guest: waits for what a test expects there."""

from __future__ import annotations

import time
from typing import Any

import libusb_package
import usb.core  # type: ignore[import-untyped]
from usb.backend import libusb1  # type: ignore[import-untyped]

from usbvfiod_core.testing.limits import scaled

PATIENCE = scaled(60.0)


def wait_usb_device(vendor: int, product: int, name: str) -> Any:
    """The device with this identity and product's name, for pyusb, once it is there."""
    backend = libusb1.get_backend(find_library=lambda _: str(libusb_package.get_library_path()))
    deadline = time.monotonic() + PATIENCE
    while True:
        found = usb.core.find(idVendor=vendor, idProduct=product, backend=backend)
        try:
            if found is not None and found.product == name:
                return found
        except (usb.core.USBError, ValueError):
            pass  # it is just going
        assert time.monotonic() < deadline, f"no {name}"
        time.sleep(0.1)
