"""What tests ask a guest about its USB devices, the same questions whoever serves the controller."""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.vm import tree as debian
from tests.vm.guest import Guest, Running
from usbvfiod_core.testing.limits import scaled

# Of these the kernel may not warn. Its own platform (ACPI, CPU) has warnings that say nothing about USB.
USB_WORDS = re.compile(
    r"usb|xhci|hub |scsi|\bsd |\bsd[a-z]\b|\bsg|\bhid|\binput|\buas\b|I/O error|DMA|EXT4|JBD2|Call Trace", re.I
)
# Recovery that the kernel reports without calling it a warning.
RECOVERY = re.compile(
    r"reset \S+ USB device|USB disconnect|WARNING:|BUG:|blocked for more than|timed out|not responding|"
    r"host controller died|device descriptor read|unable to enumerate"
)
# EVIOCSREP, with ten minutes: the kernel itself repeats a key that is down for a while, as it is where processors are
# slow. It reports a change of these times with the next report, so there is one (EV_SYN). Mice have none (ENOSYS).
NO_REPEAT = """open(INPUT, "+<", $ARGV[0]) or die "$ARGV[0]: $!";
$times = pack("II", 600000, 600000);
ioctl(INPUT, 0x40084503, $times) or $! == 38 or die "EVIOCSREP: $!";
syswrite(INPUT, pack("qqSSl", 0, 0, 0, 0, 0)) == 24 or die "EV_SYN: $!";
"""
RECORDS_MAX = 64
RECORDS_OF_A_KEY = 3


@dataclass(frozen=True, slots=True)
class Disk:
    """A drive in the guest. `usb` is its USB device's name in sysfs ("2-1"), `size` and throughput are in bytes."""

    path: str
    usb: str
    speed: int  # Mbit/s, as sysfs has it: 12, 480, 5000
    size: int


def wait_disks(guest: Guest, count: int = 1, timeout: float = 60.0) -> list[Disk]:
    """Wait until the guest has `count` USB drives and return them, in the order of their USB names."""
    guest.wait_until(
        f"[ $(ls -d /sys/block/sd* 2>/dev/null | wc -l) -eq {count} ] || {{ ls /sys/block; false; }}", timeout
    )
    script = (
        "for disk in /sys/block/sd*; do interface=$(readlink -f $disk/device/../../..); usb=${interface%/*}; "
        "echo /dev/${disk##*/} ${usb##*/} $(cat $usb/speed $disk/size); done"
    )
    disks = []
    for line in guest.run(script).splitlines():
        path, usb, speed, sectors = line.split()
        disks.append(Disk(path, usb, int(speed), int(sectors) * 512))
    return sorted(disks, key=lambda disk: (len(disk.usb), disk.usb))


def driver(guest: Guest, interface: str) -> str:
    """The guest's driver of an interface, named as in sysfs: "2-1:1.0"."""
    return guest.run(f"basename $(readlink -f /sys/bus/usb/devices/{interface}/driver)").strip()


def sha256(guest: Guest, path: str, timeout: float = 120.0) -> str:
    """The SHA-256 of a whole drive or file, read past the guest's cache as far as it was not written there."""
    return guest.run(f"blockdev --flushbufs {path} 2>/dev/null; sha256sum {path}", timeout).split()[0]


