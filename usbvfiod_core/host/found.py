"""How a device was when it was taken from the host, and giving it back so.

Three things of a device are the host's and change while a guest has it:

configuration        it is set again if the guest has set another one; a device that was found unconfigured is left so
drivers              each interface gets the driver that it had. One that had none, because somebody had unbound it,
                     gets none, although Linux looks for drivers of all when a configuration is set
alternate settings   nothing is to be done: Linux sets 0 whenever an interface is let go (usb_unbind_interface), and a
                     driver that wants another one sets it when it is bound
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from . import node
from .sysfs import SysfsDevice, interface_drivers, present_configuration

log = logging.getLogger(__name__)

USBFS = "usbfs"
"""The driver of an interface that a program has claimed through a node; such a claim cannot be given back to it."""
_DRIVERS = Path("/sys/bus/usb/drivers")


class Hands(Protocol):
    """What is done to an open device of which nothing is claimed; each answers 0 or more, or the negative errno."""

    def configure(self, value: int | None) -> int:
        """Set a configuration, None for none."""
        ...

    def connect(self, interface: int) -> int:
        """Let the kernel look for a driver."""
        ...

    def disconnect(self, interface: int) -> int:
        """Take an interface from its driver."""
        ...


class NodeHands:
    """`Hands` by an open node."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def configure(self, value: int | None) -> int:
        return node.configure(self._fd, value)

    def connect(self, interface: int) -> int:
        return node.connect(self._fd, interface)

    def disconnect(self, interface: int) -> int:
        return node.disconnect(self._fd, interface)


class Found(NamedTuple):
    """What sysfs said of a device when it was taken."""

    configuration: int | None
    drivers: Mapping[int, str] | None
    """The driver of each interface that had one; None where sysfs was not there to tell."""
    directory: Path | None = None
    """Where it says so now."""

    @classmethod
    def of(cls, device: SysfsDevice) -> Found:
        """A device as it is now."""
        drivers = {number: name for number, name in device.drivers.items() if name != USBFS}
        known = device.directory is not None or bool(device.drivers)
        return cls(device.configuration, drivers if known else None, device.directory)

    def give_back(self, hands: Hands, *, configuration: int | None, released: Collection[int] = ()) -> None:
        """Make it as it was: `configuration` is what is set now as far as we know, `released` the interfaces that were
        ours; sysfs knows better, where it is there. Raises nothing; what cannot be done is logged."""
        if self.directory is not None:
            try:
                present = present_configuration(self.directory)
            except (OSError, ValueError):
                return  # it has gone
            if present is not None and (configuration, self.configuration) == (None, None):
                return  # the host has configured it while nobody had
            configuration = present
        if configuration != self.configuration:
            self._configure(hands)
        wanted = sorted(released if self.drivers is None else self.drivers)
        if self.configuration is None:
            wanted = []
        for number in wanted:
            code = hands.connect(number)
            if code < 0 and code not in (-errno.ENODEV, -errno.EBUSY, -errno.ENODATA):
                log.info("interface %d has no driver now: %s", number, os.strerror(-code))
        if self.drivers is not None and self.directory is not None:
            self._correct(hands, self.drivers, self.directory)

    def repair(self, hands: Hands, released: Collection[int]) -> None:
        """The host has done something else with the device meanwhile, which stands: only the interfaces that were still
        ours get their drivers back."""
        for number in sorted(released):
            if self.drivers is None or number in self.drivers:
                hands.connect(number)

    # -- own -----------------------------------------------------------------------------------------------------------

    def _configure(self, hands: Hands) -> None:
        code = hands.configure(self.configuration)
        if code < 0 and code != -errno.ENODEV:
            what = "unconfigured" if self.configuration is None else f"set to configuration {self.configuration}"
            log.warning("a device is not %s again, as it was found: %s", what, os.strerror(-code))

    def _correct(self, hands: Hands, drivers: Mapping[int, str], directory: Path) -> None:
        """Where Linux has chosen another driver, or one where there was none."""
        for number, name in interface_drivers(directory).items():
            wanted = drivers.get(number)
            if name in (wanted, USBFS) or (wanted is None and self.configuration is None):
                continue
            hands.disconnect(number)
            if wanted is not None and not _bind(directory, number, self.configuration, wanted):
                hands.connect(number)
                log.info("interface %d has the driver %s now, and had %s", number, name, wanted)
        now = interface_drivers(directory)
        for number, wanted in sorted(drivers.items()):
            if number not in now and not _bind(directory, number, self.configuration, wanted):
                log.info("interface %d has no driver now, and had %s", number, wanted)


def _bind(directory: Path, number: int, configuration: int | None, driver: str) -> bool:
    """Bind an interface to a driver by its name, as somebody has done before; Linux lets root do it."""
    try:
        (_DRIVERS / driver / "bind").write_text(f"{directory.name}:{configuration}.{number}")
    except OSError:
        return False
    return True
