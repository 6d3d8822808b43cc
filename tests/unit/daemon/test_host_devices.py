"""Devices of the host that several backends and servers tell of are one each, in lists and in news."""

from __future__ import annotations

from typing import Any

import pytest

from usbvfiod_core import DeviceInfo
from usbvfiod_core.daemon.host_devices import MAX_NEWS, Entry, News, once
from usbvfiod_core.daemon.report import device_entry, sentence

FIRST, AGAIN = "/dev/bus/usb/004/002", "/dev/bus/usb/004/003"


def entry(backend: str, address: str, port_path: str = "4-1", note: str = "") -> Entry:
    return device_entry(DeviceInfo(backend, address, 0x10C4, 0xEA60, "Stick", port_path=port_path, note=note))


def event(change: str, backend: str, address: str, port_path: str = "4-1") -> dict[str, Any]:
    return {"event": "device", "change": change, "device": entry(backend, address, port_path)}


@pytest.mark.parametrize("order", [("usbfs", "libusb"), ("libusb", "usbfs")])
def test_one_line_for_each_change(order: tuple[str, str]) -> None:
    """A stick is pulled out and put in twice; the kernel gives it the first number again in the end."""
    changes = [("removed", FIRST), ("added", AGAIN), ("removed", AGAIN), ("added", FIRST), ("removed", FIRST)]
    news = News()
    events = [event(change, backend, where) for change, where in changes for backend in order]
    lines = [sentence(each) for each in events if news.is_new(each)]
    assert lines == [f"device {change}: {where} 10c4:ea60 Stick port 4-1" for change, where in changes]


def test_a_backend_that_has_seen_two_changes_at_once() -> None:
    news = News()
    changes = [("removed", FIRST), ("added", AGAIN)]
    events = [event(change, backend, where) for backend in ("usbfs", "libusb") for change, where in changes]
    assert [news.is_new(each) for each in events] == [True, True, False, False]


def test_several_servers_have_the_same_host() -> None:
    news = News()
    tellers = [(server, backend) for server in ("one", "two") for backend in ("usbfs", "libusb")]
    for change in ("added", "removed", "added"):
        told = [news.is_new(event(change, backend, FIRST), server) for server, backend in tellers]
        assert told == [True, False, False, False]


def test_devices_of_other_hosts_are_their_backend_s() -> None:
    news = News()
    events = [event("added", backend, "far/4-1", "") for backend in ("usbip", "other", "usbip")]
    assert [news.is_new(each) for each in events] == [True, True, True]
    assert sentence(events[0]).startswith("device added: usbip:far/4-1 10c4:ea60 ")
    assert once([entry("usbip", "far/4-1", ""), entry("other", "far/4-1", "")]) == [
        entry("usbip", "far/4-1", ""),
        entry("other", "far/4-1", ""),
    ]


def test_what_one_backend_tells_twice_is_told_twice() -> None:
    news = News()
    assert all(news.is_new(event("added", "usbfs", FIRST)) for _ in range(2))


def test_servers_that_make_up_devices_do_not_fill_the_memory() -> None:
    news = News()
    for number in range(MAX_NEWS + 1):
        assert news.is_new(event("added", "usbip", f"far/{number}", ""), "one")
    assert not news.is_new(event("added", "usbip", f"far/{MAX_NEWS}", ""), "two")
    assert news.is_new(event("added", "usbip", "far/0", ""), "two")  # the oldest is forgotten


def test_a_device_is_listed_by_the_backend_that_is_used_by_itself() -> None:
    usbfs, libusb, another = (entry(backend, FIRST) for backend in ("usbfs", "libusb", "another"))
    assert once([another, libusb, usbfs]) == [usbfs]
    assert once([another, libusb]) == [libusb]


def test_a_device_is_listed_by_a_backend_that_can_use_it() -> None:
    usbfs, libusb = entry("usbfs", FIRST, note="no permission"), entry("libusb", FIRST)
    assert once([usbfs, libusb]) == [libusb]


def test_a_root_hub_has_no_place_but_a_node() -> None:
    hub = "/dev/bus/usb/004/001"
    assert once([entry("libusb", hub, ""), entry("usbfs", hub, "")]) == [entry("usbfs", hub, "")]