def image_sha256(image: Path) -> str:
    """The SHA-256 of an image file as this system sees it."""
    with open(image, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_ext4(guest: Guest, disk: Disk, text: str) -> str:
    """Make an ext4 on the drive, put two files on it and unmount it; returns the SHA-256 of the larger one."""
    script = f"""set -e
mkfs.ext4 -q -F {disk.path}
mkdir -p /mnt/ext4
mount -t ext4 {disk.path} /mnt/ext4
echo '{text}' > /mnt/ext4/text
head -c 3000000 /dev/urandom > /mnt/ext4/random
sync
umount /mnt/ext4
mount -t ext4 -o ro {disk.path} /mnt/ext4
sha256sum /mnt/ext4/random
umount /mnt/ext4
blockdev --flushbufs {disk.path}
"""
    return guest.run(script, timeout=60).split()[0]


def read_ext4(image: Path, name: str) -> bytes:
    """A file out of the ext4 in an image, read on this system by e2fsprogs, after checking the file system."""
    tree = debian.tree_directory()
    check = [*debian.program_argv(tree, "usr/sbin/e2fsck"), "-f", "-n", str(image)]
    result = subprocess.run(check, capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"e2fsck on {image}: {result.stdout}{result.stderr}")
    dump = [*debian.program_argv(tree, "usr/sbin/debugfs"), "-R", f"cat /{name}", str(image)]
    return subprocess.run(dump, check=True, capture_output=True).stdout


def usb_complaints(guest: Guest) -> list[str]:
    """Warnings of the guest's USB, SCSI, HID and file system drivers, and signs of recovery, since it booted."""
    warnings = [line for line in guest.dmesg(level=4).splitlines() if USB_WORDS.search(line)]
    return warnings + [line for line in guest.dmesg().splitlines() if RECOVERY.search(line) and line not in warnings]


def start_reading_input(guest: Guest, records: int, *, name: str = "", patience: int = 60) -> Running:
    """Start reading so many records of an input device on USB; give the result to `finish_reading_input`.

    `name` is part of the input device's name, where there are several; `patience` is in seconds, and scaled.

    On return the device is open: what happens from now on is read. No more records than the kernel keeps for a reader
    whose turn does not come (EVDEV_MIN_BUFFER_SIZE of its drivers/input/evdev.c). Keys that are down for a while are
    not repeated.
    """
    assert records <= RECORDS_MAX
    event = _find_input(guest, name, patience)
    reading = guest.start(f"""
exec 4< /dev/input/{event}
touch /tmp/reading-input
timeout {scaled(patience):.0f} /usr/bin/dd bs=24 count={records} <&4 2>/dev/null | hexdump -ve '1/1 "%02x"'
""")
    guest.wait_until("[ -e /tmp/reading-input ]", timeout=patience)
    return reading


def _find_input(guest: Guest, name: str, patience: int) -> str:
    """The name of an input device's node, once it is there; from now on it repeats no keys."""
    return guest.run(
        f"""
until [ -n "$event" ]; do
    for device in /sys/class/input/event*; do
        case "$(readlink -f $device) $(cat $device/device/name)" in */usb*{name}*) event=${{device##*/}};; esac
    done
    sleep 0.1
done
perl -e '{NO_REPEAT}' /dev/input/$event || exit 1
rm -f /tmp/reading-input
echo $event
""",
        patience,
    ).strip()


def finish_reading_input(guest: Guest, reading: Running, timeout: float = 60.0) -> list[tuple[int, int, int]]:
    """Wait for the records: (type, code, value) of each, as in linux/input-event-codes.h."""
    return _records(guest.wait(reading, timeout))


def _records(text: str) -> list[tuple[int, int, int]]:
    data = bytes.fromhex(text.strip())
    return [struct.unpack_from("<qqHHi", data, offset)[2:] for offset in range(0, len(data), 24)]


def start_reading_keys(guest: Guest, events: int, *, name: str = "Keyboard", patience: int = 60) -> Running:
    """As `start_reading_input`, of so many presses and releases, of three records (scan code, key, end of report)."""
    return start_reading_input(guest, RECORDS_OF_A_KEY * events, name=name, patience=patience)


def finish_reading_keys(guest: Guest, reading: Running, timeout: float = 60.0) -> list[tuple[int, int]]:
    """Wait for the keys: (code of linux/input-event-codes.h, 1 for a press and 0 for a release) of each."""
    return _keys(finish_reading_input(guest, reading, timeout))


def _keys(records: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    return [(code, value) for kind, code, value in records if kind == 1]


class KeyLog:
    """All that a keyboard types from now on, for as long as a test wants: a key that comes late or twice is in it."""

    def __init__(self, guest: Guest, *, name: str = "Keyboard") -> None:
        self._guest = guest
        self._reading = guest.start(f"""
exec 4< /dev/input/{_find_input(guest, name, 60)}
/usr/bin/dd bs=24 of=/tmp/keys <&4 2>/dev/null &
echo $! > /tmp/reading-input
wait
hexdump -ve '1/1 "%02x"' /tmp/keys
""")
        guest.wait_until("[ -s /tmp/reading-input ]")

    def wait(self, events: int) -> None:
        """Wait until there are so many presses and releases; between two calls no more than RECORDS_MAX records."""
        size = 24 * RECORDS_OF_A_KEY * events
        self._guest.wait_until(f"found=$(stat -c %s /tmp/keys); echo $found bytes; [ $found -ge {size} ]")

    def finish(self) -> list[tuple[int, int]]:
        """Read no more; as `finish_reading_keys`."""
        self._guest.run("kill $(cat /tmp/reading-input)")
        return _keys(_records(self._guest.wait(self._reading)))


def direct_io(
    guest: Guest, disk: Disk, *, block: int, count: int, write: bool = False, timeout: float = 120.0
) -> float:
    """Read or write `count` blocks one after the other with O_DIRECT; returns the seconds dd measured in the guest.

    Writing puts zeros on the drive.
    """
    flag, source, target = ("oflag", "/dev/zero", disk.path) if write else ("iflag", disk.path, "/dev/null")
    output = guest.run(f"/usr/bin/dd if={source} of={target} bs={block} count={count} {flag}=direct 2>&1", timeout)
    match = re.search(r"^(\d+) bytes.* copied, ([0-9.e-]+) s", output, re.MULTILINE)
    if not match or int(match[1]) != block * count:
        raise AssertionError(f"dd did not move {count} blocks of {block}: {output}")
    return float(match[2])
