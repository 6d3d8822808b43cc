"""The whole chain: devices of the lab's kernel, given by usbvfiod to a guest in the lab, used by its stock drivers.

A machine emulated in an emulated machine takes minutes to boot, so there is one, and it has everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.machine import Machine
from tests.lab.usb_device import HostUsbDevice
from tests.vm import guest_usb
from tests.vm.guest import Guest
from tests.vm.server import UsbvfiodServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MIB = 1 << 20
BOOT_TIMEOUT = 1200.0
COMMAND_TIMEOUT = 300.0


@dataclass
class Chain:
    """`images` by what they are for; they differ in size, and so a guest's drive is told by it."""

    images: dict[str, Path]
    server: UsbvfiodServer
    guest: Guest

    def disk(self, name: str) -> guest_usb.Disk:
        """The guest's drive with this image."""
        disks = guest_usb.wait_disks(self.guest, len(self.images), COMMAND_TIMEOUT)
        return next(disk for disk in disks if disk.size == self.images[name].stat().st_size)


@pytest.fixture(scope="module")
def exchange() -> Path:
    """The directory in which QEMU outside finds images."""
    return Path("/exchange")


@pytest.fixture(scope="module")
def chain(machine: Machine, exchange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    images = {name: exchange / f"{name}.img" for name in ("usbfs", "libusb", "uas")}
    for number, image in enumerate(images.values()):
        image.write_bytes(os.urandom((4 + number) * MIB))
    plugged: list[HostUsbDevice] = [
        machine.plug_drive(images["usbfs"]),
        machine.plug_drive(images["libusb"]),
        machine.plug_drive(images["uas"], "usb-uas"),
        machine.plug("usb-kbd"),
        machine.plug("usb-tablet"),
    ]
    backends = ("usbfs", "libusb", "usbfs", "usbfs", "libusb")
    devices = [f"{backend}:{device.node}" for backend, device in zip(backends, plugged, strict=True)]
    with (
        UsbvfiodServer(devices, timeout=120.0) as server,
        Guest(tmp_path_factory.mktemp("guest"), server.arguments, memory_mib=256, timeout=BOOT_TIMEOUT) as guest,
    ):
        yield Chain(images, server, guest)
        assert server.stop(timeout=60.0) == 0
    for device in plugged:
        machine.unplug(device)
    for image in images.values():
        image.unlink()


@pytest.mark.parametrize("name", ["usbfs", "libusb", "uas"])
def test_a_drive_is_read_and_written(chain: Chain, name: str) -> None:
    guest, disk, image = chain.guest, chain.disk(name), chain.images[name]
    assert guest_usb.sha256(guest, disk.path, COMMAND_TIMEOUT) == guest_usb.image_sha256(image)
    guest.run(
        f"dd if=/dev/urandom of=/tmp/data bs=1M count=2 && dd if=/tmp/data of={disk.path} bs=1M conv=fsync",
        COMMAND_TIMEOUT,
    )
    assert guest_usb.sha256(guest, disk.path, COMMAND_TIMEOUT) == guest_usb.image_sha256(image)
    driver = guest.run(f"basename $(readlink -f /sys/bus/usb/devices/{disk.usb}:1.0/driver)").strip()
    assert driver == ("uas" if name == "uas" else "usb-storage")


def test_a_file_system_is_made_and_kept(chain: Chain) -> None:
    path = chain.disk("usbfs").path
    chain.guest.run(
        f"mkfs.ext4 -q -F {path} && mount {path} /mnt && seq 20000 > /mnt/numbers && sync && umount /mnt "
        f"&& mount -o ro {path} /mnt && seq 20000 | cmp - /mnt/numbers && umount /mnt",
        COMMAND_TIMEOUT,
    )


def test_keys_are_typed(chain: Chain, machine: Machine) -> None:
    reading = guest_usb.start_reading_keys(chain.guest, 4, name="Keyboard", patience=120)
    machine.press("a", "b")
    assert guest_usb.finish_reading_keys(chain.guest, reading, COMMAND_TIMEOUT) == [(30, 1), (30, 0), (48, 1), (48, 0)]


def test_the_kernel_has_nothing_to_complain_about(chain: Chain) -> None:
    warnings = [line for line in chain.guest.dmesg(4).splitlines() if guest_usb.USB_WORDS.search(line)]
    assert warnings == []
