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
    """The server with what is counted in it, its images (of different sizes) to be checked, and the guest."""

    server: UsbvfiodServer
    census: Census
    images: list[Path]
    guest: Guest

    def wait_devices(self) -> None:
        """Wait until all devices are bound to their drivers, and check what the drives hold."""
        disks = {disk.size: disk.path for disk in guest_usb.wait_disks(self.guest, 2)}
        usbtest.find(self.guest)
        self.guest.wait_until("ls -d /sys/bus/usb/drivers/usbhid/*:*")
        for image in self.images:
            path = disks[image.stat().st_size]
            assert guest_usb.sha256(self.guest, path) == guest_usb.image_sha256(image)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))


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
    devices += ["virtual:keyboard", "virtual:loopback"]
    with UsbvfiodServer(devices, environment=census.environment) as server:
        yield Machine(server, census, images, module_guest_factory(server.arguments))


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
    """Neither side has seen a controller or a device fail; that drives vanish under their readers is meant."""
    log = machine.guest.dmesg()
    unexpected = ("not responding", "died", "timed out", "Call Trace", "BUG:", "WARN", "error -", "unable to")
    assert not [line for line in log.splitlines() if any(word in line for word in unexpected)]
    machine.guest.run("dmesg -c > /dev/null")
    log = machine.server.log()
    assert not [line for line in log.splitlines() if "error" in line or "Traceback" in line]


def test_the_driver_is_reloaded_under_load(machine: Machine) -> None:
    reload(machine, 4)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_driver_is_reloaded_50_times_under_load(machine: Machine) -> None:
    reload(machine, 50)


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


def blocks(size: int) -> int:
    """The size in whole blocks of 512 bytes."""
    return -(-size // 512) * 512


@pytest.fixture(scope="module")
def kexec_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The guest's kernel and initramfs behind each other, each in whole blocks of 512 bytes, and their sizes."""
    path = tmp_path_factory.mktemp("kexec") / "kexec.img"
    directory = debian.tree_directory()
    files = [debian.kernel(directory)[0], initramfs.ensure(directory)]
    data = [file.read_bytes() for file in files]
    path.write_bytes(b"".join(each.ljust(blocks(len(each)), b"\0") for each in data))
    return path, [len(each) for each in data]


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_kexec_under_load(
    guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
    kexec_image: tuple[Path, list[int]],
    tmp_path: Path,
    times: int,
) -> None:
    """The next kernel finds the controller as the last one left it, and the server has nothing left of that."""
    image, (kernel, initrd) = kexec_image
    constant = random_image(5)
    census = Census(tmp_path)
    devices = [f"virtual:flash?image={constant}", f"virtual:flash?image={image}&readonly=true"]
    devices += ["virtual:keyboard", "virtual:loopback?speed=high"]
    with UsbvfiodServer(devices, environment=census.environment) as server:
        guest = guest_factory(server.arguments, memory_mib=768)
        machine = Machine(server, census, [constant], guest)
        machine.wait_devices()
        load = f"""set -e
cat > /tmp/kexec.pl <<'END'
{KEXEC}END
for disk in /sys/block/sd*; do
    [ $(cat $disk/size) -ne {image.stat().st_size // 512} ] || image=/dev/${{disk##*/}}
done
head -c {kernel} $image > /tmp/kernel
tail -c +{blocks(kernel) + 1} $image | head -c {initrd} > /tmp/initrd
"""
        memory, descriptors = server.status("RssAnon"), machine.descriptors()
        for boots in range(2, times + 2):
            guest.run(load, timeout=90)
            guest.start(BUSY)
            guest.wait_until("[ -e /tmp/busy ]")
            guest.run("sleep 0.3")
            guest.reboot("perl /tmp/kexec.pl 2> /dev/console")
            assert guest.boots == boots
            machine.wait_devices()
        check_log(machine)
        assert server.status("RssAnon") <= memory + GROWTH_KIB
        assert machine.descriptors() == descriptors
