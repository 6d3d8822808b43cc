"""A Linux guest with drives in read-only mode: bulk-only, and UAS with streams and without. Everything that could write
is tried; the images do not change, the guest learns that they are write-protected, and goes on reading.

The images themselves are opened for writing, so only the plugin stands between the guest and them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest_usb
from tests.vm.guest import CommandError, Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

NAMES = ("bulk-only", "streams", "no-streams")

# Through usbfs, past all drivers: takes the interface, chooses a setting, and sends what the arguments say, in order:
# o<endpoint>:<hexadecimal> and i<endpoint>:<length>, w<length> for data that would change the drive.
RAW = r"""
my ($node, $setting, @steps) = @ARGV;
open(my $device, '+<', $node) or die "$node: $!\n";
my $number = pack('L', 0);
my $disconnect = pack('l l Q', 0, 0x5516, 0);
ioctl($device, 0xc0105512, $disconnect);                 # USBDEVFS_IOCTL, USBDEVFS_DISCONNECT
ioctl($device, 0x8004550f, $number) or die "claim: $!\n";
my $choose = pack('L L', 0, $setting);
ioctl($device, 0x80085504, $choose) or die "setting: $!\n";
for my $step (@steps) {
    my ($way, $endpoint, $what) = $step =~ /^([oiw])([0-9a-f]+):(\w+)$/ or die "what is $step?\n";
    my $data = $way eq 'o' ? pack('H*', $what) : $way eq 'w' ? "\xff" x $what : "\0" x $what;
    my $bulk = pack('L L L x4 Q', hex($endpoint), length($data), 1500, unpack('Q', pack('P', $data)));
    my $moved = ioctl($device, 0xc0185502, $bulk);
    my $error = $!;
    print defined $moved ? "$step: " . ($way eq 'i' ? unpack('H*', substr($data, 0, $moved)) : $moved + 0)
                         : "$step: $error", "\n";
}
"""

WRITE_10 = "2a000000000000000800"


@dataclass
class Machine:
    """The shared server and guest; images by the name of their drives."""

    server: UsbvfiodServer
    images: dict[str, Path]
    guest: Guest

    def disk(self, name: str) -> guest_usb.Disk:
        size = self.images[name].stat().st_size
        return next(disk for disk in guest_usb.wait_disks(self.guest, len(self.images)) if disk.size == size)

    def fails(self, script: str) -> str:
        """What a command says that must fail."""
        with pytest.raises(CommandError) as error:
            self.guest.run(f"{{ {script} ; }} 2>&1", 60)
        return str(error.value)


@pytest.fixture(scope="module")
def machine(module_guest_factory: GuestFactory, random_image: Callable[[int], Path]) -> Iterator[Machine]:
    images = {name: random_image(8 * (number + 1)) for number, name in enumerate(NAMES)}
    flash = {"bulk-only": "&transport=bot", "streams": "", "no-streams": "&transport=uas&speed=high"}
    devices = [
        f"virtual:flash?image={path}&removable=false{flash[name]}&mass-storage-quirks.readonly=true"
        for name, path in images.items()
    ]
    before = {name: guest_usb.image_sha256(path) for name, path in images.items()}
    with UsbvfiodServer(devices, ["-v"]) as server:
        guest = module_guest_factory(server.arguments)
        guest.run(f"cat > /tmp/raw.pl <<'END'\n{RAW}END")
        yield Machine(server, images, guest)
    assert {name: guest_usb.image_sha256(path) for name, path in images.items()} == before


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, machine: Machine) -> Iterator[str]:
    """The image of the drive does not change, and the guest can read all of it afterwards."""
    which: str = request.param
    before = guest_usb.image_sha256(machine.images[which])
    yield which
    assert guest_usb.image_sha256(machine.images[which]) == before
    assert guest_usb.sha256(machine.guest, machine.disk(which).path) == before


def test_the_drivers_bind(machine: Machine) -> None:
    guest_usb.wait_disks(machine.guest, 3)
    tree = machine.guest.run("lsusb -t")
    assert (tree.count("Driver=uas"), tree.count("Driver=usb-storage")) == (2, 1)


def test_the_guest_knows_that_it_is_write_protected(machine: Machine, name: str) -> None:
    path = machine.disk(name).path
    assert machine.guest.run(f"cat /sys/block/{path.removeprefix('/dev/')}/ro").strip() == "1"
    assert "WP=1" in machine.guest.run(f"sg_modes {path}")


def writes(path: str) -> tuple[str, ...]:
    """What writes to a disk in the ways of a system."""
    return (
        f"/usr/bin/dd if=/dev/urandom of={path} bs=4k count=64 oflag=direct",
        f"/usr/bin/dd if=/dev/urandom of={path} bs=1M count=4 conv=fsync",
        f"blkdiscard {path}",
        f"blkdiscard --zeroout {path} --length 1M",
        f"mkfs.ext4 -F {path}",
    )


def test_writing(machine: Machine, name: str) -> None:
    for script in writes(machine.disk(name).path):
        machine.fails(script)


def test_writing_with_a_driver_that_does_not_ask(machine: Machine) -> None:
    """The quirk w of the guest's own driver: it takes the drive to be writable, and the drive has the last word."""
    usb = f"/sys/bus/usb/devices/{machine.disk('bulk-only').usb}"
    image = machine.images["bulk-only"]
    before = guest_usb.image_sha256(image)
    authorize = f"cd {usb} && echo 0 > authorized && echo 1 > authorized"
    machine.guest.run(f"echo 1209:0001:w > /sys/module/usb_storage/parameters/quirks; {authorize}", 60)
    path = machine.disk("bulk-only").path
    assert machine.guest.run(f"cat /sys/block/{path.removeprefix('/dev/')}/ro").strip() == "0"
    for script in writes(path):
        machine.fails(script)
    assert re.search(r"Data Protect|critical target error", machine.guest.dmesg())
    machine.guest.run(f"echo > /sys/module/usb_storage/parameters/quirks; {authorize}", 60)
    assert guest_usb.image_sha256(image) == before
    assert guest_usb.sha256(machine.guest, machine.disk("bulk-only").path) == before


