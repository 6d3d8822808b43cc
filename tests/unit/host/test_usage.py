"""Who uses a device on the host, from directories that look like sysfs and procfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from usbvfiod_core.host import programs
from usbvfiod_core.host.sysfs import SysfsDevice, users
from usbvfiod_core.host.usage import Usage

TYPING = "e080ffdf01cfffff fffffffffffffffe"
BUTTONS = "1f0000 0 0 0 0"


class Host:
    """A host with one USB device, at `usb`, and another disk beside it."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc, self.udev = root / "sys", root / "proc", root / "run/udev/data"
        self.usb = self.sys / "devices/pci0/usb1/1-2"
        self.interface = self.usb / "1-2:1.0"
        self.interface.mkdir(parents=True)
        self.link = self.sys / "bus/usb/devices/1-2"
        self.link.parent.mkdir(parents=True)
        self.link.symlink_to(self.usb)
        self.disk("nvme0n1", "259:0", self.sys / "devices/pci0/nvme")
        self.write(self.proc / "swaps", "Filename\tType\tSize\tUsed\tPriority\n")
        self.mounts("self", "mnt:[1]", "22 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def member(self, kind: str, name: str, parent: Path) -> Path:
        """A device of a class below `parent`."""
        place = parent / kind / name
        place.mkdir(parents=True)
        entry = self.sys / "class" / kind / name
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.symlink_to(place)
        return place

    def disk(self, name: str, number: str, parent: Path | None = None) -> Path:
        place = self.member("block", name, parent or self.interface / "host0/0:0:0:0")
        self.write(place / "dev", number)
        return place

    def stack(self, name: str, number: str, *below: str) -> Path:
        """A virtual block device that is made of others."""
        place = self.disk(name, number, self.sys / "devices/virtual")
        for each in below:
            holders = self.sys / "class/block" / each / "holders"
            holders.mkdir(exist_ok=True)
            (holders / name).symlink_to(place)
        return place

    def mounts(self, process: str, namespace: str, *lines: str) -> None:
        self.write(self.proc / process / "mountinfo", "\n".join(lines))
        link = self.proc / process / "ns/mnt"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        if namespace:
            link.symlink_to(namespace)

    def node(self, place: Path, name: str) -> None:
        self.write(place / "uevent", f"MAJOR=1\nDEVNAME={name}")

    def opened(self, process: int, program: str, *nodes: str) -> None:
        self.write(self.proc / str(process) / "comm", program)
        for number, node in enumerate(nodes):
            link = self.proc / str(process) / "fd" / str(number)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(node)

    @property
    def programs(self) -> list[str]:
        return Usage(self.sys, self.proc, self.udev).programs(self.link)

    @property
    def uses(self) -> list[str]:
        return Usage(self.sys, self.proc, self.udev).of(self.link)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_device_that_nobody_uses(host: Host) -> None:
    assert host.uses == []
    host.disk("sda", "8:0")
    host.disk("sda1", "8:1")
    host.member("net", "usb0", host.interface)
    host.write(host.interface / "net/usb0/flags", "0x1002")
    host.member("sound", "card1", host.interface)
    host.write(host.proc / "asound/card1/pcm0p/sub0/status", "closed")
    host.write(host.sys / "class/tty/console/active", "tty0 ttyS0")
    assert host.uses == []


def test_a_host_without_anything(tmp_path: Path) -> None:
    assert Usage(tmp_path / "sys", tmp_path / "proc").of(tmp_path / "1-2") == []


def test_mounted_file_systems(host: Host) -> None:
    for name, number in (("sda", "8:0"), ("sda1", "8:1"), ("sda2", "8:2")):
        host.disk(name, number)
    root = "22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw"
    host.mounts("self", "mnt:[1]", root, r"30 22 8:1 / /media/My\040Stick rw shared:5 master:3 - vfat /dev/sda1 rw")
    assert host.uses == ["sda1 is mounted at /media/My Stick"]
    binds = [f"4{n} 22 8:2 /d{n} /srv/{n} rw - xfs /dev/sda2 rw" for n in range(5)]
    host.mounts("self", "mnt:[1]", root, *binds)
    assert host.uses == ["sda2 is mounted at /srv/0, /srv/1, /srv/2 and 2 more places"]


def test_a_mount_in_another_namespace(host: Host) -> None:
    host.disk("sda", "8:0")
    mount = "30 22 8:0 / {} rw - vfat /dev/sda rw"
    host.mounts("1", "", mount.format("/first"))  # whose namespace it is may not be seen; the mounts may
    host.mounts("77", "mnt:[2]", mount.format("/second"))
    host.mounts("78", "mnt:[2]", mount.format("/the same namespace is read once"))
    host.mounts("79", "", mount.format("/not to be seen"))
    assert host.uses == ["sda is mounted at /first, /second"]


def test_a_mount_that_only_the_file_system_tells_of(host: Host) -> None:
    host.disk("sda1", "8:1")
    (host.sys / "fs/ext4/sda1").mkdir(parents=True)
    (host.sys / "fs/ext4/features").mkdir()
    assert host.uses == ["sda1 is mounted (ext4)"]


@pytest.mark.parametrize("place", ["/home", "/media/a\u2028b", "/media/\x85\x1c"])
@pytest.mark.parametrize("source", ["/dev/sda1", "/dev/sdb9:/dev/sda1"])
def test_a_file_system_with_a_number_of_its_own(host: Host, source: str, place: str) -> None:
    host.disk("sda1", "8:1")
    host.mounts("self", "mnt:[1]", f"30 22 0:45 /@home {place} rw - btrfs {source} rw")
    assert host.uses == [f"sda1 is mounted at {place}"]


def test_another_device_of_a_file_system_on_several(host: Host) -> None:
    host.disk("sda1", "8:1")
    (host.sys / "fs/btrfs/1234-5678/devices").mkdir(parents=True)
    (host.sys / "fs/btrfs/1234-5678/devices/sda1").symlink_to(host.interface)
    assert host.uses == ["sda1 is mounted (btrfs)"]


def test_swap_space(host: Host) -> None:
    host.disk("sda2", "8:2")
    host.write(
        host.proc / "swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1024 0 -2\n/swapfile file 1 0 -3"
    )
    assert host.uses == ["sda2 is swap space"]


def test_what_is_stacked_on_it(host: Host) -> None:
    host.disk("sda", "8:0")
    host.disk("sda3", "8:3")
    host.stack("md127", "9:127", "sda", "nvme0n1")
    host.stack("dm-0", "253:0", "sda3")
    host.write(host.sys / "class/block/dm-0/dm/name", "secret")
    host.stack("dm-1", "253:1", "dm-0")
    host.write(host.sys / "class/block/dm-1/dm/name", "vg-home")
    host.mounts("self", "mnt:[1]", "30 22 253:1 / /home rw - ext4 /dev/mapper/vg-home rw")
    assert host.uses == [
        "sda is part of md127",
        "sda3 is part of dm-0 (secret)",
        "dm-0 (secret) is part of dm-1 (vg-home)",
        "dm-1 (vg-home) is mounted at /home",
    ]


def test_holders_that_hold_each_other_end(host: Host) -> None:
    host.disk("sda", "8:0")
    host.stack("dm-0", "253:0", "sda")
    (host.sys / "class/block/dm-0/holders").mkdir()
    (host.sys / "class/block/dm-0/holders/sda").symlink_to(host.interface)
    assert host.uses == ["sda is part of dm-0", "dm-0 is part of sda"]


def test_a_loop_device_on_it(host: Host) -> None:
    host.disk("sda", "8:0")
    host.disk("loop3", "7:3", host.sys / "devices/virtual")
    host.write(host.sys / "class/block/loop3/loop/backing_file", "/dev/sda")
    assert host.uses == ["sda is part of loop3"]


def test_what_zram_writes_to(host: Host) -> None:
    host.disk("sda", "8:0")
    host.disk("zram0", "254:0", host.sys / "devices/virtual")
    host.write(host.sys / "class/block/zram0/backing_dev", "none")
    assert host.uses == []
    host.write(host.sys / "class/block/zram0/backing_dev", "/dev/sda")
    assert host.uses == ["sda is part of zram0"]


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("target/core/iblock_0/stick/udev_path", "the kernel's SCSI target"),
        ("nvmet/subsystems/one/namespaces/1/device_path", "the kernel's NVMe target"),
        ("usb_gadget/g1/functions/mass_storage.0/lun.0/file", "a USB gadget"),
    ],
)
def test_a_drive_that_the_kernel_exports(host: Host, place: str, what: str) -> None:
    host.disk("sda1", "8:1")
    host.write(host.sys / "kernel/config" / place, "/dev/nvme0n1")
    assert host.uses == []
    host.write(host.sys / "kernel/config" / place, "/dev/sda1")
    assert host.uses == [f"sda1 is exported by {what}"]


