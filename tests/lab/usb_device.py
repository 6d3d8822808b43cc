"""A USB device as the lab's Linux has it, found by the host controller and the port it is plugged into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.uevents import Uevents
from usbvfiod_core.testing.limits import PATIENCE

DEVICES = Path("/sys/bus/usb/devices")


@dataclass(frozen=True, slots=True)
class HostUsbDevice:
    """`path` is its directory in sysfs. After a replug the same port has another one."""

    path: Path
    number: int

    @property
    def port(self) -> str:
        """Its name in sysfs, bus and ports: "2-1.4"."""
        return self.path.name

    @property
    def node(self) -> Path:
        """Its node of usbfs."""
        return Path(f"/dev/bus/usb/{int(self.port.partition('-')[0]):03}/{self.number:03}")

    @property
    def id(self) -> str:
        """Vendor and product as in "0525:a4a0"."""
        return f"{self.attribute('idVendor')}:{self.attribute('idProduct')}"

    @property
    def speed(self) -> int:
        """In Mbit/s, as sysfs has it: 12, 480, 5000."""
        return int(self.attribute("speed"))

    @property
    def drivers(self) -> dict[int, str]:
        """The driver of each interface of the active configuration, "" for none."""
        found = {}
        for interface in sorted(self.path.glob(f"{self.path.name}:*")):
            link = interface / "driver"
            number = int((interface / "bInterfaceNumber").read_text(), 16)
            found[number] = link.resolve().name if link.exists() else ""
        return found

    def attribute(self, name: str) -> str:
        """An attribute in sysfs, without the end of the line. Raises OSError once the device is gone."""
        return (self.path / name).read_text().strip()

    def present(self) -> bool:
        """Whether it is still plugged in, and has not been replaced by another."""
        try:
            return int(self.attribute("devnum")) == self.number
        except OSError:
            return False


def at_path(port: str) -> HostUsbDevice:
    """The device at a port path, "2-1.4". Raises OSError if there is none."""
    path = DEVICES / port
    return HostUsbDevice(path, int((path / "devnum").read_text()))


def at_ports(hubs: Iterable[Path], port: str) -> HostUsbDevice | None:
    """The device at a port ("1" or "1.4") of one of these root hubs (usbN in sysfs), if there is one."""
    for hub in hubs:
        path = hub / f"{hub.name.removeprefix('usb')}-{port}"
        try:
            return HostUsbDevice(path, int((path / "devnum").read_text()))
        except OSError:
            continue
    return None


def root_hubs(controller: Path) -> list[Path]:
    """The root hubs of a host controller (a directory below /sys/devices)."""
    return sorted(hub for hub in controller.glob("usb*") if (hub / "busnum").exists())


def wait_plugged(
    uevents: Uevents, find: Callable[[], HostUsbDevice | None], what: str, timeout: float = PATIENCE
) -> HostUsbDevice:
    """Wait until a device is there with its drivers, which is when the kernel says that it has bound it.

    `uevents` must have been made before it was plugged in.
    """

    def bound() -> HostUsbDevice | None:
        device = find()
        if device is None:
            return None
        path = str(device.path.resolve()).removeprefix("/sys")
        ends = [keys for keys in uevents.seen if keys.get("DEVPATH") == path and keys.get("ACTION") == "bind"]
        return device if ends else None

    return uevents.wait(what, bound, timeout)


def wait_unplugged(uevents: Uevents, device: HostUsbDevice, timeout: float = PATIENCE) -> None:
    """Wait until the kernel has let a device go."""
    uevents.wait(f"removal of {device.port}", lambda: not device.present(), timeout)


def wait_disk(uevents: Uevents, device: HostUsbDevice, timeout: float = PATIENCE) -> Path:
    """Wait until the kernel's storage driver has announced a drive's disk; returns its node. `uevents` as above."""
    below = f"{device.path.resolve()}/".removeprefix("/sys")

    def announced() -> Path | None:
        for keys in uevents.seen:
            if keys.get("ACTION") == "add" and keys.get("DEVTYPE") == "disk" and keys["DEVPATH"].startswith(below):
                return Path("/dev") / keys["DEVNAME"]
        return None

    return uevents.wait(f"disk of {device.port}", announced, timeout)
