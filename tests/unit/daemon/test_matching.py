"""Addresses and the devices they mean."""

from __future__ import annotations

import pytest

from usbvfiod_core import ConfigError, DeviceInfo
from usbvfiod_core.daemon.matching import find

STICK = DeviceInfo("usbfs", "/dev/bus/usb/002/003", 0x0781, 0x5581, "Ultra", serial="A1", port_path="2-1.4")
TWIN = DeviceInfo("usbfs", "/dev/bus/usb/002/004", 0x0781, 0x5581, "Ultra", serial="B2", port_path="2-1.3")
MOUSE = DeviceInfo("usbfs", "/dev/bus/usb/001/002", 0x046D, 0xC077, "Mouse", port_path="1-2")
DEVICES = [STICK, TWIN, MOUSE]


@pytest.mark.parametrize(
    ("address", "info"),
    [
        ("/dev/bus/usb/002/003", STICK),
        ("046d:c077", MOUSE),
        ("046D:C077", MOUSE),
        ("0781:5581:B2", TWIN),
        ("2-1.4", STICK),
        ("1-2", MOUSE),
        ("046d:c078", None),
        ("0781:5581:C3", None),
        ("2-1", None),
        ("flash", None),
        ("/dev/bus/usb/002/009", None),
    ],
)
def test_what_an_address_means(address: str, info: DeviceInfo | None) -> None:
    assert find(address, DEVICES) is info


def test_an_address_is_compared_before_it_is_read() -> None:
    odd = DeviceInfo("replay", "046d:c077", 1, 2, "a recording of a mouse")
    assert find("046d:c077", [MOUSE, odd]) is odd


def test_an_ambiguous_address_is_told_what_differs() -> None:
    with pytest.raises(ConfigError) as error:
        find("0781:5581", DEVICES)
    assert str(error.value) == (
        "0781:5581 is ambiguous, give one of these addresses: "
        "/dev/bus/usb/002/003 serial A1 port 2-1.4; /dev/bus/usb/002/004 serial B2 port 2-1.3"
    )


def test_a_missing_serial_is_no_error() -> None:
    assert find("046d:c077:", DEVICES) is MOUSE
