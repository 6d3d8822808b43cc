"""Devices that are named by what they are on the lab's host: a path that is gone as soon as a guest has the device."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import gadgets
from tests.lab.gadgets import Gadget
from tests.lab.serving import Served
from tests.lab.test_withheld import drive
from usbvfiod_core import ConfigError
from usbvfiod_core.host.paths import usb_node


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_what_a_device_is_on_the_host() -> None:
    with Gadget([gadgets.acm(), gadgets.keyboard(), gadgets.network(), gadgets.printer()]) as gadget:
        device = gadget.bind()
        places = {
            "*/tty/ttyACM*": ("/dev", "/sys/class/tty"),
            "*/*/hidraw/hidraw*": ("/dev", "/sys/class/hidraw"),
            "*/*/input/input*/event*": ("/dev/input",),
            "*/net/*": ("/sys/class/net",),
            "*/usbmisc/lp*": ("/dev/usb",),
        }
        for pattern, directories in places.items():
            [found] = device.path.glob(pattern)
            for path in (found, *(Path(directory) / found.name for directory in directories)):
                assert usb_node(str(path)) == str(device.node)
        assert usb_node(f"/sys/bus/usb/devices/{device.port}") == str(device.node)


def test_a_path_is_found_again_by_what_was_there(server: Served) -> None:
    with Gadget([gadgets.acm()]) as gadget:
        attachment = server.ask("attach", device="/dev/ttyACM0?name=board")["attachment"]
        assert (attachment["state"], attachment["reason"]) == ("waiting", "/dev/ttyACM0 does not exist")
        gadget.bind()
        assert server.wait("plugged")["device"]["backend"] == "usbfs", "of two backends it is preferred"
        assert not Path("/dev/ttyACM0").exists()
        for elsewhere in (False, True):
            gadget.unbind()
            server.wait("waiting")
            device = gadget.bind(elsewhere=elsewhere)
            assert server.wait("plugged")["device"]["address"] == str(device.node)
        server.ask("detach", attachment="board")


def test_a_drive_and_a_line_of_lsusb(server: Served, tmp_path: Path) -> None:
    with drive(tmp_path) as (device, node):
        bus, number = device.node.parent.name, device.node.name
        [line] = subprocess.run(["lsusb", "-s", f"{bus}:{number}"], capture_output=True, text=True).stdout.splitlines()
        for spec in (str(node), line, f"{bus}:{number}", f"/dev/bus/usb/{int(bus)}/{int(number)}"):
            attachment = server.ask("attach", device=spec)["attachment"]
            assert attachment["state"] == "plugged", spec
            assert attachment["device"]["address"] == str(device.node)
            server.ask("detach", attachment=spec)


def test_what_is_no_usb_device_is_refused(server: Served) -> None:
    for path in ("/dev/null", "/dev/ttyS0", "/dev/input", "/etc/os-release"):
        with pytest.raises(ConfigError, match="a device is given as VID:PID"):
            server.ask("attach", device=path)
