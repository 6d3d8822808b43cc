"""More than fifteen devices in one Linux guest, by --usb2-ports and --usb3-ports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import guest_usb
from tests.vm.guest import GuestFactory
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.daemon.guest_ports import LINUX_USB2, LINUX_USB3

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(900)]

HUBS = "for hub in /sys/bus/usb/devices/usb*; do cat $hub/maxchild; done"
"""The ports of the guest's root hubs."""
DEVICES = "ls -d /sys/bus/usb/devices/[0-9]*-[0-9]* | grep -vc :"
TIMEOUT = 300.0  # seconds; some fifty devices are enumerated one after the other


def server(image: Path, usb2: int, usb3: int, devices: int) -> UsbvfiodServer:
    """With a keyboard in each port of USB 2 and a loopback in each of USB 3, as many as `devices` says together, and a
    drive in the last one that Linux has."""
    last = usb2 + min(usb3, LINUX_USB3)
    words = [f"virtual:flash?image={image}&port={last}"]
    keyboards = min(usb2, devices - 1)
    words += ["virtual:keyboard"] * keyboards
    words += ["virtual:loopback?speed=super"] * (devices - 1 - keyboards)
    return UsbvfiodServer(words, ["--usb2-ports", str(usb2), "--usb3-ports", str(usb3)])


@pytest.mark.parametrize("backported", [False, True], ids=["stable", "newer"])
def test_a_device_in_every_port_that_linux_has(
    guest_factory: GuestFactory, random_image: Callable[[int], Path], backported: bool
) -> None:
    image = random_image(4)
    count = LINUX_USB2 + LINUX_USB3
    with server(image, LINUX_USB2, LINUX_USB3, count) as serving:
        guest = guest_factory(serving.arguments, backported=backported)
        assert sorted(map(int, guest.run(HUBS).split())) == [LINUX_USB3, LINUX_USB2]
        guest.wait_until(f"[ $({DEVICES}) -eq {count} ]", TIMEOUT)
        [disk] = guest_usb.wait_disks(guest)
        assert disk.usb.endswith(f"-{LINUX_USB3}")
        assert guest_usb.sha256(guest, disk.path) == guest_usb.image_sha256(image)
        assert "Linux" not in serving.log()
