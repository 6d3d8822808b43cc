"""The tutorial's plugin in a Linux guest: two keys of the virtual keyboard are swapped, as the tutorial says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import tutorial
from tests.vm import guest_usb
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

KEYS = {"y": 21, "z": 44, "a": 30, "1": 2, " ": 57}
"""linux/input-event-codes.h"""
SWAPPED = {"y": "z", "z": "y"}


@dataclass
class Machine:
    """A server with the keyboard behind the plugin, and its guest."""

    server: UsbvfiodServer
    guest: Guest


@pytest.fixture(scope="module")
def machine(module_guest_factory: GuestFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    site = tmp_path_factory.mktemp("site")
    path = "usbvfiod_swap_keys/__init__.py"
    (site / path).parent.mkdir()
    (site / path).write_text(tutorial.files()[path])
    metadata = site / "usbvfiod_swap_keys-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: usbvfiod-swap-keys\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[usbvfiod]\nswap-keys = usbvfiod_swap_keys\n")
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}
    devices = ["virtual:keyboard?swap-keys.keys=y,z"]
    with UsbvfiodServer(devices, ["--plugin", "swap-keys"], environment=environment) as server:
        yield Machine(server, module_guest_factory(server.arguments))


def test_the_guest_sees_the_other_key(machine: Machine) -> None:
    text = "yaz1 zyy"
    reading = guest_usb.start_reading_keys(machine.guest, 2 * len(text))
    machine.server.send("virtual:keyboard", "type", text)
    seen = guest_usb.finish_reading_keys(machine.guest, reading)
    assert seen == [(KEYS[SWAPPED.get(key, key)], value) for key in text for value in (1, 0)]


def test_nobody_complains(machine: Machine) -> None:
    assert guest_usb.usb_complaints(machine.guest) == []
    assert not any(word in Path(machine.server.log_path).read_text() for word in ("error", "warning"))
