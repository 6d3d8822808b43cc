"""A Linux guest with its stock xHCI driver on a running `usbvfiod`.

One server with everything plugged in serves all of this file; the guest is booted anew only where that is the point.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.vm import guest_usb, usbtest
from tests.vm.guest import CommandError, Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

# linux/input-event-codes.h
KEYS = {"a": 30, "b": 48, "\n": 28}
EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_MSC = range(5)
BTN_LEFT, REL_WHEEL, REL_WHEEL_HI_RES = 0x110, 8, 11


@dataclass
class Machine:
    """The shared server, its images by what they are for, and the guest that is up now."""

    server: UsbvfiodServer
    images: dict[str, Path]
    line: Path
    boot: Callable[[], Guest]
    guest: Guest = field(init=False)

    def __post_init__(self) -> None:
        self.guest = self.boot()

    def disks(self) -> dict[str, guest_usb.Disk]:
        """The guest's drives by what their images are for; the images differ in size."""
        sizes = {path.stat().st_size: name for name, path in self.images.items()}
        return {sizes[disk.size]: disk for disk in guest_usb.wait_disks(self.guest, len(self.images))}

    def type(self, text: str) -> None:
        """Type on the keyboard and check that the guest's input device reports just that."""
        reading = guest_usb.start_reading_keys(self.guest, 2 * len(text))
        self.server.send("virtual:keyboard", "type", text)
        expected = [(KEYS[key], value) for key in text for value in (1, 0)]
        assert guest_usb.finish_reading_keys(self.guest, reading) == expected

    def check_constant(self) -> None:
        """The drive which nobody writes holds what its image holds."""
        path = self.disks()["constant"].path
        assert guest_usb.sha256(self.guest, path) == guest_usb.image_sha256(self.images["constant"])


