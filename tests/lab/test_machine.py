"""QEMU's emulated devices: each has its identity, speed and driver, goes when pulled out, comes back."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.lab.machine import Machine, MonitorError
from tests.lab.uevents import Uevents
from tests.lab.usb_device import wait_disk


@pytest.mark.parametrize(
    ("driver", "controller", "properties", "identity", "speed", "host_driver"),
    [
        ("usb-kbd", "xhci", {}, "0627:0001", 480, "usbhid"),
        ("usb-kbd", "xhci", {"usb_version": 1}, "0627:0001", 12, "usbhid"),
        ("usb-tablet", "ehci", {}, "0627:0001", 480, "usbhid"),
    ],
)
def test_a_device_comes_and_goes(
    machine: Machine,
    driver: str,
    controller: str,
    properties: dict[str, Any],
    identity: str,
    speed: int,
    host_driver: str,
) -> None:
    for _ in range(2):
        device = machine.plug(driver, controller=controller, **properties)
        assert device.id == identity
        assert device.speed == speed
        assert device.drivers == {0: host_driver}
        with open(device.node, "rb") as node:
            assert struct.unpack("<HH", node.read(18)[8:12]) == tuple(int(part, 16) for part in identity.split(":"))
        machine.unplug(device)
        assert not device.present()
        assert not device.node.exists()


@pytest.mark.parametrize(
    ("driver", "controller", "speed", "host_driver"),
    [
        ("usb-storage", "xhci", 5000, "usb-storage"),
        ("usb-storage", "ehci", 480, "usb-storage"),
        ("usb-uas", "xhci", 5000, "uas"),
    ],
)
def test_a_drive_holds_its_image(machine: Machine, driver: str, controller: str, speed: int, host_driver: str) -> None:
    image = Path("/exchange/drive.img")
    content = os.urandom(1 << 20)
    image.write_bytes(content)
    with Uevents() as uevents:
        device = machine.plug_drive(image, driver, controller=controller)
        try:
            assert device.speed == speed
            assert device.drivers == {0: host_driver}
            assert wait_disk(uevents, device).read_bytes() == content
        finally:
            machine.unplug(device)
    image.unlink()


def test_a_refusal_is_qemus(machine: Machine) -> None:
    with pytest.raises(MonitorError, match="'no-such-device' is not a valid device"):
        machine.plug("no-such-device")
