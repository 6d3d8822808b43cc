"""The USB device behind a path, in a tree that looks like sysfs."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from usbvfiod_core import ConfigError, DeviceInfo
from usbvfiod_core.daemon.matching import find, find_again, missing
from usbvfiod_core.host import paths
from usbvfiod_core.host.paths import NotUsb, usb_node

NODE = "/dev/bus/usb/003/007"
DONGLE = DeviceInfo("usbfs", NODE, 0x0403, 0x6001, "UART", serial="A9", port_path="3-1")


class Tree:
    """A host whose USB device 3-1 is a serial port and a drive, with a disk of another kind beside it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sys = root / "sys"
        self.usb = self.sys / "devices/pci0000:00/usb3/3-1"
        self.usb.mkdir(parents=True)
        for directory, bus, number in ((self.usb, 3, 7), (self.usb.parent, 3, 1)):
            (directory / "busnum").write_text(f"{bus}\n")
            (directory / "devnum").write_text(f"{number}\n")
        self.add("char", "188:0", self.usb / "3-1:1.0/ttyUSB0/tty/ttyUSB0")
        self.add("block", "8:0", self.usb / "3-1:1.1/host6/block/sda")
        self.add("block", "259:0", self.sys / "devices/pci0000:00/nvme/nvme0n1")
        self.numbers: dict[str, tuple[bool, str]] = {}
        real = os.stat

        def status(path: str | int | Path, **more: object) -> os.stat_result:
            if str(path) not in self.numbers:
                return real(path, **more)  # type: ignore[arg-type]
            is_block, number = self.numbers[str(path)]
            values = [(stat.S_IFBLK if is_block else stat.S_IFCHR) | 0o660, *[0] * 9]
            return os.stat_result(values, {"st_rdev": os.makedev(*map(int, number.split(":")))})

        monkeypatch.setattr(os, "stat", status)
        monkeypatch.setattr(paths, "SYS", self.sys)

    def add(self, kind: str, number: str, place: Path) -> Path:
        place.mkdir(parents=True)
        link = self.sys / "dev" / kind / number
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)
        return place

    def node(self, path: str, number: str, *, block: bool = False) -> str:
        self.numbers[path] = (block, number)
        return path

    def stack(self, number: str, *below: Path) -> str:
        """A mapping that is made of others."""
        place = self.add("block", number, self.sys / f"devices/virtual/block/{number}")
        (place / "slaves").mkdir()
        for each in below:
            (place / "slaves" / each.name).symlink_to(each)
        return self.node(f"/dev/{number}", number, block=True)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_a_node_leads_to_its_device(tree: Tree) -> None:
    assert usb_node(tree.node("/dev/ttyUSB0", "188:0")) == NODE
    assert usb_node(tree.node("/dev/serial/by-id/usb-FTDI_UART_A9-if00-port0", "188:0")) == NODE
    assert usb_node(tree.node("/dev/sda", "8:0", block=True)) == NODE


def test_a_directory_of_sysfs_leads_to_its_device(tree: Tree) -> None:
    (tree.sys / "class/tty").mkdir(parents=True)
    (tree.sys / "class/tty/ttyUSB0").symlink_to(tree.usb / "3-1:1.0/ttyUSB0/tty/ttyUSB0")
    for path in (tree.usb, tree.usb / "3-1:1.0", tree.sys / "class/tty/ttyUSB0"):
        assert usb_node(str(path)) == NODE
    assert usb_node(str(tree.usb.parent)) == "/dev/bus/usb/003/001"


def test_what_is_stacked_leads_to_the_device_below(tree: Tree) -> None:
    drive = tree.usb / "3-1:1.1/host6/block/sda"
    assert usb_node(tree.stack("253:0", drive)) == NODE
    assert usb_node(tree.stack("253:1", tree.sys / "devices/virtual/block/253:0")) == NODE
    other = tree.sys / "devices/pci0000:00/usb4/4-1"
    other.mkdir(parents=True)
    (other / "busnum").write_text("4\n")
    (other / "devnum").write_text("2\n")
    with pytest.raises(NotUsb, match="made of several USB devices: /dev/bus/usb/003/007, /dev/bus/usb/004/002"):
        usb_node(tree.stack("9:0", drive, other))


