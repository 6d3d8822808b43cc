"""The USB device behind a path that people have at hand: `/dev/ttyUSB0`, `/dev/disk/by-id/...`, `/dev/video0`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from .sysfs import NODES

SYS = Path("/sys")

FORMS: Final = (
    "a device is given as VID:PID (0403:6001), VID:PID:SERIAL, port path (2-1.4), node (/dev/bus/usb/002/003), or the "
    "path of what it is on this host (/dev/ttyUSB0, /sys/class/net/eth1); `usbvfiod devices` lists what there is"
)


class NotUsb(ConfigError):
    """A path that is no way to a USB device."""


def usb_node(path: str) -> str | None:
    """The device node (`/dev/bus/usb/002/003`) of the USB device behind `path`, which may be a link to it; None if
    there is no such path yet, but udev or the kernel may make it.

    Nothing is opened. Raises NotUsb for what is no USB device, and for what will never be one.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.realpath(path).startswith(("/dev/", "/sys/")):
            return None
        raise NotUsb(f"there is no {path}; {FORMS}") from None
    except (OSError, ValueError) as error:
        raise NotUsb(f"{path}: {getattr(error, 'strerror', error)}; {FORMS}") from error
    for kind, matches in (("char", stat.S_ISCHR), ("block", stat.S_ISBLK)):
        if matches(status.st_mode):
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            return _found(path, Path(os.path.realpath(SYS / "dev" / kind / number)))
    place = Path(os.path.realpath(path))
    if place.is_relative_to(os.path.realpath(SYS)):
        return _found(path, place)
    what = "is a directory" if stat.S_ISDIR(status.st_mode) else "is a file"
    hint = f" (a drive on it is virtual:flash?image={path})" if stat.S_ISREG(status.st_mode) else ""
    raise NotUsb(f"{path} {what} and no device{hint}; {FORMS}")


def _found(path: str, place: Path) -> str:
    nodes = set(_nodes(place, set()))
    if len(nodes) > 1:
        raise NotUsb(f"{path} is made of several USB devices: {', '.join(sorted(nodes))}")
    if not nodes:
        raise NotUsb(f"{path} is not behind USB; {FORMS}")
    return nodes.pop()


def _nodes(place: Path, seen: set[Path]) -> Iterator[str]:
    """The USB devices that what is at `place` in sysfs belongs to: several for a RAID."""
    if place in seen:
        return
    seen.add(place)
    for each in (place, *place.parents):
        try:
            bus, number = (int((each / name).read_text()) for name in ("busnum", "devnum"))
        except (OSError, ValueError):
            continue
        yield str(NODES / f"{bus:03d}" / f"{number:03d}")
        return
    try:
        below = os.listdir(place / "slaves")  # what a device mapper or RAID device is made of
    except OSError:
        return
    for name in below:
        yield from _nodes(Path(os.path.realpath(place / "slaves" / name)), seen)
