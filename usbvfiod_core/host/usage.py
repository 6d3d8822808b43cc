"""Who uses a device on the host, where the use would not survive that the device is taken away: a mounted file system
loses what was not written yet, a network goes down, nobody can type any more.

Everything is read from sysfs, procfs and udev's database, no node is opened, and nothing there waits for a device. A
use that cannot be seen there is not found: a program of another user, a file system whose mount is in a namespace that
this process may not look into and of which the kernel says nothing in /sys/fs.

A program that has the node of a drive open loses data. One that has a serial port, a camera or a HID device open is
told by its read or write that the device is gone, as when somebody pulls it out; that is no reason to refuse it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

from .programs import open_nodes

SYS = Path("/sys")
PROC = Path("/proc")
UDEV = Path("/run/udev/data")

_STORAGE: Final = ("scsi_generic", "scsi_tape", "scsi_changer", "bsg")
"""Classes of nodes beside the block devices through which programs write to drives."""
_OTHERS: Final = ("tty", "hidraw", "video4linux", "usbmisc")
"""Classes of nodes whose programs can do without them. Event devices are not among them: they are always open."""

_UP: Final = 0x1
"""IFF_UP of a network interface's flags."""
_TYPING_KEYS: Final = 0xFFFF_FFFE
"""The keys from Esc to S (numbers 1 to 31 of linux/input-event-codes.h). Who has all of them is a keyboard: udev goes
by that, too."""
_MOVING: Final = ("RUNNING", "DRAINING", "PAUSED")
"""States of a stream of a sound card in which somebody listens or speaks."""
_PLACES: Final = 3
"""Mount points of one file system that are named; bind mounts can make hundreds."""
_EXPORTS: Final = (
    ("the kernel's SCSI target", "target/core/*/*/udev_path"),
    ("the kernel's NVMe target", "nvmet/subsystems/*/namespaces/*/device_path"),
    ("a USB gadget", "usb_gadget/*/functions/mass_storage.*/lun.*/file"),
)
"""Drivers of the kernel that give block devices to others, and where in configfs they say which."""
_OPTION_NODE: Final = re.compile(r"=(/dev/[^,\s]+)")
"""A device in the options of a file system: the log of an XFS, say."""
_NODE: Final = re.compile(r"^DEVNAME=(.+)$", re.MULTILINE)
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Usage:
    """The host at one moment: what is asked for is read once. In any thread; raises nothing."""

    def __init__(self, sys: Path | None = None, proc: Path | None = None, udev: Path | None = None) -> None:
        self._sys = sys or SYS
        self._proc = proc or PROC
        self._udev = udev or UDEV

    def of(self, directory: Path) -> list[str]:
        """Who uses the USB device with this directory in sysfs, a clause each: "sda1 is mounted at /mnt"."""
        below = f"{os.path.realpath(directory)}/"
        return [
            *exporter(directory),
            *self._storage(below),
            *self._networks(below),
            *self._sounds(below),
            *self._consoles(below),
            *self._keyboards(below),
        ]

    def programs(self, directory: Path) -> list[str]:
        """The programs that can do without the USB device, a clause each: "ttyUSB0 is open in minicom (812)"."""
        below = f"{os.path.realpath(directory)}/"
        return [*self.node_programs(directory), *self._open_nodes(below, _OTHERS)]

    def node_programs(self, directory: Path) -> list[str]:
        """The programs that have the node of the USB device itself open, in one clause: they may have claimed it."""
        return list(self._open("its node", Path(os.path.realpath(directory))))

    def _open_nodes(self, below: str, classes: tuple[str, ...]) -> Iterator[str]:
        for kind in classes:
            for name, path in _links(self._sys / "class" / kind).items():
                if path.startswith(below):
                    yield from self._open(name, Path(path))

    def _open(self, label: str, directory: Path) -> Iterator[str]:
        """Which programs have the node of the device with this directory open."""
        match = _NODE.search(_text(directory / "uevent"))
        programs = self._programs.get(f"/dev/{match[1]}") if match else None
        if programs:
            more = f" and {len(programs) - _PLACES} more programs" if len(programs) > _PLACES else ""
            yield f"{label} is open in {', '.join(programs[:_PLACES])}{more}"

    @cached_property
    def _programs(self) -> dict[str, list[str]]:
        return open_nodes(self._proc)

    # -- storage -----------------------------------------------------------------------------------------------------

    def _storage(self, below: str) -> Iterator[str]:
        seen: set[str] = set()
        for name, path in self._blocks.items():
            if path.startswith(below):
                yield from self._block(name, seen)
        yield from self._open_nodes(below, _STORAGE)

    def _block(self, name: str, seen: set[str]) -> Iterator[str]:
        """A block device, and what is stacked on it, however high."""
        if name in seen:
            return
        seen.add(name)
        label = self._label(name)
        places = self._mounts.get(name, [])
        if places:
            more = f" and {len(places) - _PLACES} more places" if len(places) > _PLACES else ""
            yield f"{label} is mounted at {', '.join(places[:_PLACES])}{more}"
        elif name in self._file_systems:
            yield f"{label} is mounted ({self._file_systems[name]})"
        if name in self._swaps:
            yield f"{label} is swap space"
        if os.path.lexists(self._sys / "class/block" / name / "bcache/set"):
            yield f"{label} is part of a bcache"
        pool = self._pool(name)
        if pool:
            yield f"{label} is part of the ZFS pool {pool}"
        for exporting in self._exports.get(name, []):
            yield f"{label} is exported by {exporting}"
        yield from self._open(label, self._sys / "class/block" / name)
        for above in [*_names(self._sys / "class/block" / name / "holders"), *self._loops.get(name, [])]:
            yield f"{label} is part of {self._label(above)}"
            yield from self._block(above, seen)

    def _pool(self, name: str) -> str:
        """The imported ZFS pool that a block device is part of, by its label. The kernel does not say it anywhere."""
        entry = _text(self._udev / f"b{_text(self._sys / 'class/block' / name / 'dev')}")
        values = dict(line.removeprefix("E:").partition("=")[::2] for line in entry.split("\n") if line[:2] == "E:")
        pool = values.get("ID_FS_LABEL", "") if values.get("ID_FS_TYPE") == "zfs_member" else ""
        return pool if pool in _names(self._proc / "spl/kstat/zfs") else ""

    def _label(self, name: str) -> str:
        """A block device as people know it: the mapper's name for one of the device mapper."""
        mapped = _text(self._sys / "class/block" / name / "dm/name")
        return f"{name} ({mapped})" if mapped else name

    @cached_property
    def _blocks(self) -> dict[str, str]:
        return _links(self._sys / "class/block")

    @cached_property
    def _mounts(self) -> dict[str, list[str]]:
        """Where each block device is mounted, in every mount namespace that can be seen."""
        numbers = {_text(self._sys / "class/block" / name / "dev"): name for name in self._blocks}
        found: dict[str, list[str]] = {}
        for table in self._mount_tables():
            for line in table.split("\n"):  # names may have in them what str.splitlines divides at
                fields, _, kind = line.partition(" - ")
                number, place = [*fields.split(" "), *[""] * 5][2:5:2]
                # File systems on several devices (btrfs, bcachefs) have a number of their own, and name devices.
                sources = [*[*kind.split(" "), "", ""][1].split(":"), *_OPTION_NODE.findall(kind)]
                names = {numbers.get(number, ""), *map(_node_name, sources)} & self._blocks.keys()
                for name in names:
                    places = found.setdefault(name, [])
                    plain = _unescaped(place)
                    if plain and plain not in places:
                        places.append(plain)
        return found

    def _mount_tables(self) -> Iterator[str]:
        """mountinfo of this process, of the first, and of one in each other namespace that this process may see."""
        seen = set()
        for process in ("self", "1", *(name for name in _names(self._proc) if name.isdigit())):
            try:
                namespace = os.readlink(self._proc / process / "ns/mnt")
            except OSError:
                if process != "1":
                    continue  # which one it is cannot be told, and there may be thousands of processes
                namespace = ""
            if namespace not in seen:
                seen.add(namespace)
                yield _text(self._proc / process / "mountinfo")

    @cached_property
    def _file_systems(self) -> dict[str, str]:
        """Block devices of which a file system says in sysfs that it has them, whoever has mounted it."""
        found = {}
        root = self._sys / "fs"
        for kind in _names(root):
            for name in _names(root / kind):
                for each in (name, *_names(root / kind / name / "devices")):
                    if each in self._blocks:
                        found[each] = kind
        return found

    @cached_property
    def _swaps(self) -> set[str]:
        lines = _text(self._proc / "swaps").split("\n")[1:]
        return {_node_name(_unescaped(line.split()[0])) for line in lines if line.split()}

    @cached_property
    def _loops(self) -> dict[str, list[str]]:
        """Loop and zram devices by the block device that is behind them; the kernel does not call them its holders."""
        found: dict[str, list[str]] = {}
        for name in self._blocks:
            for kind, attribute in (("loop", "loop/backing_file"), ("zram", "backing_dev")):
                if name.startswith(kind):
                    behind = _node_name(_text(self._sys / "class/block" / name / attribute))
                    found.setdefault(behind, []).append(name)
        return found

    @cached_property
    def _exports(self) -> dict[str, list[str]]:
        """By block device, which drivers of the kernel give it to others; they are not its holders either."""
        found: dict[str, list[str]] = {}
        for what, places in _EXPORTS:
            for place in sorted((self._sys / "kernel/config").glob(places)):
                found.setdefault(_node_name(_text(place)), []).append(what)
        return found

    # -- the others --------------------------------------------------------------------------------------------------

    def _networks(self, below: str) -> Iterator[str]:
        for name, path in self._interfaces.items():
            if not path.startswith(below):
                continue
            directory = Path(path)
            above = [entry.removeprefix("upper_") for entry in _names(directory) if entry.startswith("upper_")]
            if (directory / "master").exists():
                above.insert(0, Path(os.path.realpath(directory / "master")).name)
            if _number(_text(directory / "flags"), 16) & _UP:
                yield f"network interface {name} is up"
            elif above:
                yield f"network interface {name} is part of {above[0]}"
        for place in Path(below).glob("*/net"):
            if not _names(place):
                yield "it has a network interface in another network namespace"

    @cached_property
    def _interfaces(self) -> dict[str, str]:
        return _links(self._sys / "class/net")

    def _sounds(self, below: str) -> Iterator[str]:
        for name, path in self._cards.items():
            if not path.startswith(below):
                continue
            for status in sorted((self._proc / "asound" / name).glob("pcm*/sub*/status")):
                state = _text(status).partition("\n")[0].removeprefix("state: ")
                if state in _MOVING:
                    playing = status.parent.parent.name.endswith("p")
                    yield f"sound {name} is {'playing' if playing else 'recording'}"

    @cached_property
    def _cards(self) -> dict[str, str]:
        return {name: path for name, path in _links(self._sys / "class/sound").items() if name.startswith("card")}

    def _consoles(self, below: str) -> Iterator[str]:
        for name in _text(self._sys / "class/tty/console/active").split():
            if os.path.realpath(self._sys / "class/tty" / name).startswith(below):
                yield f"{name} is a console of this host"

    def _keyboards(self, below: str) -> Iterator[str]:
        if not any(path.startswith(below) for path in self._inputs):
            return
        own = [path for path in self._all_keyboards if path.startswith(below)]
        if own and len(own) == len(self._all_keyboards) and self._has_display:
            yield "it is the only keyboard of this host"

    @cached_property
    def _inputs(self) -> list[str]:
        return [path for name, path in _links(self._sys / "class/input").items() if name.startswith("input")]

    @cached_property
    def _all_keyboards(self) -> list[str]:
        """Every keyboard that a person can type on, without those that programs make."""
        found = []
        for path in self._inputs:
            keys = _text(Path(path) / "capabilities/key").split()
            if keys and _number(keys[-1], 16) & _TYPING_KEYS == _TYPING_KEYS and "/virtual/input/" not in path:
                found.append(path)
        return found

    @property
    def _has_display(self) -> bool:
        """Whether somebody may sit in front of this host: a monitor is connected, or there is a console on one."""
        connectors = [_text(path) for path in (self._sys / "class/drm").glob("card*/status")]
        if connectors:
            return any(status != "disconnected" for status in connectors)
        consoles = [_text(path) for path in (self._sys / "class/vtconsole").glob("*/name")]
        return any(name and "dummy" not in name for name in consoles)


def exporter(directory: Path) -> list[str]:
    """Who has the whole USB device and not only its interfaces: the kernel gives it to another host."""
    try:
        driver = os.path.basename(os.readlink(directory / "driver"))
    except OSError:
        return []
    if driver != "usbip-host":
        return []
    used = _text(directory / "usbip_status") == "2"
    client = ", and a client has it" if used else ""
    return [f"it is exported by usbip{client} (`usbip unbind -b {directory.name}` ends that)"]


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _links(directory: Path) -> dict[str, str]:
    """The entries of a class and where in the tree of devices they are. One system call each: there can be many, and
    devices are listed whenever one comes or goes."""
    found = {}
    for name in _names(directory):
        try:
            found[name] = os.path.normpath(os.path.join(directory, os.readlink(directory / name)))
        except OSError:
            pass  # gone, or an attribute of the class
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return ""


def _number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        return 0


def _unescaped(text: str) -> str:
    """procfs writes spaces and the like as three octal digits."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _node_name(path: str) -> str:
    """The kernel's name of a block device whose node is `path`, which may be a link to it; empty for another file."""
    return os.path.basename(os.path.realpath(path)) if path.startswith("/dev/") else ""
