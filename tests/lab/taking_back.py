"""What takes a device back on the host, each as a program or an administrator does it; the device's node stays.

`take` does it; `reason` is what the server says of it, or how that begins; `give`, where there is one, has to be done
before anybody may have the device again. `left` says in which state that leaves it to whoever takes it next: with the
host's drivers, with none for the first interface, or unconfigured.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.usb_device import HostUsbDevice

_RESET = 0x5514  # USBDEVFS_RESET


def _reset(device: HostUsbDevice) -> None:
    """As usbreset of usbutils."""
    node = os.open(device.node, os.O_WRONLY)
    try:
        fcntl.ioctl(node, _RESET, 0)
    finally:
        os.close(node)


def _write(name: str, text: str) -> Callable[[HostUsbDevice], None]:
    def write(device: HostUsbDevice) -> None:
        (device.path / name.format(port=device.port)).write_text(text)

    return write


def _first_interface(device: HostUsbDevice) -> str:
    return sorted(each.name for each in device.path.glob(f"{device.port}:*"))[0]


def _of_first_interface(text: str) -> Callable[[HostUsbDevice], None]:
    return lambda device: _write(f"{_first_interface(device)}/authorized", text)(device)


def _unbind(device: HostUsbDevice) -> None:
    (device.path / _first_interface(device) / "driver" / "unbind").write_text(_first_interface(device))


def configure(device: HostUsbDevice, value: int) -> None:
    """Set a configuration, 0 for none, as an administrator or a rule of udev's does; the host's drivers get it."""
    _write("bConfigurationValue", str(value))(device)


def _configure_again(device: HostUsbDevice) -> None:
    configure(device, int(device.attribute("bConfigurationValue")))


def _bind_by_hand(device: HostUsbDevice) -> None:
    """As the kernel binds it, once nobody has it."""
    _unbind(device)
    Path("/sys/bus/usb/drivers_probe").write_text(_first_interface(device))


@dataclass(frozen=True, slots=True)
class Event:
    """See the module."""

    take: Callable[[HostUsbDevice], None]
    reason: str
    give: Callable[[HostUsbDevice], None] | None = None
    left: Literal["bound", "unbound", "unconfigured"] = "bound"

    def given_back(self, drivers: dict[int, str]) -> dict[int, str]:
        """The drivers that the device has when it was taken after this, and is given back: `drivers` are those that
        the host binds."""
        if self.left == "unconfigured":
            return {}
        return drivers if self.left == "bound" else {**drivers, min(drivers): ""}


TAKEN = "the host has taken interface 0 back"
EVENTS = {
    "reset": Event(_reset, TAKEN),
    # In the middle of these two it has taken an interface back, and a moment later it has unconfigured the device.
    "configured again": Event(_configure_again, "the host has "),
    "unconfigured": Event(lambda device: configure(device, 0), "the host has ", left="unconfigured"),
    "bound by hand": Event(_bind_by_hand, TAKEN),
    "unbound by hand": Event(_unbind, TAKEN, left="unbound"),
    "not authorized": Event(_write("authorized", "0"), "the host does not authorize it", _write("authorized", "1")),
    "interface not authorized": Event(
        _of_first_interface("0"),
        "the host does not authorize interface 0",
        _of_first_interface("1"),  # Linux looks for no driver then
        left="unbound",
    ),
}