def test_the_log_of_a_file_system_on_another_drive(host: Host) -> None:
    host.disk("sdb1", "8:17")
    host.mounts("self", "mnt:[1]", "40 22 259:0 / /srv rw - xfs /dev/nvme0n1 rw,attr2,logdev=/dev/sdb1,noquota")
    assert host.uses == ["sdb1 is mounted at /srv"]


def test_a_device_that_usbip_exports(host: Host) -> None:
    """The driver has the device itself: it has no interfaces, or none with a driver."""
    (host.usb / "driver").symlink_to("../../bus/usb/drivers/usb")
    assert host.uses == []
    (host.usb / "driver").unlink()
    (host.usb / "driver").symlink_to("../../bus/usb/drivers/usbip-host")
    host.write(host.usb / "usbip_status", "1")
    device = SysfsDevice("1-2", 1, 2, 0x1209, 1, directory=host.link)
    assert users(device) == host.uses == ["it is exported by usbip (`usbip unbind -b 1-2` ends that)"]
    host.write(host.usb / "usbip_status", "2")
    assert users(device) == ["it is exported by usbip, and a client has it (`usbip unbind -b 1-2` ends that)"]


def test_a_member_of_a_zfs_pool(host: Host) -> None:
    host.disk("sda1", "8:1")
    host.write(host.udev / "b8:1", "S:disk/by-label/tank\nE:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank\nG:systemd")
    assert host.uses == [], "it is not imported"
    (host.proc / "spl/kstat/zfs/tank").mkdir(parents=True)
    assert host.uses == ["sda1 is part of the ZFS pool tank"]
    host.write(host.udev / "b8:1", "E:ID_FS_TYPE=vfat\nE:ID_FS_LABEL=tank")
    assert host.uses == []


