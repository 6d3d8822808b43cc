"""Whether the interfaces that this process has claimed are still its own, as the host shows it.

Others on the host may take a device back at any time: a reset by another program, a device that is authorized anew or
configured by hand, a driver that is unbound and bound, a resume after which the kernel has to reset. The device and its
node stay; Linux unbinds usbfs from the interfaces and looks for drivers for them (drivers/usb/core/driver.c).
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .gate import admit
from .options import HostOptions
from .sysfs import SysfsDevice

USBFS: Final = "usbfs"
"""The driver of an interface that is claimed through a device node, by whichever program."""

_GONE: Final = select.POLLHUP | select.POLLERR
"""What a device node's descriptor says once Linux has let the device go."""


class Ownership:
    """Looks after one device that is open as `fd`. Nothing here waits for the host, but `now`."""

    def __init__(self, device: SysfsDevice, fd: int) -> None:
        self.port_path = device.name
        self._device = device
        self._fd = fd
        self._claims: dict[str, int] = {}
        """The inodes of the driver links of what was claimed, by interface; each binding makes a new one."""

    @property
    def can_tell(self) -> bool:
        """Whether the host shows it at all."""
        return self._device.directory is not None

    def remember(self) -> None:
        """What is claimed now is ours: whatever is claimed later is another claim, though it may be ours as well, as
        Linux claims what is used and nobody has. In any thread, before anything of the guest's is done."""
        directory = self._device.directory
        found = () if directory is None else directory.glob(f"{directory.name}:*")
        self._claims = {each.name: _claim(each) for each in found if _driver(each) == USBFS}

    def loss(self, configuration: int | None, interfaces: Iterable[int]) -> str | None:
        """Why one of `interfaces` of this configuration is not ours any more, for people; None if all are.

        None as well for a device that has been pulled out, which its descriptor says, and where sysfs cannot be read.
        """
        directory = self._device.directory
        if directory is None:
            return None
        for number in interfaces:
            interface = directory / f"{directory.name}:{configuration}.{number}"
            driver = _driver(interface)
            if driver == USBFS:
                claim = _claim(interface)
                if self._claims.get(interface.name, claim) == claim:
                    continue
                driver = ""
            if self._pulled_out():
                return None
            return _reason(directory, interface, number, driver)
        return None

    def drivers(self) -> set[str]:
        """The drivers that any of its interfaces has now."""
        directory = self._device.directory
        found = () if directory is None else (_driver(each) for each in directory.glob(f"{directory.name}:*"))
        return {driver for driver in found if driver}

    def now(self) -> SysfsDevice:
        """The device, read again; in a thread, as it waits while somebody else uses the device."""
        return self._device.now()

    def admitted(self, options: HostOptions) -> SysfsDevice:
        """As `now`, if it may be taken from the host's drivers, which have it. Raises DeviceError, see `gate`."""
        return admit(self._device, options)

    def _pulled_out(self) -> bool:
        """Linux says so of the descriptor before it takes the device apart."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & _GONE for _, events in poll.poll(0))


def _driver(interface: Path) -> str:
    try:
        return Path(os.readlink(interface / "driver")).name
    except OSError:
        return ""


def _claim(interface: Path) -> int:
    try:
        return os.lstat(interface / "driver").st_ino
    except OSError:
        return 0


def _reason(directory: Path, interface: Path, number: int, driver: str) -> str:
    if _forbidden(directory):
        return "the host does not authorize it any more"
    if driver:
        return f"the host has taken interface {number} back for {driver}"
    if _forbidden(interface):
        return f"the host does not authorize interface {number} any more"
    if interface.exists():
        return f"the host has taken interface {number} back"
    others = (re.fullmatch(rf"{re.escape(directory.name)}:(\d+)\.\d+", each.name) for each in directory.glob("*:*"))
    values = sorted({int(match[1]) for match in others if match is not None})
    return f"the host has set configuration {values[0]}" if values else "the host has unconfigured it"


def _forbidden(directory: Path) -> bool:
    try:
        return (directory / "authorized").read_text().strip() == "0"
    except OSError:
        return False
