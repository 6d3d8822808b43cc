"""A Linux guest with its stock uas driver on flash drives with `transport=uas`: at SuperSpeed with streams, and at high
speed without. One server and one guest for all of it; the last test pulls a drive out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest_usb
from tests.vm.guest import CommandError, Guest, GuestFactory
from tests.vm.puller import Puller
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

JOBS = 16
AREA = 256  # blocks of 4 KiB that each job has for itself

# A SCSI command with room for 4096 bytes of data, again and again, through the ioctl SG_IO of <scsi/sg.h>. Prints the
# status and the sense key of the last one.
SG_IO = r"""
my ($node, $times, $cdb) = @ARGV;
open(my $device, '+<', $node) or die "$node: $!\n";
my ($command, $data, $sense) = (pack('H*', $cdb), "\0" x 4096, "\0" x 64);
my $pointer = sub { unpack('Q', pack('P', $_[0])) };
for (1 .. $times) {
    my $header = pack('l l C C S L Q Q Q L L l x4 Q C4 S S l L L x4', ord('S'), -3, length($command), 64, 0, 4096,
        $pointer->($data), $pointer->($command), $pointer->($sense), 20000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    ioctl($device, 0x2285, $header) or die "SG_IO: $!\n";
    print unpack('x64 C', $header), ' ', unpack('x2 C', $sense) & 15, "\n" if $_ == $times;
}
"""
USB_RESET = r"""open(my $device, '+<', $ARGV[0]) or die "$!\n"; ioctl($device, 0x5514, 0) or die "reset: $!\n";"""
OUT_OF_RANGE = "28007fffffff00000800"  # READ(10) far behind the end


@dataclass
class Machine:
    """The shared server and guest, and the images by the speed of their drives."""

    server: UsbvfiodServer
    images: dict[str, Path]
    guest: Guest
    puller: Puller

    def disk(self, name: str) -> guest_usb.Disk:
        size = self.images[name].stat().st_size
        return next(disk for disk in guest_usb.wait_disks(self.guest, len(self.images)) if disk.size == size)


@pytest.fixture(scope="module")
def machine(
    module_guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    images = {"super": random_image(48), "high": random_image(40), "slow": random_image(24)}
    devices = [
        f"virtual:flash?image={path}&transport=uas&speed={'high' if name == 'high' else 'super'}"
        for name, path in images.items()
    ]
    puller = Puller(tmp_path_factory.mktemp("puller"), images["slow"].name)
    with UsbvfiodServer(devices, environment=puller.environment) as server:
        guest = module_guest_factory(server.arguments)
        guest.run(f"cat > /tmp/sg_io.pl <<'END'\n{SG_IO}END\ncat > /tmp/reset.pl <<'END'\n{USB_RESET}\nEND")
        yield Machine(server, images, guest, puller)


def test_the_uas_driver_binds(machine: Machine) -> None:
    guest_usb.wait_disks(machine.guest, 3)
    tree = machine.guest.run("lsusb -t")
    assert tree.count("Class=Mass Storage, Driver=uas, 5000M") == 2
    assert tree.count("Class=Mass Storage, Driver=uas, 480M") == 1
    assert "Driver=usb-storage" not in tree


def test_lsusb_knows_the_pipes(machine: Machine) -> None:
    listing = machine.guest.run("lsusb -v -d 1209: 2>&1")
    for pipe in ("Command pipe", "Status pipe", "Data-in pipe", "Data-out pipe"):
        assert listing.count(pipe) == 3
    assert listing.count("MaxStreams             16") == 6
    assert not re.search(r"can't|couldn't|cannot|warning|junk|\bbad\b|error|timed out", listing, re.IGNORECASE), listing


@pytest.mark.parametrize("name", ["super", "high"])
def test_a_drive_holds_its_image(machine: Machine, name: str) -> None:
    assert guest_usb.sha256(machine.guest, machine.disk(name).path) == guest_usb.image_sha256(machine.images[name])


@pytest.mark.parametrize("name", ["super", "high"])
def test_an_ext4_made_in_the_guest_is_in_the_image(machine: Machine, name: str) -> None:
    checksum = guest_usb.write_ext4(machine.guest, machine.disk(name), "from the guest")
    assert guest_usb.read_ext4(machine.images[name], "text") == b"from the guest\n"
    assert hashlib.sha256(guest_usb.read_ext4(machine.images[name], "random")).hexdigest() == checksum


def jobs(path: str, rounds: int = 2) -> str:
    """Sixteen at a time: each fills its area in another order than it reads it, past the cache, and compares."""
    script = "set -e\nrm -f /tmp/failed\n"
    for job in range(JOBS):
        start = job * AREA
        script += f"""(
    for round in $(seq {rounds}); do
        head -c 262144 /dev/urandom > /tmp/pattern{job}
        for part in 3 0 2 1; do
            dd if=/tmp/pattern{job} of={path} bs=4k count=16 skip=$((part * 16)) seek=$(({start} + part * 16)) \\
                conv=notrunc oflag=direct 2>/dev/null || touch /tmp/failed
        done
        dd if={path} bs=4k count=64 skip={start} iflag=direct 2>/dev/null | cmp - /tmp/pattern{job} || touch /tmp/failed
    done
) &
"""
    return script + "wait\n[ ! -e /tmp/failed ]\n"


def check_jobs(machine: Machine, name: str) -> None:
    """What the jobs have written is in the image."""
    checksums = machine.guest.run(f"for job in $(seq 0 {JOBS - 1}); do sha256sum /tmp/pattern$job; done").splitlines()
    content = machine.images[name].read_bytes()
    for job, line in enumerate(checksums):
        written = content[job * AREA * 4096 :][:262144]
        assert hashlib.sha256(written).hexdigest() == line.split()[0], f"job {job}"


@pytest.mark.parametrize("name", ["super", "high"])
def test_sixteen_jobs_read_and_write_at_once(machine: Machine, name: str) -> None:
    guest, disk = machine.guest, machine.disk(name)
    guest.wait(guest.start(jobs(disk.path)), 120)
    check_jobs(machine, name)


def in_flight(disk: guest_usb.Disk, count: int) -> str:
    """A condition of the shell: so many commands are at work at the same time."""
    name = disk.path.removeprefix("/dev/")
    look = f"set -- $(cat /sys/block/{name}/inflight); [ $(($1 + $2)) -lt {count} ] || exit 0"
    return f"(for look in $(seq 300); do {look}; done; exit 1)"


def readers(path: str) -> str:
    """Sixteen at a time read until that fails, or until there is a file /tmp/stop."""
    loop = f"while dd if={path} of=/dev/null bs=4M iflag=direct && [ ! -e /tmp/stop ]; do :; done"
    return f"rm -f /tmp/stop; for job in $(seq {JOBS}); do {loop} & done; wait"


@pytest.mark.parametrize(("name", "depth"), [("super", 14), ("high", 30)])
def test_how_many_commands_the_driver_sends(machine: Machine, name: str, depth: int) -> None:
    """16 streams, or its own limit of 32 tags, less the two that it keeps for itself."""
    device = machine.disk(name).path.removeprefix("/dev/")
    assert int(machine.guest.run(f"cat /sys/block/{device}/device/queue_depth")) == depth


def test_a_slow_drive_has_many_commands_at_once(machine: Machine) -> None:
    guest, disk = machine.guest, machine.disk("slow")
    reading = guest.start(readers(disk.path))
    guest.wait_until(in_flight(disk, 12), 30)
    guest.run("touch /tmp/stop")
    guest.wait(reading, 30)


@pytest.mark.parametrize("name", ["super", "high"])
def test_commands_that_fail_disturb_no_others(machine: Machine, name: str) -> None:
    """The data transfer of a failed command is taken back: Stop Endpoint with all the other streams busy."""
    guest, disk = machine.guest, machine.disk(name)
    working = guest.start(jobs(disk.path))
    answer = guest.run(f"perl /tmp/sg_io.pl {disk.path} 100 {OUT_OF_RANGE}", 60)
    guest.wait(working, 120)
    assert answer.split() == ["2", "5"]  # CHECK CONDITION, ILLEGAL REQUEST
    check_jobs(machine, name)


def test_no_driver_complains(machine: Machine) -> None:
    assert guest_usb.usb_complaints(machine.guest) == []


@pytest.mark.parametrize("name", ["super", "high"])
def test_a_reset_in_the_middle_loses_nothing(machine: Machine, name: str) -> None:
    guest, disk = machine.guest, machine.disk(name)
    working = guest.start(jobs(disk.path))
    node = "/dev/bus/usb/$(printf %03d/%03d $(cat {0}/busnum) $(cat {0}/devnum))".format(
        f"/sys/bus/usb/devices/{disk.usb}"
    )
    for _ in range(3):
        guest.run(f"sleep 0.2; perl /tmp/reset.pl {node}", 60)
    guest.wait(working, 120)
    check_jobs(machine, name)
    assert not re.search(r"Call Trace|blocked for more than|host controller died", guest.dmesg())


def test_taken_from_its_driver_and_given_back(machine: Machine) -> None:
    """Deauthorized with commands in flight, as a user may: every command ends, and it can be used again."""
    guest, disk = machine.guest, machine.disk("super")
    reading = guest.start(
        f"for job in $(seq {JOBS}); do dd if={disk.path} of=/dev/null bs=4k iflag=direct & done; wait"
    )
    guest.run(f"sleep 0.5; cd /sys/bus/usb/devices/{disk.usb}; echo 0 > authorized; sleep 0.5; echo 1 > authorized", 60)
    guest.wait(reading, 60)
    again = machine.disk("super")
    guest.wait(guest.start(jobs(again.path, 1)), 120)
    check_jobs(machine, "super")


def test_pulled_out_with_sixteen_commands_in_flight(machine: Machine) -> None:
    """Last: this drive is gone then. Every command ends with an error; the guest and the other drives go on."""
    guest, disk = machine.guest, machine.disk("slow")
    reading = guest.start(readers(disk.path))
    guest.wait_until(in_flight(disk, 12), 30)
    machine.images.pop("slow").unlink()  # or it would be plugged in again
    machine.puller.pull()
    guest.wait(reading, 60)
    guest.wait_until(f"[ ! -e /sys/block/{disk.path.removeprefix('/dev/')} ]", 30)
    with pytest.raises(CommandError):
        guest.run(f"dd if={disk.path} of=/dev/null bs=4k count=1 iflag=direct")
    other = machine.disk("super")
    guest.run(f"dd if={other.path} of=/dev/null bs=1M count=8 iflag=direct")
    assert not re.search(r"Call Trace|blocked for more than|host controller died", guest.dmesg())
    assert "Traceback" not in machine.server.log()
