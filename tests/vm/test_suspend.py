"""A guest that suspends its devices and itself, with the stock drivers' power management on (xHCI 4.15, 4.19, 4.23).

One server and one guest serve all of this file. The full numbers are marked `long`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest_usb, sleep, usbtest
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

KEYS = {"a": 30, "b": 48, "\n": 28}  # linux/input-event-codes.h


@dataclass
class Sleeper:
    """The server, the guest, and its drives: "super" and "high" by speed, an ext4 of each mounted at /mnt/NAME."""

    server: UsbvfiodServer
    guest: Guest
    images: dict[str, Path]
    disks: dict[str, guest_usb.Disk]

    def complaints(self) -> list[str]:
        """What the kernel has complained of since the last call."""
        complaints = guest_usb.usb_complaints(self.guest)
        self.guest.run("dmesg -c > /dev/null")
        return complaints

    def check_images(self) -> None:
        """Every file in both file systems is `source`, as this system sees them, too."""
        for name, image in self.images.items():
            expected, copies = self.guest.run(f"""
cd /mnt/{name}; sync; echo 3 > /proc/sys/vm/drop_caches
sha256sum source | cut -d ' ' -f 1
ls copy*
for copy in copy*; do cmp source $copy || exit 1; done
umount /mnt/{name} 2>/dev/null || {{ cd /; umount /mnt/{name}; }}
blockdev --flushbufs {self.disks[name].path}
""").split(maxsplit=1)
            for copy in ["source", *copies.split()]:
                assert hashlib.sha256(guest_usb.read_ext4(image, copy)).hexdigest() == expected
            self.guest.run(f"mount -o noatime {self.disks[name].path} /mnt/{name}")


@pytest.fixture(scope="module")
def sleeper(
    module_guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
) -> Iterator[Sleeper]:
    # Linux suspends no drive at runtime that it drives by UAS; with the whole system it does.
    images = {"super": random_image(48), "high": random_image(40), "uas": random_image(32)}
    options = {"super": "&transport=bot", "high": "&speed=high", "uas": ""}
    devices = [f"virtual:flash?image={path}{options[name]}" for name, path in images.items()]
    devices += ["virtual:keyboard", "virtual:loopback"]
    with UsbvfiodServer(devices) as server:
        guest = module_guest_factory(server.arguments)
        sizes = {path.stat().st_size: name for name, path in images.items()}
        disks = {sizes[disk.size]: disk for disk in guest_usb.wait_disks(guest, len(images))}
        for name, disk in disks.items():
            guest.run(f"""set -e
mkfs.ext4 -q -F -E lazy_itable_init=0 {disk.path}
mkdir -p /mnt/{name}
mount -o noatime {disk.path} /mnt/{name}
head -c 6000000 /dev/urandom > /mnt/{name}/source
cp /mnt/{name}/source /mnt/{name}/copy
sync
""")
        yield Sleeper(server, guest, images, disks)


def suspend_at_runtime(sleeper: Sleeper, name: str, cycles: int) -> None:
    """The drive sleeps whenever it is idle, and each cycle's reads and writes wake it."""
    guest, disk = sleeper.guest, sleeper.disks[name]
    sleep.autosuspend(guest, disk.usb, disk.path)
    script = f"""
status=/sys/bus/usb/devices/{disk.usb}/power/runtime_status
cd /mnt/{name}
for cycle in $(seq {cycles}); do
    rounds=0
    until grep -q suspended $status; do
        rounds=$((rounds + 1))
        [ $rounds -lt 500 ] || {{ echo "not suspended in cycle $cycle"; cat $status; exit 1; }}
        sleep 0.01
    done
    piece=$((cycle % 90))
    dd if=source of=copy bs=65536 skip=$piece seek=$piece count=1 conv=notrunc,fsync 2>/dev/null || exit 1
    dd if=source bs=65536 skip=$piece count=1 iflag=direct 2>/dev/null > /tmp/piece || exit 1
    dd if=copy bs=65536 skip=$piece count=1 iflag=direct 2>/dev/null | cmp - /tmp/piece || exit 1
done
"""
    guest.run(script, timeout=60 + cycles)
    sleeper.check_images()
    guest.run(f"echo on > /sys/bus/usb/devices/{disk.usb}/power/control")
    assert sleeper.complaints() == []


@pytest.mark.parametrize("name", ["super", "high"])
def test_nothing_is_lost_by_runtime_suspend(sleeper: Sleeper, name: str) -> None:
    suspend_at_runtime(sleeper, name, 10)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["super", "high"])
def test_nothing_is_lost_by_200_runtime_suspends(sleeper: Sleeper, name: str) -> None:
    suspend_at_runtime(sleeper, name, 200)


def keyboard(guest: Guest) -> str:
    """The name of the keyboard's USB device."""
    return guest.run("cd /sys/bus/usb/drivers/usbhid; basename $(readlink -f *:*/..)").strip()