def generic(machine: Machine, name: str) -> str:
    """The node through which programs send SCSI commands, whatever the kernel thinks of the disk."""
    disk = machine.disk(name).path.removeprefix("/dev/")
    node = machine.guest.run(f"ls /sys/block/{disk}/device/scsi_generic").strip()
    minor = node.removeprefix("sg")
    machine.guest.run(f"[ -e /dev/{node} ] || mknod /dev/{node} c 21 {minor}")
    return f"/dev/{node}"


PROTECTED = {
    "WRITE(6)": "sg_raw -s 512 -i /tmp/data {} 0a 00 00 00 01 00",
    "WRITE(10)": "sg_dd if=/tmp/data of={} bs=512 count=8",
    "WRITE(12)": "sg_raw -s 512 -i /tmp/data {} aa 00 00 00 00 00 00 00 00 01 00 00",
    "WRITE(16)": "sg_dd if=/tmp/data of={} bs=512 count=8 cdbsz=16",
    "WRITE SAME(10)": "sg_write_same --10 --lba=0 --num=8 {}",
    "WRITE SAME(16)": "sg_write_same --16 --lba=0 --num=8 --unmap {}",
    "UNMAP": "sg_unmap --lba=0 --num=8 --force {}",
    "FORMAT UNIT": "sg_format --format --quick {}",
    "SANITIZE": "sg_sanitize --block --quick {}",
    "MODE SELECT": "sg_raw -s 24 -i /tmp/data {} 15 10 00 00 18 00",
    "COMPARE AND WRITE": "sg_compare_and_write --in=/tmp/data --lba=0 --num=1 {}",
    "WRITE AND VERIFY": "sg_write_verify --in=/tmp/data --lba=0 --num=1 {}",
    "WRITE BUFFER": "sg_write_buffer --mode=2 --in=/tmp/data --length=512 {}",
    "WRITE LONG": "sg_write_long --lba=0 --xfer_len=512 --in=/tmp/data {}",
    "PERSISTENT RESERVE OUT": "sg_persist --out --register --param-sark=1 {}",
    "REASSIGN BLOCKS": "sg_reassign --address=1 {}",
}


def test_the_tools_of_sg3_utils(machine: Machine, name: str) -> None:
    path = generic(machine, name)
    machine.guest.run("head -c 4096 /dev/urandom > /tmp/data")
    said = {command: machine.fails(f"sg_turs {path} && {script.format(path)}") for command, script in PROTECTED.items()}
    protected = {what for what, text in said.items() if re.search(r"write protect|data protect", text, re.IGNORECASE)}
    assert protected == set(PROTECTED), {what: said[what] for what in set(PROTECTED) - protected}


@pytest.mark.parametrize(
    "cdb",
    [
        "c0 00 00 00 00 00",  # vendor's
        "df 10 00 00 00 00 00 00 00 00 00 00",
        "06 00 00 00 00 00",
        "a1 08 2e 00 01 00 00 00 00 ec 00 00",  # ATA PASS-THROUGH(12)
        "85 06 20 00 00 00 00 00 00 00 00 00 00 40 e0 00",  # ATA PASS-THROUGH(16), without data
        "27 00 00 00 00 00 00 00 00 00",
    ],
)
@pytest.mark.parametrize("data", ["", "-s 512 -i /tmp/data", "-r 512"])
def test_commands_of_vendors_and_unknown_ones(machine: Machine, cdb: str, data: str) -> None:
    machine.guest.run("head -c 4096 /dev/urandom > /tmp/data")
    for each in NAMES:
        text = machine.fails(f"sg_raw {data} {generic(machine, each)} {cdb}")
        assert "Illegal Request" in text or "Invalid command operation code" in text, text


