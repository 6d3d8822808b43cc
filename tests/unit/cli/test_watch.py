"""What `usbvfiod watch` prints of devices of the host, which each backend for them tells of."""

from __future__ import annotations

from typing import Any

import pytest

from usbvfiod_core import DeviceInfo
from usbvfiod_core.cli import look
from usbvfiod_core.daemon.report import device_entry, sentence

FIRST, AGAIN = "/dev/bus/usb/004/002", "/dev/bus/usb/004/003"


def event(change: str, backend: str, address: str) -> dict[str, Any]:
    info = DeviceInfo(backend, address, 0x10C4, 0xEA60, "Stick", port_path="4-1")
    return {"event": "device", "change": change, "device": device_entry(info)}


@pytest.mark.parametrize("order", [("usbfs", "libusb"), ("libusb", "usbfs")])
def test_one_line_for_each_change(order: tuple[str, str]) -> None:
    """A stick is pulled out and put in twice; the kernel gives it the first number again in the end."""
    changes = [("removed", FIRST), ("added", AGAIN), ("removed", AGAIN), ("added", FIRST), ("removed", FIRST)]
    told = look.Told()
    events = [event(change, backend, where) for change, where in changes for backend in order]
    lines = [sentence(each) for each in events if told.news(each)]
    assert lines == [f"device {change}: {where} 10c4:ea60 Stick port 4-1" for change, where in changes]


def test_a_backend_that_has_seen_two_changes_at_once() -> None:
    told = look.Told()
    changes = [("removed", FIRST), ("added", AGAIN)]
    events = [event(change, backend, where) for backend in ("usbfs", "libusb") for change, where in changes]
    assert [told.news(each) for each in events] == [True, True, False, False]


def test_devices_of_other_hosts_are_their_backend_s() -> None:
    told = look.Told()
    events = [
        event("added", "usbip", "far/4-1"),
        event("added", "other", "far/4-1"),
        event("added", "usbip", "far/4-1"),
    ]
    assert [told.news(each) for each in events] == [True, True, True]
    assert sentence(events[0]).startswith("device added: usbip:far/4-1 10c4:ea60 ")


def test_what_one_backend_tells_twice_is_told_twice() -> None:
    told = look.Told()
    assert all(told.news(event("added", "usbfs", FIRST)) for _ in range(2))
    assert told.news({"event": "lost", "count": 3})
