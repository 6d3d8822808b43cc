"""Drivers that come and go while the devices are busy: nothing stays behind in the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest_usb, initramfs, usbtest
from tests.vm import tree as debian
from tests.vm.census import Census
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

GROWTH_KIB = 1024  # of the server's own memory, after the first rounds

# Reads from every drive and queued transfers to the loopback device, whether or not they succeed.
BUSY = """
touch /tmp/busy
while [ -e /tmp/busy ]; do
    for disk in /dev/sd[a-z]; do
        [ -b $disk ] && dd if=$disk of=/dev/null bs=65536 count=64 iflag=direct 2>/dev/null
    done
    sleep 0.02
done &
while [ -e /tmp/busy ]; do
    for node in /dev/bus/usb/*/*; do
        for test in '5 50 4096 0 8' '6 50 4096 0 8' '12 5 4096 0 0'; do
            perl /tmp/usbtest.pl $node $test >/dev/null 2>&1
        done
    done
    sleep 0.02
done &
wait
"""


@dataclass
class Machine:
    """The server with what is counted in it, its images, and the guest.

    `images` are checked, each of another size; `kernel_image` has kernel and initramfs, each in whole blocks.
    """

    server: UsbvfiodServer
    census: Census
    images: list[Path]
    kernel_image: Path
    guest: Guest

    def wait_devices(self) -> None:
        """Wait until all devices are bound to their drivers, and check what the drives hold."""
        disks = {disk.size: disk.path for disk in guest_usb.wait_disks(self.guest, 3)}
        usbtest.find(self.guest)
        self.guest.wait_until("ls -d /sys/bus/usb/drivers/usbhid/*:*")
        for image in self.images:
            path = disks[image.stat().st_size]
            assert guest_usb.sha256(self.guest, path) == guest_usb.image_sha256(image)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))


def blocks(size: int) -> int:
    """The size in whole blocks of 512 bytes."""
    return -(-size // 512) * 512


def kernel_and_initramfs() -> list[bytes]:
    """What the guest boots, for it to boot again."""
    tree = debian.tree_directory()
    return [debian.kernel(tree)[0].read_bytes(), initramfs.ensure(tree).read_bytes()]


@pytest.fixture(scope="module")
def machine(
    module_guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    images = [random_image(5), random_image(6)]
    devices = [
        f"virtual:flash?image={image}&speed={speed}" for image, speed in zip(images, ("super", "high"), strict=True)
    ]
    census = Census(tmp_path_factory.mktemp("census"))
    kernel_image = tmp_path_factory.mktemp("kexec") / "kexec.img"
    kernel_image.write_bytes(b"".join(each.ljust(blocks(len(each)), b"\0") for each in kernel_and_initramfs()))
    devices += [f"virtual:flash?image={kernel_image}&readonly=true", "virtual:keyboard", "virtual:loopback"]
    with UsbvfiodServer(devices, environment=census.environment) as server:
        guest = module_guest_factory(server.arguments, memory_mib=768)
        yield Machine(server, census, images, kernel_image, guest)


def reload(machine: Machine, cycles: int) -> None:
    """Take the driver away from busy devices and bring it back."""
    guest, census = machine.guest, machine.census
    machine.wait_devices()
    memory = descriptors = 0
    for cycle in range(cycles):
        busy = guest.start(BUSY)
        guest.wait_until("[ -e /tmp/busy ]")
        before = census.submitted
        guest.run("sleep 0.3")
        guest.run("rmmod xhci_pci || { dmesg | tail -n 20; exit 1; }")
        assert census.submitted > before + 10, "it was not busy"
        assert census.in_flight == 0
        guest.run("rm /tmp/busy; ! ls /dev/sd[a-z] 2>/dev/null && [ ! -e /sys/bus/usb/devices/usb1 ]")
        guest.wait(busy, 60)
        guest.run("modprobe xhci_pci")
        machine.wait_devices()
        if cycle == 1:
            memory, descriptors = machine.server.status("RssAnon"), machine.descriptors()
    assert machine.server.status("RssAnon") <= memory + GROWTH_KIB
    assert machine.descriptors() == descriptors
    check_log(machine)


def check_log(machine: Machine) -> None:
    """Neither side has seen a controller or a device fail; that drives vanish under their did you mean readers."""
    log = machine.guest.dmesg()
    unexpected = ("not responding", "died", "timed out", "Call Trace", "BUG:", "WARN", "error -", "unable to")
    assert not [line for line in log.splitlines() if any(word in line for word in unexpected)]
    machine.guest.run("dmesg -c > /dev/null")
    log = machine.server.log()
    assert not [line for line in log.splitlines() if "error" in line or "Traceback" in line]


def test_the_driver_is_reloaded_under_load(machine: Machine) -> None:
    reload(machine, 3)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_driver_is_reloaded_50_times_under_load(machine: Machine) -> None:
    reload(machine, 50)


# SCSI_IOCTL_DOORUNLOCK, since the kernel forbids the removal of what is open, and CDROMEJECT.
EJECT = """perl -e 'open(my $disk, "<", shift) or die; ioctl($disk, $_, 0) or die "$!" for 0x5381, 0x5309' """


def test_a_drive_that_was_ejected_is_back_with_the_next_driver(machine: Machine) -> None:
    guest = machine.guest
    machine.wait_devices()
    size = machine.images[0].stat().st_size
    path = next(disk.path for disk in guest_usb.wait_disks(guest, 3) if disk.size == size)
    guest.run(f"{EJECT} {path}")
    guest.run(f"! dd if={path} of=/dev/null bs=512 count=1 iflag=direct 2>/dev/null")
    assert "ejected" in machine.server.log()
    guest.run("rmmod xhci_pci; ! ls /dev/sd[a-z] 2>/dev/null; modprobe xhci_pci")
    machine.wait_devices()
    guest.run("dmesg -c > /dev/null")


def test_the_function_offers_no_reset_of_its_own(machine: Machine) -> None:
    """It has no power management and no PCI Express capability; behind a port of its own the bus can be reset
    (test_newer_kernel)."""
    assert machine.guest.run("cd /sys/bus/pci/drivers/xhci_hcd/0*; ls -d reset 2>/dev/null || echo none") == "none\n"


# kexec_file_load(2) and reboot(2) with LINUX_REBOOT_CMD_KEXEC.
KEXEC = r"""
open(my $kernel, '<', '/tmp/kernel') or die; open(my $initrd, '<', '/tmp/initrd') or die;
my $line = "console=ttyS0 panic=-1\0";
syscall(320, fileno($kernel), fileno($initrd), length($line), $line, 0) == 0 or die "kexec_file_load: $!\n";
syscall(169, 0xfee1dead, 0x28121969, 0x45584543, 0) == 0 or die "reboot: $!\n";
"""


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_kexec_under_load(machine: Machine, times: int) -> None:
    """The next kernel finds the controller as the last one left it, and the server has nothing left of that."""
    guest, server = machine.guest, machine.server
    kernel, initrd = (len(each) for each in kernel_and_initramfs())
    machine.wait_devices()
    load = f"""set -e
cat > /tmp/kexec.pl <<'END'
{KEXEC}END
for disk in /sys/block/sd*; do
    [ $(cat $disk/size) -ne {machine.kernel_image.stat().st_size // 512} ] || image=/dev/${{disk##*/}}
done
exact="bs=1M iflag=fullblock,skip_bytes,count_bytes"
/usr/bin/dd if=$image of=/tmp/kernel $exact count={kernel} 2>/dev/null
/usr/bin/dd if=$image of=/tmp/initrd $exact skip={blocks(kernel)} count={initrd} 2>/dev/null
"""
    memory, descriptors = [server.status("RssAnon")], machine.descriptors()
    for boots in range(guest.boots + 1, guest.boots + 1 + times):
        guest.run(load, timeout=90)
        guest.start(BUSY)
        guest.wait_until("[ -e /tmp/busy ]")
        guest.run("sleep 0.3")
        guest.reboot("perl /tmp/kexec.pl 2> /dev/console")
        assert guest.boots == boots
        machine.wait_devices()
        memory.append(server.status("RssAnon"))
    check_log(machine)
    # The first round is also the first load this server has seen, so by itself it proves little; the long form does.
    allowed = memory[1] + GROWTH_KIB if times > 1 else memory[0] + 3 * GROWTH_KIB
    assert memory[-1] <= allowed, memory
    assert machine.descriptors() == descriptors
