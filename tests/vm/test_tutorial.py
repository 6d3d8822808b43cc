"""The tutorial's plugins in a Linux guest: two keys of the virtual keyboard are swapped, and a lamp is switched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import tutorial
from tests.vm import guest_usb
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer
from tests.vm.system import System
from usbvfiod_core.cli.scaffold import module_name, package

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

KEYS = {"y": 21, "z": 44, "a": 30, "1": 2, " ": 57}
"""linux/input-event-codes.h"""
SWAPPED = {"y": "z", "z": "y"}


@dataclass
class Machine:
    """A server with the keyboard behind the plugin, and its guest."""

    server: UsbvfiodServer
    guest: Guest


def installed(site: Path, plugin: str, text: str) -> dict[str, str]:
    """The environment of a server that finds a plugin of this text, whose package is made in `site`."""
    module = module_name(plugin)
    (site / module).mkdir()
    (site / module / "__init__.py").write_text(text)
    metadata = site / f"{module}-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: usbvfiod-{plugin}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[usbvfiod]\n{plugin} = {module}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}


@pytest.fixture(scope="module")
def machine(module_guest_factory: GuestFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    text = tutorial.files()["usbvfiod_swap_keys/__init__.py"]
    environment = installed(tmp_path_factory.mktemp("site"), "swap-keys", text)
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


@pytest.mark.long  # another guest, with Python
def test_the_guest_switches_a_lamp(tmp_path: Path) -> None:
    """What the page has the reader type into Python there, with the answers that it shows."""
    text = package("led-panel", "backend")[Path(module_name("led-panel"), "__init__.py")]
    (typed,) = re.findall(r"^```pycon\n(.*?)^```$", tutorial.PAGE.read_text(), re.M | re.S)
    with (
        UsbvfiodServer(["led-panel:panel?name=front"], environment=installed(tmp_path, "led-panel", text)) as server,
        System(tmp_path, server.arguments) as guest,
    ):
        guest.wait_until("grep -l 1209 /sys/bus/usb/devices/*/idVendor")
        (guest.exchange / "typed").write_text(typed)
        assert server.send("front", "lamps") == "00000000"
        guest.run("python3 -m doctest /exchange/typed", 120.0)
        assert server.send("front", "lamps") == "00001000"
