"""A VM is saved and restored by QEMU, which saves nothing of the controller: what docs/snapshots.md promises.

One guest is booted for all of this file, and restored twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest_usb, sleep
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.testing.limits import scaled

pytestmark = pytest.mark.vm

KEY_A = [(30, 1), (30, 0)]
FIND_AGAIN = """
echo 1 > $(dirname $(readlink -f /sys/bus/pci/drivers/xhci_hcd/0*/vendor))/remove
echo 1 > /sys/bus/pci/rescan
"""


@dataclass
class Machine:
    """The server and its guest, with a drive and a keyboard."""

    server: UsbvfiodServer
    devices: list[str]
    image: Path
    guest: Guest

    def works(self, *, mounted: bool = False) -> None:
        """The drive is there with what is in its image, and the keyboard types."""
        check(self.server, self.guest, None if mounted else self.image)

    def job(self, command: str, **arguments: Any) -> None:
        """Run a job of QEMU's to its end."""
        guest = self.guest
        guest.qmp(command, **{"job-id": "job", **arguments})
        deadline = time.monotonic() + scaled(120.0)
        while (job := guest.qmp("query-jobs")[0])["status"] != "concluded":
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        assert "error" not in job, job
        guest.qmp("job-dismiss", id="job")


def check(server: UsbvfiodServer, guest: Guest, image: Path | None) -> None:
    [disk] = guest_usb.wait_disks(guest, 1)
    if image is not None:
        assert guest_usb.sha256(guest, disk.path) == guest_usb.image_sha256(image)
    guest.wait_until("ls -d /sys/bus/usb/drivers/usbhid/*:*")
    reading = guest_usb.start_reading_keys(guest, 2)
    server.send("virtual:keyboard", "type", "a")
    assert guest_usb.finish_reading_keys(guest, reading) == KEY_A


def devices_seen(guest: Guest) -> list[str]:
    """The devices behind root hubs."""
    return [name for name in guest.run("ls /sys/bus/usb/devices").split() if "-" in name and ":" not in name]


@pytest.fixture(scope="module")
def machine(
    module_guest_factory: GuestFactory, random_image: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    image = random_image(8)
    devices = [f"virtual:flash?image={image}", "virtual:keyboard"]
    with UsbvfiodServer(devices) as server:
        guest = module_guest_factory(server.arguments)
        machine = Machine(server, devices, image, guest)
        guest_usb.wait_disks(guest, 1)
        yield machine


def test_a_quiesced_vm_is_saved_and_goes_on(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    """savevm: the devices are back where they were. And loadvm: the guest looks for its controller again."""
    server, guest = machine.server, machine.guest
    file: dict[str, Any] = {"driver": "file", "filename": str(tmp_path_factory.mktemp("state") / "state.qcow2")}
    machine.job("blockdev-create", options={**file, "size": 0})
    guest.qmp("blockdev-add", **{**file, "node-name": "file"})
    image: dict[str, Any] = {"driver": "qcow2", "file": "file"}
    machine.job("blockdev-create", options={**image, "size": 1 << 30})
    guest.qmp("blockdev-add", **{**image, "node-name": "state"})
    guest.run("dmesg -c > /dev/null")
    before = devices_seen(guest)
    assert len(before) == 2

    server.request("quiesce")
    assert devices_seen(guest) == []
    machine.job("snapshot-save", tag="backup", vmstate="state", devices=["state"])
    assert devices_seen(guest) == []
    server.request("resume")
    machine.works()
    assert devices_seen(guest) == before
    complaints = guest_usb.usb_complaints(guest)
    assert [line for line in complaints if "USB disconnect" not in line and "Synchronize Cache" not in line] == []

    server.request("quiesce")
    machine.job("snapshot-load", tag="backup", vmstate="state", devices=["state"])
    if not guest.qmp("query-status")["running"]:
        guest.qmp("cont")
    guest.run(FIND_AGAIN)
    server.request("resume")
    machine.works()


def test_a_vm_that_was_saved_asleep_recovers_by_itself(
    machine: Machine, module_guest_factory: GuestFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also beside a server that knows nothing of the first; and what is mounted stays mounted."""
    guest = machine.guest
    [disk] = guest_usb.wait_disks(guest, 1)
    guest.run(
        f"mkfs.ext4 -q -F {disk.path} && mkdir -p /mnt/drive && mount {disk.path} /mnt/drive && "
        "echo one > /mnt/drive/file && sync && dmesg -c > /dev/null"
    )
    asleep = guest.start(f"sleep 0.5; echo mem > /sys/power/state || exit 1; {sleep.ENABLE_ACPI}")
    guest.qmp_event("SUSPEND", 120.0)
    saved = guest.save(tmp_path_factory.mktemp("saved") / "saved")
    guest.kill()
    assert machine.server.stop() == 0
    with UsbvfiodServer(machine.devices) as server:
        restored = module_guest_factory(server.arguments, saved=saved)
        restored.qmp("system_wakeup")
        restored.wait(asleep, 120.0)
        assert restored.run("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/drive/file").strip() == "one"
        restored.run("echo two > /mnt/drive/file; sync")
        check(server, restored, None)
        log = restored.dmesg()
        assert log.count("xHC error in resume") == 1
        assert "USB disconnect" not in log
        assert "HC died" not in log
        restored.run("umount /mnt/drive")
        assert guest_usb.read_ext4(machine.image, "file") == b"two\n"
        assert restored.boots == 1
