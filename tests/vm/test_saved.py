"""A VM is saved and restored by VMMs that save nothing of the controller: what docs/snapshots.md promises.

One guest is booted for all of this file, and each test goes on where the one before has left it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest_usb, sleep
from tests.vm.guest import Guest, GuestFactory, vfio_user_arguments
from tests.vm.relay import Relay
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.testing.limits import scaled

pytestmark = pytest.mark.vm

KEY_A = [(30, 1), (30, 0)]
FIND_AGAIN = """
echo 1 > $(dirname $(readlink -f /sys/bus/pci/drivers/xhci_hcd/0*/vendor))/remove
echo 1 > /sys/bus/pci/rescan
"""
RECOVER = Path(__file__).resolve().parents[2] / "contrib/guest/usbvfiod-recover"


@dataclass
class Machine:
    """A guest with a drive and a keyboard, and the relay between its QEMU and the server."""

    devices: list[str]
    image: Path
    relay: Relay
    servers: ExitStack
    server: UsbvfiodServer
    guest: Guest

    def replace_server(self) -> None:
        """Another server comes in the place of the one that there is; the guest hears nothing of it."""
        assert self.server.stop() == 0
        self.server = self.servers.enter_context(UsbvfiodServer(self.devices))
        self.relay.change(self.server.socket_path)

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

    def works(self) -> None:
        check(self.server, self.guest, self.image)


def check(server: UsbvfiodServer, guest: Guest, image: Path | None = None) -> None:
    """The drive is there, with what is in its image, and the keyboard types."""
    [disk] = guest_usb.wait_disks(guest, 1)
    if image is not None:
        assert guest_usb.sha256(guest, disk.path) == guest_usb.image_sha256(image)
    guest.wait_until("ls -d /sys/bus/usb/drivers/usbhid/*:*")
    reading = guest_usb.start_reading_keys(guest, 2)
    server.send("virtual:keyboard", "type", "a")
    assert guest_usb.finish_reading_keys(guest, reading) == KEY_A


def devices_seen(guest: Guest) -> list[str]:
    """The devices behind root hubs."""
    return [name for name in guest.run("ls /sys/bus/usb/devices").split() if name[0].isdigit() and ":" not in name]


def with_generation(arguments: list[str]) -> list[str]:
    """QEMU's arguments, with the device that tells a guest that it was restored."""
    return [*arguments, "-device", "vmgenid,guid=auto"]


@pytest.fixture(scope="module")
def machine(
    module_guest_factory: GuestFactory, random_image: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    image = random_image(8)
    devices = [f"virtual:flash?image={image}&transport=bot", "virtual:keyboard"]
    with ExitStack() as servers:
        server = servers.enter_context(UsbvfiodServer(devices))
        with Relay(server.directory / "relay.sock", server.socket_path) as relay:
            guest = module_guest_factory(with_generation(vfio_user_arguments(relay.path)))
            guest_usb.wait_disks(guest, 1)
            yield Machine(devices, image, relay, servers, server, guest)


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


def test_a_driver_that_takes_the_controller_for_another_is_told(machine: Machine) -> None:
    """Restored as by Cloud Hypervisor, beside a new server; with the script in it the guest goes on by itself."""
    guest = machine.guest
    guest.run(f"cat > /run/recover <<'END'\n{RECOVER.read_text()}\nEND\nsh /run/recover > /dev/null 2>&1 &")
    guest.wait_until("dmesg | grep 'usbvfiod-recover: watches'")
    [disk] = guest_usb.wait_disks(guest, 1)
    machine.replace_server()
    guest.run(f"dd if={disk.path} of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null || true", 120.0)
    machine.works()
    log = guest.dmesg()
    assert "WARNING: Host Controller Error" in log
    assert log.count("usbvfiod-recover: has started") == 1
    assert "HC died" not in log
    guest.run("dmesg -c > /dev/null")


def test_a_saved_vm_recovers_by_itself(
    machine: Machine, module_guest_factory: GuestFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Asleep: with what is mounted. Awake: with the script, which hears from QEMU that the VM was restored."""
    guest, directory = machine.guest, tmp_path_factory.mktemp("saved")
    awake = guest.save(directory / "awake")
    guest.qmp("cont")
    [disk] = guest_usb.wait_disks(guest, 1)
    guest.run(
        f"mkfs.ext4 -q -F {disk.path} && mkdir -p /mnt/drive && mount {disk.path} /mnt/drive && "
        "echo one > /mnt/drive/file && sync && dmesg -c > /dev/null"
    )
    script = guest.start(f"sleep 0.5; echo mem > /sys/power/state || exit 1; {sleep.ENABLE_ACPI}")
    guest.qmp_event("SUSPEND", 120.0)
    asleep = guest.save(directory / "asleep")
    guest.kill()
    machine.server.stop()

    with UsbvfiodServer(machine.devices) as server:
        guest = module_guest_factory(with_generation(server.arguments), saved=asleep)
        guest.qmp("system_wakeup")
        guest.wait(script, 120.0)
        assert guest.run("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/drive/file") == "one\n"
        guest.run("echo two > /mnt/drive/file; sync")
        check(server, guest)
        log = guest.dmesg()
        assert log.count("xHC error in resume") == 1
        assert [line for line in log.splitlines() if "USB disconnect" in line or "HC died" in line] == []
        guest.run("umount /mnt/drive")
        assert guest_usb.read_ext4(machine.image, "file") == b"two\n"
        guest.kill()

    with UsbvfiodServer(machine.devices) as server:
        guest = module_guest_factory(with_generation(server.arguments), saved=awake)
        guest.wait_until("dmesg | grep 'usbvfiod-recover: has started'", 120.0)
        check(server, guest, machine.image)
        log = guest.dmesg()
        assert log.count("usbvfiod-recover: has started") == 1
        assert "HC died" not in log
        guest.kill()