def test_what_reads_is_not_refused(machine: Machine, name: str) -> None:
    disk, path = machine.disk(name).path, generic(machine, name)
    machine.guest.run(
        f"sg_inq {path} && sg_vpd {path} && sg_readcap --16 {path} && sg_modes {path} && sg_luns {path} && "
        f"sg_requests {path} && sg_turs {path} && sg_sync {path} && "
        f"/usr/bin/dd if={disk} of=/dev/null bs=64k iflag=direct"
    )


def node(machine: Machine, name: str) -> str:
    usb = f"/sys/bus/usb/devices/{machine.disk(name).usb}"
    return f"/dev/bus/usb/$(printf %03d/%03d $(cat {usb}/busnum) $(cat {usb}/devnum))"


def wrapper(command: str, length: int, *, flags: int = 0) -> str:
    """A command block wrapper in hexadecimal."""
    cdb = bytes.fromhex(command)
    head = b"USBC\1\0\0\0" + length.to_bytes(4, "little") + bytes((flags, 0, len(cdb)))
    return (head + cdb.ljust(16, b"\0")).hex()


def unit(command: str, tag: int) -> str:
    """A COMMAND IU in hexadecimal."""
    return (bytes((1, 0, 0, tag)) + bytes(12) + bytes.fromhex(command).ljust(16, b"\0")).hex()


def raw(machine: Machine, name: str, setting: int, *steps: str) -> list[str]:
    """What each step said. Afterwards the drivers are given the drive back."""
    path, usb = node(machine, name), f"/sys/bus/usb/devices/{machine.disk(name).usb}"
    said = machine.guest.run(f"perl /tmp/raw.pl {path} {setting} {' '.join(steps)} 2>&1", 60).splitlines()
    machine.guest.run(f"cd {usb} && echo 0 > authorized && echo 1 > authorized", 60)
    return [line.split(": ", 1)[1] for line in said]


STALLED, NO_ANSWER = "Broken pipe", "Connection timed out"


def test_a_raw_bulk_only_writer(machine: Machine, name: str) -> None:
    said = raw(machine, name, 0, f"o2:{wrapper(WRITE_10, 4096)}", "w2:4096", "i81:13")
    assert said == ["31", "4096", "55534253010000000010000001"]  # failed, with all of it as residue


def test_a_wrapper_in_the_place_of_data(machine: Machine, name: str) -> None:
    write = wrapper(WRITE_10, 4096)
    said = raw(machine, name, 0, f"o2:{wrapper('00' * 6, 31)}", f"o2:{write}", "i81:13", "w2:4096", f"o2:{write}")
    assert said == ["31", "31", "55534253010000001f00000001", STALLED, STALLED]


@pytest.mark.parametrize(
    "steps",
    [
        [f"o2:{wrapper(WRITE_10, 4096)[:32]}", f"o2:{wrapper(WRITE_10, 4096)[32:]}"],
        [f"o2:{wrapper('00' * 6, 0) + wrapper(WRITE_10, 4096)}"],
        [f"o2:{'00' * 1024}{wrapper(WRITE_10, 4096)}"],
        [f"o2:{wrapper(WRITE_10, 4096, flags=1)}"],
        [f"o2:{wrapper(WRITE_10, 4096)}00"],
        ["w2:4096"],
    ],
    ids=["halves", "two", "behind", "flags", "longer", "data"],
)
def test_wrappers_that_are_none(machine: Machine, name: str, steps: list[str]) -> None:
    said = raw(machine, name, 0, *steps, "w2:4096", "i81:13")
    assert set(said) == {STALLED}


def test_a_raw_uas_writer(machine: Machine) -> None:
    """Without streams, as usbfs moves them only by other requests."""
    steps = (f"o4:{unit(WRITE_10, 1)}", "w2:4096", "i83:112", f"o4:{unit('c0', 2)}", "i83:112")
    said = raw(machine, "no-streams", 1, *steps)
    assert (said[0], said[1], said[3]) == ("32", NO_ANSWER, "32")
    assert said[2] == "0300000100000200000000000000" + "0012" + "70000700000000" + "0a00000000" + "2700" + "00000000"
    assert said[4][28:].startswith("0012700005")
    assert guest_usb.sha256(machine.guest, machine.disk("no-streams").path) == guest_usb.image_sha256(
        machine.images["no-streams"]
    )


def test_the_guest_is_well(machine: Machine) -> None:
    assert not re.search(r"Call Trace|blocked for more than|host controller died|not responding", machine.guest.dmesg())
    assert "Traceback" not in machine.server.log()


def test_the_log_names_the_commands(machine: Machine) -> None:
    log = machine.server.log()
    assert re.search(r"READ\(10\) lba=\d+ blocks=\d+ \d+\.\d ms", log)
    assert re.search(r"WRITE\(10\) lba=0 blocks=8 .*refused, sense 7/27/00", log)
