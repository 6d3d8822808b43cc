"""What a backend of real devices needs of the system: sysfs, the device nodes, the kernel's events, usbfs."""

from __future__ import annotations

from pathlib import Path

from ..needs import RegisterNeeds
from . import taken
from .sysfs import NODES
from .usage import PROC


def register_host_needs(register: RegisterNeeds) -> None:
    """For a backend's `usbvfiod_register_needs`."""
    notes = taken.directory()
    register(
        ioctl_types=("U",),  # usbdevfs
        sockets=("netlink",),
        # Who uses a device is in /proc; when there are device nodes is in /run/udev.
        read=(Path("/sys"), PROC, Path("/run/udev")),
        write=(NODES, Path("/sys/bus/usb/drivers"), *([] if notes is None else [notes])),
    )
