"""What a backend of real devices needs of the system: sysfs, the device nodes, the kernel's events, usbfs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from . import taken
from .sysfs import NODES
from .usage import PROC


class _Register(Protocol):
    """As `usbvfiod_core.RegisterNeeds`, as far as it is used."""

    def __call__(
        self, *, ioctl_types: tuple[str, ...], sockets: tuple[str, ...], read: tuple[Path, ...], write: tuple[Path, ...]
    ) -> None: ...


def register_host_needs(register: _Register) -> None:
    """For a backend's `usbvfiod_register_needs`."""
    notes = taken.directory()
    register(
        ioctl_types=("U",),  # usbdevfs
        sockets=("netlink",),
        # Who uses a device is in /proc; when there are device nodes is in /run/udev.
        read=(Path("/sys"), PROC, Path("/run/udev")),
        write=(NODES, Path("/sys/bus/usb/drivers"), *([] if notes is None else [notes])),
    )
