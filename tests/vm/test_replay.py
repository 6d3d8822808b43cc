"""Recordings of what a Linux guest did with devices, replayed by another server to another guest: its drivers bind
again and get what the first one got."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import guest_usb
from tests.vm.guest import CommandError, Guest, GuestFactory
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.cli.control import ControlConnection

pytestmark = [pytest.mark.vm, pytest.mark.long]

KEYS = {"a": 30, "b": 48, "1": 2}
SERIAL = "5ca1ab1e"
PAUSE = 5
"""Seconds, recorded before the first key: in them the reader of the replayed ones opens the device."""
MEBIBYTE = 1 << 20


def attach(server: UsbvfiodServer, device: str) -> None:
    with ControlConnection(server.control_path) as control:
        assert control.request("attach", device=device)["attachment"]["state"] == "plugged"


def typed(guest: Guest, server: UsbvfiodServer, device: str, then: Callable[[], None]) -> list[tuple[int, int]]:
    """The keys that the guest gets from a keyboard that is plugged in now."""
    attach(server, device)
    reading = guest_usb.start_reading_keys(guest, 2 * len(KEYS))
    then()
    return guest_usb.finish_reading_keys(guest, reading)


def identity(guest: Guest, disk: guest_usb.Disk) -> list[str]:
    """What the drive has answered to INQUIRY, by the guest's SCSI layer."""
    where = f"/sys/block/{Path(disk.path).name}/device"
    return guest.run(f"cat {where}/vendor {where}/model {where}/rev").splitlines()


def first(guest: Guest, disk: guest_usb.Disk, mebibytes: int) -> str:
    """The digest of so much of the drive, read past the page cache."""
    # In pieces that captures do not cut.
    command = f"/usr/bin/dd if={disk.path} bs=32k count={32 * mebibytes} iflag=direct 2>/dev/null | sha256sum"
    return guest.run(command, timeout=120).split()[0]


def test_a_drive_and_a_keyboard_in_another_guest(
    guest_factory: GuestFactory, random_image: Callable[[int], Path], tmp_path: Path
) -> None:
    image, capture = random_image(8), tmp_path / "all.pcapng"
    digest = hashlib.sha256(image.read_bytes()[: 2 * MEBIBYTE]).hexdigest()
    drive = f"virtual:flash?image={image}&transport=bot&serial={SERIAL}&name=drive"
    expected = [(KEYS[key], value) for key in KEYS for value in (1, 0)]

    with UsbvfiodServer([drive], ["--pcap-path", str(capture)]) as server:
        guest = guest_factory(server.arguments)
        (disk,) = guest_usb.wait_disks(guest)
        inquired = identity(guest, disk)
        assert first(guest, disk, 2) == digest

        def type_keys() -> None:
            guest.run(f"sleep {PAUSE}")
            server.send("keys", "type", "".join(KEYS))

        assert typed(guest, server, "virtual:keyboard?name=keys", type_keys) == expected
        guest.shutdown()

    with UsbvfiodServer([f"virtual:replay?capture={capture}&device=drive"]) as server:
        guest = guest_factory(server.arguments)
        (disk,) = guest_usb.wait_disks(guest)
        assert (guest_usb.driver(guest, f"{disk.usb}:1.0"), disk.size) == ("usb-storage", image.stat().st_size)
        assert identity(guest, disk) == inquired
        assert first(guest, disk, 2) == digest
        with pytest.raises(CommandError):  # nobody has recorded what is there
            guest.run(f"/usr/bin/dd if={disk.path} of=/dev/null bs=4k count=1 skip=1500 iflag=direct", timeout=120)
        assert first(guest, disk, 2) == digest
        replayed = f"virtual:replay?capture={capture}&device=keys&timing=real"
        assert typed(guest, server, replayed, lambda: None) == expected
        guest.shutdown()