def test_mappings_that_are_made_of_each_other_end(tree: Tree) -> None:
    path = tree.stack("253:0", tree.sys / "devices/virtual/block/253:1")
    tree.stack("253:1", tree.sys / "devices/virtual/block/253:0")
    with pytest.raises(NotUsb, match="is not behind USB"):
        usb_node(path)


@pytest.mark.parametrize(
    "path", ["/dev/ttyUSB99", "/dev/serial/by-id/usb-none", "/sys/bus/usb/devices/99-1", "/dev/null/x"]
)
def test_what_may_come_is_waited_for(path: str) -> None:
    assert usb_node(path) is None
    assert find(path, [DONGLE]) is None
    assert missing(path) == f"{path} does not exist"


def test_a_link_to_a_node_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    link = tmp_path / "stick"
    link.symlink_to("/dev/bus/usb/099/099")
    assert usb_node(str(link)) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/null", "/dev/null is not behind USB"),
        ("/no/such/thing", "there is no /no/such/thing"),
        ("/tmp", "/tmp is a directory and no device"),
        (__file__, r"is a file and no device \(a drive on it is virtual:flash\?image=/"),
        ("/dev/\0", "embedded null"),
    ],
)
def test_what_is_no_usb_device_is_refused_with_the_form_that_is_wanted(path: str, reason: str) -> None:
    with pytest.raises(NotUsb, match=reason) as caught:
        usb_node(path)
    assert "a device is given as VID:PID (0403:6001)" in str(caught.value)
    with pytest.raises(ConfigError, match=reason):
        find(path, [DONGLE])


def test_a_disk_that_is_not_behind_usb(tree: Tree) -> None:
    with pytest.raises(NotUsb, match="/dev/nvme0n1 is not behind USB"):
        usb_node(tree.node("/dev/nvme0n1", "259:0", block=True))


# -- an attachment that is named by a path --------------------------------------------------------------------------

TTY = "/dev/ttyUSB0"


def back(**changes: object) -> DeviceInfo:
    return replace(DONGLE, address="/dev/bus/usb/003/009", **changes)  # type: ignore[arg-type]


def test_a_path_means_the_device_behind_it(tree: Tree) -> None:
    other = replace(DONGLE, address="/dev/bus/usb/003/008", port_path="3-2")
    assert find(tree.node(TTY, "188:0"), [other, DONGLE]) is DONGLE


def test_the_device_is_known_when_the_path_is_gone() -> None:
    same, elsewhere = back(), back(port_path="3-4")
    assert find_again("/dev/ttyUSB98", DONGLE, [elsewhere, same]) is same
    assert find_again("/dev/ttyUSB98", DONGLE, [elsewhere]) is elsewhere, "by its serial number"
    assert find_again("/dev/ttyUSB98", DONGLE, [back(port_path="3-4", serial="B1")]) is None
    assert find_again("/dev/ttyUSB98", DONGLE, [back(serial="B1")]) is None
    nameless = replace(DONGLE, serial="")
    assert find_again("/dev/ttyUSB98", nameless, [back(serial="")]) is not None
    assert find_again("/dev/ttyUSB98", nameless, [back(serial="", port_path="3-4")]) is None


def test_the_path_tells_devices_apart_that_are_alike(tree: Tree) -> None:
    here, there = back(port_path="3-4"), replace(DONGLE, address=NODE, port_path="3-5")
    assert find_again(tree.node(TTY, "188:0"), DONGLE, [here, there]) is there


def test_a_path_that_is_something_else_now_does_not_matter(tree: Tree) -> None:
    path = tree.node("/dev/sda", "259:0", block=True)
    same = back()
    assert find_again(path, DONGLE, [same]) is same
    assert find_again(path, DONGLE, []) is None
