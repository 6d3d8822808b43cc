"""The main things on a newer kernel, with the function behind a PCI Express port of its own, as libvirt puts it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest_usb, sleep, usbtest
from tests.vm import tree as debian
from tests.vm.census import Census
from tests.vm.guest import CommandError, Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

FUNCTION = "/sys/bus/pci/devices/0000:01:00.0"


@dataclass
class Newer:
    server: UsbvfiodServer
    census: Census
    images: list[Path]
    guest: Guest

    def check_images(self) -> None:
        """Every drive is there, at its speed, and holds its image."""
        disks = {disk.size: disk for disk in guest_usb.wait_disks(self.guest, len(self.images))}
        for image, speed in zip(self.images, (5000, 480), strict=True):
            disk = disks[image.stat().st_size]
            assert disk.speed == speed
            assert guest_usb.sha256(self.guest, disk.path) == guest_usb.image_sha256(image)


@pytest.fixture(scope="module")
def newer(
    module_guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Newer]:
    images = [random_image(9), random_image(8)]
    devices = [f"virtual:flash?image={images[0]}", f"virtual:flash?image={images[1]}&speed=high"]
    census = Census(tmp_path_factory.mktemp("census"))
    devices += ["virtual:keyboard", "virtual:loopback?speed=high"]
    with UsbvfiodServer(devices, environment=census.environment) as server:
        socket = {"type": "unix", "path": str(server.socket_path)}
        function = {"driver": "vfio-user-pci", "id": "usbvfiod", "bus": "root-port", "socket": socket}
        arguments = ["-device", "pcie-root-port,id=root-port,chassis=1", "-device", json.dumps(function)]
        yield Newer(server, census, images, module_guest_factory(arguments, backported=True))


def test_it_is_a_newer_kernel(newer: Newer) -> None:
    release = newer.guest.run("uname -r").strip()
    tree = debian.tree_directory()
    assert release == debian.kernel(tree, backported=True)[1] != debian.kernel(tree)[1]


def test_the_drives_hold_their_images(newer: Newer) -> None:
    newer.check_images()


def test_usbtest_passes_at_high_speed(newer: Newer) -> None:
    node = usbtest.find(newer.guest)
    failures = []
    for case in (*usbtest.BULK_AND_CONTROL, *usbtest.INTERRUPT):
        try:
            usbtest.run(newer.guest, node, case)
        except CommandError as error:
            failures.append(f"{case.number} {case.title}: {error.output}")
    assert not failures


@pytest.mark.parametrize("state", ["freeze", "mem"])
def test_it_sleeps(newer: Newer, state: str) -> None:
    sleep.sleep(newer.guest, state)
    newer.check_images()


def test_no_driver_complains(newer: Newer) -> None:
    expected = r"unlink retry$|xHC error in resume|invalid context state for evaluate|reset \S+ USB device"
    assert [line for line in guest_usb.usb_complaints(newer.guest) if not re.search(expected, line)] == []


def test_the_function_is_reset_under_load(newer: Newer) -> None:
    """Last in this file. The port resets its bus under a driver that is not told; at its next doorbell the controller
    fails, and once it is bound anew all is well."""
    guest, census = newer.guest, newer.census
    assert guest.run(f"cat {FUNCTION}/reset_method") == "bus\n"
    for disk in guest_usb.wait_disks(guest, len(newer.images)):
        guest.start(f"while dd if={disk.path} of=/dev/null bs=65536 iflag=direct; do :; done 2>/dev/null")
    before = census.submitted
    guest.run("sleep 0.5")
    assert census.submitted > before + 10
    guest.run(f"echo 1 > {FUNCTION}/reset", timeout=60)
    assert census.in_flight == 0
    guest.run("cd /sys/bus/pci/drivers/xhci_hcd; echo 0000:01:00.0 > unbind; echo 0000:01:00.0 > bind", timeout=90)
    newer.check_images()
    usbtest.run(guest, usbtest.find(guest), usbtest.BULK_AND_CONTROL[1])
    told = [line for line in newer.server.log().splitlines() if "error" in line or "Traceback" in line]
    assert len(told) == 1
    assert "host controller error" in told[0]
    assert "the guest's driver takes it for another" in told[0]