def type_in_its_sleep(sleeper: Sleeper, texts: list[str]) -> None:
    """Each text is typed while the keyboard is suspended; it wakes its port, and not a key is lost."""
    guest = sleeper.guest
    usb = keyboard(guest)
    sleep.autosuspend(guest, usb)
    for text in texts:
        reading = guest_usb.start_reading_keys(guest, 2 * len(text))
        sleep.wait_suspended(guest, usb)
        sleeper.server.send("virtual:keyboard", "type", text)
        expected = [(KEYS[key], value) for key in text for value in (1, 0)]
        assert guest_usb.finish_reading_keys(guest, reading) == expected
    guest.run(f"echo on > /sys/bus/usb/devices/{usb}/power/control")
    assert sleeper.complaints() == []


def test_a_key_wakes_the_suspended_keyboard(sleeper: Sleeper) -> None:
    type_in_its_sleep(sleeper, ["a", "ab\na", "b"])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_keys_wake_the_suspended_keyboard_100_times(sleeper: Sleeper) -> None:
    type_in_its_sleep(sleeper, ["a", "b\n"] * 50)


def test_a_key_wakes_the_suspended_root_hub(sleeper: Sleeper) -> None:
    """All devices of the USB 2 bus sleep, so the bus does, while the controller runs to hear of a wake-up."""
    guest, disk = sleeper.guest, sleeper.disks["high"]
    sleep.autosuspend(guest, disk.usb, disk.path)
    sleep.autosuspend(guest, keyboard(guest))
    reading = guest_usb.start_reading_keys(guest, 2)
    sleep.wait_suspended(guest, "usb1")
    sleeper.server.send("virtual:keyboard", "type", "a")
    assert guest_usb.finish_reading_keys(guest, reading) == [(KEYS["a"], 1), (KEYS["a"], 0)]
    guest.run("for control in /sys/bus/usb/devices/[12]-*/power/control; do echo on > $control; done")
    assert sleeper.complaints() == []


def sleep_while_copying(sleeper: Sleeper, state: str, cycles: int) -> None:
    """The guest goes to sleep and is woken with a copy running on each drive, and its transfers go on."""
    guest = sleeper.guest
    guest.run("rm -f /tmp/stop")
    copying = {
        name: guest.start(f"""
cd /mnt/{name}
rounds=0
until [ -e /tmp/stop ]; do
    rounds=$((rounds + 1))
    cp source copy$((rounds % 2)) && sync || exit 1
    echo 3 > /proc/sys/vm/drop_caches
    cmp source copy$((rounds % 2)) || exit 1
done
echo $rounds
""")
        for name in sleeper.disks
    }
    for _ in range(cycles):
        sleep.sleep(guest, state)
    guest.run("touch /tmp/stop")
    for name, copy in copying.items():
        assert int(guest.wait(copy, 60)) > 0, name
    sleeper.check_images()


def check_after(sleeper: Sleeper) -> None:
    """The keyboard and the loopback device work as well."""
    guest = sleeper.guest
    reading = guest_usb.start_reading_keys(guest, 2)
    sleeper.server.send("virtual:keyboard", "type", "b")
    assert guest_usb.finish_reading_keys(guest, reading) == [(KEYS["b"], 1), (KEYS["b"], 0)]
    node = usbtest.find(guest)
    for case in usbtest.BULK_AND_CONTROL[1:3]:
        usbtest.run(guest, node, case)


def test_a_copy_goes_on_after_freeze(sleeper: Sleeper) -> None:
    """Save and restore: no device is reset, since nothing was lost."""
    sleep_while_copying(sleeper, "freeze", 2)
    check_after(sleeper)
    assert sleeper.complaints() == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_copy_goes_on_after_20_freezes(sleeper: Sleeper) -> None:
    sleep_while_copying(sleeper, "freeze", 20)
    check_after(sleeper)
    assert sleeper.complaints() == []


def check_reset_resume(sleeper: Sleeper, cycles: int) -> None:
    """QEMU resets all devices when a machine leaves S3: the restore fails with SRE, and Linux starts the controller
    anew and resets each device to the configuration it had. The keyboard is a full-speed device, whose packet size
    Linux tells the controller before it has addressed it."""
    log = sleeper.guest.dmesg()
    assert log.count("xHC error in resume") == log.count("root hub lost power") / 2 == cycles
    unexpected = ("USB disconnect", "not responding", "died", "I/O error", "EXT4-fs error", "timed out", "Call Trace")
    assert not [line for line in log.splitlines() if any(word in line for word in unexpected)]
    warnings = [line for line in sleeper.guest.dmesg(level=4).splitlines() if guest_usb.USB_WORDS.search(line)]
    assert [line for line in warnings if "xHC error in resume" not in line] == []
    sleeper.guest.run("dmesg -c > /dev/null")


def test_a_copy_goes_on_after_suspend_to_ram(sleeper: Sleeper) -> None:
    sleep_while_copying(sleeper, "mem", 1)
    check_after(sleeper)
    check_reset_resume(sleeper, 1)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_copy_goes_on_after_20_suspends_to_ram(sleeper: Sleeper) -> None:
    sleep_while_copying(sleeper, "mem", 20)
    check_after(sleeper)
    check_reset_resume(sleeper, 20)


def test_the_server_has_nothing_to_say(sleeper: Sleeper) -> None:
    """Last in this file."""
    assert not [line for line in sleeper.server.log().splitlines() if "error" in line or "Traceback" in line]