def test_a_cache_of_bcache(host: Host) -> None:
    """The kernel names no holder of it, as it does of what is behind the cache."""
    place = host.disk("sda", "8:0")
    (place / "bcache").mkdir()
    assert host.uses == []
    (place / "bcache/set").symlink_to("../../../../fs/bcache/1234")
    assert host.uses == ["sda is part of a bcache"]


def test_programs_that_have_a_drive_open(host: Host) -> None:
    host.node(host.disk("sda", "8:0"), "sda")
    host.node(host.disk("sda1", "8:1"), "sda1")
    host.node(host.member("scsi_generic", "sg0", host.interface), "sg0")
    host.node(host.member("scsi_changer", "sch0", host.interface), "sch0")
    host.node(host.member("bsg", "0:0:0:0", host.interface), "bsg/0:0:0:0")
    host.opened(70, "(udev-worker)", "/dev/sda")
    host.opened(71, "sleep", "/dev/null", "/dev/nvme0n1", "/home/sda", "socket:[1]")
    host.opened(os.getpid(), "usbvfiod", "/dev/sda")
    assert host.uses == []
    host.opened(80, "dd", "/dev/sda1", "/dev/sda1")
    host.opened(81, "cdrecord", "/dev/sg0")
    host.opened(82, "mtx", "/dev/sch0", "/dev/bsg/0:0:0:0")
    assert host.uses == [
        "sda1 is open in dd (80)",
        "sg0 is open in cdrecord (81)",
        "sch0 is open in mtx (82)",
        "0:0:0:0 is open in mtx (82)",
    ]
    assert host.programs == []
    for process in range(83, 87):
        host.opened(process, "dd", "/dev/sda")
    assert host.uses[0].endswith(" and 1 more programs")


def test_programs_that_can_do_without_the_device(host: Host) -> None:
    host.node(host.usb, "bus/usb/001/004")
    host.node(host.member("tty", "ttyUSB0", host.interface), "ttyUSB0")
    host.node(host.member("usbmisc", "lp0", host.interface), "usb/lp0")
    host.node(host.member("tty", "ttyUSB1", host.sys / "devices/pci0/usb1/1-3/1-3:1.0"), "ttyUSB1")
    host.opened(80, "ModemManager", "/dev/ttyUSB0", "/dev/ttyUSB1")
    host.opened(90, "pcscd", "/dev/bus/usb/001/004", "/dev/usb/lp0")
    assert host.uses == []
    assert Usage(host.sys, host.proc, host.udev).node_programs(host.link) == ["its node is open in pcscd (90)"]
    assert host.programs == [
        "its node is open in pcscd (90)",
        "ttyUSB0 is open in ModemManager (80)",
        "lp0 is open in pcscd (90)",
    ]


