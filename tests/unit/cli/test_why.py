"""`usbvfiod why` knows a device that is attached, or waited for, by another name than the one it is asked about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from usbvfiod_core.cli.why import _waiting, _with_this
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.usb.backend import DeviceInfo

BACKENDS = {"usbfs": True, "libusb": True, "usbip": False, "virtual": False}
"""Whether they are of the host."""


def attachment(number: int, backend: str, port_path: str) -> dict[str, Any]:
    return {"number": number, "device": {"backend": backend, "port_path": port_path}}


@pytest.mark.parametrize(
    ("backend", "port_path", "found"),
    [
        ("usbfs", "1-2", 2),
        ("libusb", "1-2", 2),  # the same device through another backend
        ("usbfs", "1-3", None),
        ("usbip", "1-2", None),  # a place on another machine
        ("virtual", "", None),
        ("usbfs", "", None),
    ],
)
def test_an_attachment_is_found_by_its_place(backend: str, port_path: str, found: int | None) -> None:
    registry = SimpleNamespace(
        backends=lambda: {name: SimpleNamespace(of_host=of_host) for name, of_host in BACKENDS.items()}
    )
    attachments: list[dict[str, Any]] = [
        {"number": 0, "device": None},
        attachment(1, "usbip", "1-2"),
        attachment(2, "usbfs", "1-2"),
        attachment(3, "virtual", ""),
    ]
    info = DeviceInfo(backend, "address", 0x10C4, 0xEA60, "adapter", port_path=port_path)
    one = _with_this(attachments, info, cast("Registry", registry))
    assert (one and one["number"]) == found


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("usbfs:10c4:ea60", 1),
        ("10c4:ea60", 1),
        ("libusb:10c4:ea60?port=3", 1),
        ("usbfs:10c4:ea61", None),
        ("2-1", 2),
        ("usbip:host/1-1", 3),
        ("usbip:other/1-1", None),
    ],
)
def test_an_attachment_that_waits_is_found_by_its_address(spec: str, found: int | None) -> None:
    specs = ("usbfs:10c4:ea60?name=zigbee", "usbfs:2-1", "usbip:host/1-1?name=far")
    attachments: list[dict[str, Any]] = [{"number": number, "spec": each} for number, each in enumerate(specs, 1)]
    one = _waiting(attachments, spec, BACKENDS)
    assert (one and one["number"]) == found