@pytest.fixture(scope="module")
def machine(
    module_guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    images = {
        "constant": random_image(16),
        "scratch": random_image(32),
        "other": random_image(40),
        "readonly": random_image(9),
        "high": random_image(10),
        "full": random_image(2),
    }
    options = {"readonly": "&readonly=true", "other": "&transport=bot", "high": "&speed=high", "full": "&speed=full"}
    devices = [f"virtual:flash?image={path}{options.get(name, '')}" for name, path in images.items()]
    line = tmp_path_factory.mktemp("line") / "port"
    devices += [
        "virtual:keyboard",
        "virtual:mouse",
        "virtual:tablet",
        "virtual:loopback",
        f"virtual:serial?link={line}",
    ]
    with UsbvfiodServer(devices) as server:
        yield Machine(server, images, line, lambda: module_guest_factory(server.arguments))


def test_the_drives_appear_at_their_speeds(machine: Machine) -> None:
    speeds = {name: disk.speed for name, disk in machine.disks().items()}
    assert speeds == {"constant": 5000, "scratch": 5000, "other": 5000, "readonly": 5000, "high": 480, "full": 12}
    tree = machine.guest.run("lsusb -t")
    assert tree.count("Class=Mass Storage, Driver=uas, 5000M") == 3
    assert tree.count("Class=Mass Storage, Driver=usb-storage, 5000M") == 1
    assert tree.count("Class=Mass Storage, Driver=usb-storage, 480M") == 1
    assert tree.count("Class=Mass Storage, Driver=usb-storage, 12M") == 1
    assert tree.count("Class=Human Interface Device, Driver=usbhid") == 3
    assert tree.count("Class=Vendor Specific Class, Driver=usbtest") == 1


def test_lsusb_can_read_every_descriptor(machine: Machine) -> None:
    listing = machine.guest.run("lsusb -v 2>&1")
    assert not re.search(r"can't|couldn't|cannot|warning|junk|\bbad\b|error|timed out", listing, re.IGNORECASE), listing
    assert listing.count("Binary Object Store Descriptor") >= 4


@pytest.mark.parametrize("name", ["constant", "readonly", "high", "full"])
def test_a_drive_holds_its_image(machine: Machine, name: str) -> None:
    path = machine.disks()[name].path
    assert guest_usb.sha256(machine.guest, path) == guest_usb.image_sha256(machine.images[name])


def test_an_ext4_made_in_the_guest_is_in_the_image(machine: Machine) -> None:
    checksum = guest_usb.write_ext4(machine.guest, machine.disks()["scratch"], "from the guest")
    assert guest_usb.read_ext4(machine.images["scratch"], "text") == b"from the guest\n"
    assert hashlib.sha256(guest_usb.read_ext4(machine.images["scratch"], "random")).hexdigest() == checksum


def test_a_readonly_drive_cannot_be_written(machine: Machine) -> None:
    path = machine.disks()["readonly"].path
    before = guest_usb.image_sha256(machine.images["readonly"])
    assert machine.guest.run(f"cat /sys/block/{Path(path).name}/ro") == "1\n"
    with pytest.raises(CommandError):
        machine.guest.run(f"dd if=/dev/zero of={path} bs=4096 count=1 oflag=direct")
    assert guest_usb.image_sha256(machine.images["readonly"]) == before


def test_usbtest_passes_on_the_loopback_device(machine: Machine) -> None:
    node = usbtest.find(machine.guest)
    failures = []
    for case in (*usbtest.BULK_AND_CONTROL, *usbtest.INTERRUPT):
        try:
            usbtest.run(machine.guest, node, case)
        except CommandError as error:
            failures.append(f"{case.number} {case.title}: {error.output}")
    assert not failures


def test_keys_arrive(machine: Machine) -> None:
    machine.type("a\nb")


def test_pointers_move(machine: Machine) -> None:
    """Each report is a record for each of its events, one of a button's scan code, and its end."""
    for device, words, records, expected in (
        ("tablet", ("move", "1", "0.5"), 3, {(EV_ABS, 0, 0x7FFF), (EV_ABS, 1, 0x4000)}),
        ("tablet", ("click",), 6, {(EV_KEY, BTN_LEFT, 1), (EV_KEY, BTN_LEFT, 0)}),
        ("mouse", ("move", "5", "-3"), 3, {(EV_REL, 0, 5), (EV_REL, 1, -3)}),
        ("mouse", ("scroll", "-2"), 3, {(EV_REL, REL_WHEEL, -2), (EV_REL, REL_WHEEL_HI_RES, -240)}),
    ):
        reading = guest_usb.start_reading_input(machine.guest, records, name=device.title())
        assert machine.server.send(f"virtual:{device}", *words) == ""
        seen = guest_usb.finish_reading_input(machine.guest, reading)
        assert {each for each in seen if each[0] not in (EV_SYN, EV_MSC)} == expected


def test_a_serial_line_is_a_terminal_on_the_host(machine: Machine) -> None:
    """128 KiB each way at the same time, with the guest's stock driver, and the port opened anew for each."""
    guest = machine.guest
    guest.run("modprobe cdc_acm")
    guest.wait_until("[ -c /dev/ttyACM0 ]")
    sent = os.urandom(1 << 17)
    received = b""
    # A program has it open all the time, so that nothing is taken for unheard.
    terminal = os.open(machine.line, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        talking = guest.start(f"""
exec 3<> /dev/ttyACM0
stty -F /dev/ttyACM0 raw -echo 460800
head -c {len(sent)} <&3 | sha256sum &
printf ! >&3
head -c {len(sent)} /dev/urandom > /tmp/said
cat /tmp/said >&3
wait
exec 3>&-
sha256sum < /tmp/said
""")
        with selectors.DefaultSelector() as ready:
            # What comes before the guest's terminal is raw would be echoed.
            ready.register(terminal, selectors.EVENT_READ)
            ready.select()
            assert os.read(terminal, 1) == b"!"
            ready.modify(terminal, selectors.EVENT_READ | selectors.EVENT_WRITE)
            left = memoryview(sent)
            while left or len(received) < len(sent):
                [(_, events)] = ready.select()
                if events & selectors.EVENT_READ:
                    received += os.read(terminal, 4096)
                if events & selectors.EVENT_WRITE:
                    left = left[os.write(terminal, left[:4096]) :]
                    if not left:
                        ready.modify(terminal, selectors.EVENT_READ)
    finally:
        os.close(terminal)
    heard, said = (line.split()[0] for line in guest.wait(talking, 60).splitlines())
    assert heard == hashlib.sha256(sent).hexdigest()
    assert said == hashlib.sha256(received).hexdigest()


def test_everything_at_once(machine: Machine) -> None:
    """Three drives, the keyboard and the loopback device, all busy at the same time and all correct."""
    guest, disks = machine.guest, machine.disks()
    node = usbtest.find(guest)
    constant, other = disks["constant"].path, disks["other"].path
    reading = guest.start(f"""
for round in 1 2; do
    blockdev --flushbufs {constant}
    sha256sum {constant}
done
""")
    writing = guest.start(f"""set -e
head -c 4194304 /dev/urandom > /tmp/pattern
for round in 1 2 3; do
    dd if=/tmp/pattern of={other} bs=1M seek=$round oflag=direct 2>/dev/null
    dd if={other} bs=1M skip=$round count=4 iflag=direct 2>/dev/null | cmp - /tmp/pattern
done
sha256sum /tmp/pattern
""")
    looping = guest.start(f"""
for round in 1 2 3; do
    for test in '1 50 4096 0 0' '2 50 4096 0 0' '5 20 4096 0 8' '6 20 4096 0 8' '10 10 0 0 8' '14 20 1024 61 0'; do
        perl /tmp/usbtest.pl {node} $test || exit 1
    done
done
""")
    checksum = guest_usb.write_ext4(guest, disks["scratch"], "while others are busy")
    machine.type("ab\na")
    expected = guest_usb.image_sha256(machine.images["constant"])
    assert [line.split()[0] for line in guest.wait(reading, 120).splitlines()] == [expected] * 2
    pattern = guest.wait(writing, 120).split()[0]
    guest.wait(looping, 120)
    written = machine.images["other"].read_bytes()[3 << 20 : 7 << 20]
    assert hashlib.sha256(written).hexdigest() == pattern
    assert hashlib.sha256(guest_usb.read_ext4(machine.images["scratch"], "random")).hexdigest() == checksum


def test_no_driver_complains(machine: Machine) -> None:
    # The write to the write-protected drive is one complaint that a test above has asked for.
    readonly = Path(machine.disks()["readonly"].path).name
    complaints = [line for line in guest_usb.usb_complaints(machine.guest) if f"[{readonly}]" not in line]
    complaints = [line for line in complaints if f"dev {readonly}," not in line]
    # So is what usbtest says when a transfer that it wants to unlink has just completed.
    assert [line for line in complaints if not re.search(r"usbtest \S+: unlink retry$", line)] == []


def test_all_is_there_after_a_reboot(machine: Machine) -> None:
    text = guest_usb.read_ext4(machine.images["scratch"], "text").decode()
    machine.guest.reboot()
    machine.check_constant()
    scratch = machine.disks()["scratch"].path
    mounted = f"mkdir -p /mnt/again; mount -t ext4 {scratch} /mnt/again; cat /mnt/again/text; umount /mnt/again"
    assert machine.guest.run(mounted) == text
    machine.type("b")
    usbtest.run(machine.guest, usbtest.find(machine.guest), usbtest.BULK_AND_CONTROL[2])
    assert guest_usb.usb_complaints(machine.guest) == []


def test_all_is_there_after_the_reset_button(machine: Machine) -> None:
    """The controller is reset with transfers in flight and drivers that know nothing of it."""
    other = machine.disks()["other"].path
    machine.guest.start(f"while true; do dd if=/dev/zero of={other} bs=1M oflag=direct; done")
    machine.guest.run("sleep 0.5")
    machine.guest.system_reset()
    machine.check_constant()
    machine.type("b")
    assert guest_usb.usb_complaints(machine.guest) == []


def test_all_is_there_for_a_new_vmm_after_the_old_one_was_killed(machine: Machine) -> None:
    other = machine.disks()["other"].path
    machine.guest.start(f"while true; do dd if=/dev/zero of={other} bs=1M oflag=direct; done")
    machine.guest.run("sleep 0.5")
    machine.guest.kill()
    assert machine.server.process.poll() is None
    machine.guest = machine.boot()
    machine.check_constant()
    machine.type("a")
    usbtest.run(machine.guest, usbtest.find(machine.guest), usbtest.BULK_AND_CONTROL[1])
    assert guest_usb.usb_complaints(machine.guest) == []


def test_sigterm_in_the_middle_of_transfers_ends_the_server_cleanly(machine: Machine) -> None:
    """Last in this file: it ends the server the others use. What was written and synchronised stays."""
    disk = machine.disks()["other"]
    machine.guest.run(f"head -c 1048576 /dev/urandom > /tmp/kept; dd if=/tmp/kept of={disk.path} bs=1M; sync")
    kept = machine.guest.run("sha256sum /tmp/kept").split()[0]
    machine.guest.start(f"while true; do dd if=/dev/zero of={disk.path} bs=1M seek=1 oflag=direct; done")
    machine.guest.run("sleep 0.5")
    assert machine.server.stop() == 0, machine.server.log()
    assert not os.path.lexists(machine.server.socket_path)
    content = machine.images["other"].read_bytes()
    assert len(content) == disk.size
    assert hashlib.sha256(content[: 1 << 20]).hexdigest() == kept
    assert "Traceback" not in machine.server.log()