def test_many_descriptors_are_not_all_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "DESCRIPTORS", 0)
    host.node(host.disk("sda", "8:0"), "sda")
    host.opened(80, "dd", "/dev/sda")
    assert host.uses == []


def test_a_network_interface_that_is_up(host: Host) -> None:
    place = host.member("net", "enx0", host.interface)
    host.write(place / "flags", "0x1003")
    assert host.uses == ["network interface enx0 is up"]
    host.write(place / "flags", "0x1002")
    (place / "upper_vlan7").symlink_to(host.usb)
    assert host.uses == ["network interface enx0 is part of vlan7"]
    bridge = host.member("net", "br0", host.sys / "devices/virtual")
    (place / "master").symlink_to(bridge)
    assert host.uses == ["network interface enx0 is part of br0"]


def test_a_network_interface_in_another_namespace(host: Host) -> None:
    (host.interface / "net").mkdir()
    assert host.uses == ["it has a network interface in another network namespace"]


@pytest.mark.parametrize(
    ("stream", "state", "uses"),
    [
        ("pcm0p", "state: RUNNING\nowner_pid   : 1", ["sound card1 is playing"]),
        ("pcm0c", "state: RUNNING", ["sound card1 is recording"]),
        ("pcm0p", "state: PREPARED", []),
        ("pcm0p", "closed", []),
    ],
)
def test_a_sound_card(host: Host, stream: str, state: str, uses: list[str]) -> None:
    host.member("sound", "card1", host.interface)
    host.write(host.proc / "asound/card1" / stream / "sub0/status", state)
    assert host.uses == uses


def test_a_console(host: Host) -> None:
    host.member("tty", "ttyUSB0", host.interface)
    host.write(host.sys / "class/tty/console/active", "tty0 ttyUSB0")
    assert host.uses == ["ttyUSB0 is a console of this host"]


def keyboard(host: Host, name: str, parent: Path, keys: str = TYPING) -> Path:
    place = host.member("input", name, parent)
    host.write(place / "capabilities/key", keys)
    return place


@pytest.mark.parametrize(
    ("place", "keys", "uses"),
    [
        ("devices/platform/i8042", TYPING, False),
        ("devices/virtual/misc/uhid", TYPING, False),
        ("devices/virtual", TYPING, True),
        ("devices/LNXSYSTM", BUTTONS, True),
    ],
    ids=["another one", "one over Bluetooth", "a program's", "a power button"],
)
def test_the_only_keyboard(host: Host, place: str, keys: str, uses: bool) -> None:
    keyboard(host, "input1", host.interface)
    assert host.uses == [], "there is no display"
    host.write(host.sys / "class/vtconsole/vtcon0/name", "(S) dummy device")
    assert host.uses == []
    host.write(host.sys / "class/vtconsole/vtcon1/name", "(M) frame buffer device")
    assert host.uses == ["it is the only keyboard of this host"]
    keyboard(host, "input2", host.sys / place, keys)
    assert bool(host.uses) is uses


@pytest.mark.parametrize(("statuses", "used"), [(("disconnected",), False), (("disconnected", "connected"), True)])
def test_a_keyboard_of_a_host_with_monitors(host: Host, statuses: tuple[str, ...], used: bool) -> None:
    keyboard(host, "input1", host.interface)
    host.write(host.sys / "class/vtconsole/vtcon1/name", "(M) frame buffer device")
    for number, status in enumerate(statuses):
        host.write(host.sys / f"class/drm/card0-{number}/status", status)
    assert bool(host.uses) is used


def test_a_mouse_is_no_keyboard(host: Host) -> None:
    keyboard(host, "input1", host.interface, BUTTONS)
    host.write(host.sys / "class/vtconsole/vtcon1/name", "(M) VGA+")
    assert host.uses == []


def test_lines_that_are_none(host: Host) -> None:
    host.disk("sda", "8:0")
    host.mounts("self", "mnt:[1]", "", "nonsense", " - ", "1 2 8:0", "1 2 8:0 / /there - ", "\\999 - \\")
    host.write(host.proc / "swaps", "Filename\n\n   ")
    assert host.uses == ["sda is mounted at /there"]
    os.unlink(host.proc / "swaps")
    assert host.uses == ["sda is mounted at /there"]
