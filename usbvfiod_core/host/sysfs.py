"""The host's USB devices as Linux lists them in sysfs, for backends whose devices are these.

Nothing is opened here, so listing disturbs no device and needs no right. A device may vanish while it is read: then it
is not in the list.

Linux makes whoever reads a device's texts or its configuration wait while it configures or resets the device, and at a
hub while it enumerates what is behind it. That can take seconds, with a broken device, and must not hold up the others.
So a device is read once, when it is new, in a thread of its own; it is listed when the host has finished with it. Hubs
have no texts here.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import DeviceError
from ..rights import has_opener
from ..usb.backend import DeviceInfo
from ..usb.speed import Speed
from .description import Description
from .reading import Reading
from .usage import Usage, exporter

DEVICES = Path("/sys/bus/usb/devices")
NODES = Path("/dev/bus/usb")

HUB_CLASS = 0x09
_HUB_DRIVER = "hub"
"""Linux takes a device for a hub by the class of an interface, too, and unplugs what is behind it with that driver."""
_RESET_QUIRK = 0x10
"""USB_QUIRK_RESET of the kernel's list: the device loses itself in a reset."""

_BEGINNING, _PAUSE = 0.5, 0.005
"""Seconds in which the host begins to configure a new device, and between two looks whether it has."""

_MAJOR, _NUMBERS = 189, 128
"""The device number of USB device nodes, and how many of them a bus has (Linux Documentation/admin-guide/devices)."""

ALLOW = "; this would allow it: "
"""What stands between the reason and what helps, in what `not_authorized` says; the same in `access_problem`."""
RULE = "; a udev rule would help: "
CONTAINER = f"for a container of Docker or Podman: -v {NODES}:{NODES} --device-cgroup-rule='c {_MAJOR}:* rw'"
"""What gives the nodes to a container, those too that come later."""

_DEVICE_NAME = re.compile(r"usb\d+|\d+-\d+(\.\d+)*")
_PORT = re.compile(r"(?:usb(\d+)|(\d+-\d+(?:\.\d+)*))-port(\d+)")
_PORT_PATH = re.compile(r"\d+-\d+(\.\d+)*")
_SPEEDS = {
    "1.5": Speed.LOW,
    "12": Speed.FULL,
    "480": Speed.HIGH,
    "5000": Speed.SUPER,
}
"""The attribute `speed`, in Mbit/s."""


@dataclass(frozen=True, slots=True)
class SysfsDevice:
    """One device. `name` is sysfs's: the port path (`2-1.4`), `usb2` for the root hub of bus 2."""

    name: str
    bus: int
    number: int
    """The device's number on its bus, new each time it is plugged in."""
    vendor_id: int
    product_id: int
    manufacturer: str = ""
    product: str = ""
    serial: str = ""
    speed: Speed | None = None
    device_class: int = 0
    configuration: int | None = None
    """The value of the configuration that was set when the device was read, which may be 0; None for none. `scan` reads
    once: see `now`."""
    descriptors: bytes = b""
    """The device descriptor and the descriptors of every configuration, as far as the kernel could read what the device
    sent: see `configurations`."""
    drivers: dict[int, str] = field(default_factory=dict)
    """Who holds which interface."""
    authorized: bool = True
    """False: the host has decided, or left it to somebody to decide, that the device is not to be used."""
    unauthorized: tuple[str, ...] = ()
    """Interfaces (`2-1.4:1.0`) of which that is so, of a device that may be used."""
    reset_quirk: bool = False
    """The kernel knows that the device does not survive a reset."""
    twin: str = ""
    """The port path of the other side of its socket, USB 2 or USB 3; empty where the firmware does not tell."""
    directory: Path | None = None
    """Where it was read."""

    def now(self) -> SysfsDevice:
        """The device, read again; as it was, if it has gone. May wait for the host or another user of the device."""
        fresh = None if self.directory is None else read(self.directory)
        return self if fresh is None or fresh.number != self.number else fresh

    @property
    def node(self) -> Path:
        """The device file."""
        return NODES / f"{self.bus:03d}" / f"{self.number:03d}"

    @property
    def is_root_hub(self) -> bool:
        return self.name.startswith("usb")

    @property
    def label(self) -> str:
        """Manufacturer and product for people; the identity where the device has no texts."""
        text = " ".join(part for part in (self.manufacturer, self.product) if part)
        kind = "hub" if self.device_class == HUB_CLASS else "device"
        return text or f"USB {kind} {self.vendor_id:04x}:{self.product_id:04x}"

    def description(self, speed: Speed, max_streams: int = 0) -> Description:
        """For a device of ours. The speed is what the backend knows of it, as sysfs does not tell each."""
        return Description(
            name=self.label,
            serial=self.serial,
            speed=speed,
            descriptors=self.descriptors,
            configuration=self.configuration,
            max_streams=max_streams,
            reset_quirk=self.reset_quirk,
        )


_readings: dict[Path, tuple[int, Reading[SysfsDevice | None]]] = {}
"""What `scan` reads or has read, with the directory's inode: sysfs gives no number twice."""


def scan(root: Path = DEVICES) -> list[SysfsDevice]:
    """Every device there is now, in the order of buses and ports; none where the host has no USB.

    Waits for the host where a device is new, but not for long, see `Reading`; of the others just the drivers, and
    whether they are authorized, are read again. A device that the host is not done with is not listed yet;
    `hotplug.watch` tells when it is.
    """
    try:
        directories = [root / entry.name for entry in os.scandir(root) if _DEVICE_NAME.fullmatch(entry.name)]
    except OSError:
        return []
    for gone in {path for path in list(_readings) if path.parent == root}.difference(directories):
        _readings.pop(gone, None)
    readings = [(directory, reading) for directory in directories if (reading := _reading(directory)) is not None]
    found = [device for directory, reading in readings if (device := _as_read(directory, reading)) is not None]
    return sorted(found, key=lambda device: [int(part) for part in re.findall(r"\d+", device.name)])


def _reading(directory: Path) -> Reading[SysfsDevice | None] | None:
    """The reading of a device's directory, begun if that is new; None if it is gone."""
    try:
        inode = directory.stat().st_ino
    except OSError:
        return None
    before, reading = _readings.get(directory, (0, None))
    if reading is None or before != inode:
        is_hub = _Attributes(directory).get("bDeviceClass") == f"{HUB_CLASS:02x}"
        reading = Reading(directory.name, lambda: (read if is_hub else _read_settled)(directory), may_wait=not is_hub)
        _readings[directory] = inode, reading
    return reading


def _as_read(directory: Path, reading: Reading[SysfsDevice | None]) -> SysfsDevice | None:
    """The device, with its drivers of now; None if it is gone, no device, or not read yet."""
    device = reading.result()
    if device is None:
        if reading.done:
            _readings.pop(directory, None)
        return None
    if device.device_class == HUB_CLASS:
        return device  # nobody wants it, and the host has many
    authorized = _is_authorized(directory)
    if authorized and not device.authorized:
        # Linux configures it now, and has shown less of it before.
        _readings.pop(directory, None)
        anew = _reading(directory)
        return None if anew is None else _as_read(directory, anew)
    try:
        drivers, unauthorized = _interfaces(directory)
        return replace(device, drivers=drivers, authorized=authorized, unauthorized=unauthorized)
    except (OSError, ValueError):
        return None


def _read_settled(directory: Path) -> SysfsDevice | None:
    """As `read`, of a new device, which is seen a moment before the host begins to configure it: whoever reads it then
    does not wait for the host. One that has no driver, not even the kernel's for whole devices, is left so by somebody.
    """
    deadline = time.monotonic() + _BEGINNING
    while not (directory / "driver").is_symlink() and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return read(directory)


def read(directory: Path) -> SysfsDevice | None:
    """One device's directory; None if it is gone, or no device. May wait: see above."""
    text = _Attributes(directory)
    try:
        device_class = int(text["bDeviceClass"], 16)
        is_hub = device_class == HUB_CLASS
        drivers, unauthorized = _interfaces(directory)
        return SysfsDevice(
            name=directory.name,
            bus=int(text["busnum"]),
            number=int(text["devnum"]),
            vendor_id=int(text["idVendor"], 16),
            product_id=int(text["idProduct"], 16),
            manufacturer="" if is_hub else text.get("manufacturer"),
            product="" if is_hub else text.get("product"),
            serial="" if is_hub else text.get("serial"),
            speed=_speed(text["speed"]),
            device_class=device_class,
            configuration=None if is_hub else _configuration(text.get("bConfigurationValue")),
            descriptors=(directory / "descriptors").read_bytes(),
            drivers=drivers,
            authorized=_is_authorized(directory),
            unauthorized=unauthorized,
            reset_quirk=bool(int(text.get("quirks") or "0", 16) & _RESET_QUIRK) or text.get("avoid_reset_quirk") == "1",
            twin=_twin(directory),
            directory=directory,
        )
    except (OSError, ValueError):
        return None


def find(address: str, devices: list[SysfsDevice]) -> SysfsDevice:
    """The device whose node (or a link to it), or port path, is `address`. Raises DeviceError: there is none."""
    if _PORT_PATH.fullmatch(address):
        matches = [device for device in devices if device.name == address]
    else:
        node = Path(os.path.realpath(address))
        matches = [device for device in devices if device.node == node]
    if not matches:
        raise DeviceError(f"there is no device {address}; `usbvfiod devices` lists what there is")
    return matches[0]


def find_fd(fd: int, devices: list[SysfsDevice]) -> SysfsDevice:
    """The device whose node is open as `fd`, for reading and writing. Raises DeviceError: it is none of these."""
    try:
        status = os.fstat(fd)
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise DeviceError(f"file descriptor {fd}: {error.strerror}") from error
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != _MAJOR:
        raise DeviceError(f"file descriptor {fd} is not a USB device node (/dev/bus/usb/BBB/DDD)")
    if access != os.O_RDWR:
        raise DeviceError(f"file descriptor {fd}: a USB device node has to be opened for reading and writing")
    bus, number = divmod(os.minor(status.st_rdev), _NUMBERS)
    for device in devices:
        if (device.bus, device.number) == (bus + 1, number + 1):
            return device
    raise DeviceError(f"the device behind file descriptor {fd} is gone")


def refusal(device: SysfsDevice) -> str | None:
    """Why the device cannot be given to a guest, now or ever; None if it can."""
    return unfitness(device) or not_authorized(device)


def unfitness(device: SysfsDevice) -> str | None:
    """Why the device is one that cannot be given to a guest at all; None if it can."""
    if device.is_root_hub:
        return "a root hub belongs to the host's controller; give the devices behind it"
    if device.device_class == HUB_CLASS or _HUB_DRIVER in device.drivers.values():
        return "a hub is not passed through; give the devices behind it, each for itself"
    if device.speed is None:
        return "its speed is not known to this host"
    return None


def not_authorized(device: SysfsDevice) -> str | None:
    """What of the device the host has not authorized, and what would help; None if that is nothing."""
    if not device.authorized:
        fix = f"echo 1 | sudo tee {DEVICES / device.name}/authorized, or usbguard allow-device where USBGuard decides"
        return f"the host has not authorized it{ALLOW}{fix}"
    if not device.unauthorized:
        return None
    places = " ".join(f"{DEVICES / name}/authorized" for name in device.unauthorized)
    what = f"interface{'s' * (len(device.unauthorized) > 1)} {', '.join(device.unauthorized)}"
    return f"the host has not authorized its {what}{ALLOW}echo 1 | sudo tee {places}"


def access_problem(device: SysfsDevice) -> str | None:
    """Why this process may not open the device, and what would help; None if it may, or somebody else opens it."""
    if has_opener():
        return None
    try:
        if os.access(device.node, os.R_OK | os.W_OK):
            return None
        mode = device.node.stat()
    except FileNotFoundError as error:
        return f"{device.node}: {error.strerror}{ALLOW}{CONTAINER}"
    except OSError as error:
        return f"{device.node}: {error.strerror}"
    return (
        f"no permission for {device.node} (mode {mode.st_mode & 0o777:04o}, owner {mode.st_uid}:{mode.st_gid})"
        f"{RULE}{udev_rule(device)}"
    )


def udev_rule(device: SysfsDevice) -> str:
    """A rule for /etc/udev/rules.d that lets whoever sits at the machine, and the group plugdev, open the device."""
    identity = f'ATTR{{idVendor}}=="{device.vendor_id:04x}", ATTR{{idProduct}}=="{device.product_id:04x}"'
    return f'SUBSYSTEM=="usb", {identity}, MODE="0660", GROUP="plugdev", TAG+="uaccess"'


def device_infos(backend: str, devices: list[SysfsDevice]) -> list[DeviceInfo]:
    """`device_info` of each, at one moment of the host."""
    usage = Usage()
    return [device_info(backend, device, usage) for device in devices]


def device_info(backend: str, device: SysfsDevice, usage: Usage | None = None) -> DeviceInfo:
    """What `usbvfiod devices` and the other parts of the core want to know of a device."""
    return DeviceInfo(
        backend=backend,
        address=str(device.node),
        vendor_id=device.vendor_id,
        product_id=device.product_id,
        name=device.label,
        serial=device.serial,
        speed=device.speed,
        port_path="" if device.is_root_hub else device.name,
        twin=device.twin,
        driver=", ".join(sorted(set(device.drivers.values()))),
        note=refusal(device) or access_problem(device) or "",
        in_use="; ".join(users(device, usage)),
    )


def users(device: SysfsDevice, usage: Usage | None = None) -> list[str]:
    """Who uses the device on the host, see `Usage`. Nobody uses so what only programs have; of hubs nothing is told."""
    if device.directory is None or device.device_class == HUB_CLASS:
        return []
    if not set(device.drivers.values()) - {"usbfs"}:
        return exporter(device.directory)
    return (usage or Usage()).of(device.directory)


def programs(device: SysfsDevice) -> list[str]:
    """The programs on the host that lose a device when it is taken, see `Usage.programs`."""
    return [] if device.directory is None else Usage().programs(device.directory)


def who_has_node(device: SysfsDevice) -> str:
    """Behind a message that another program has claimed the device: who that may be, as far as can be seen."""
    programs = [] if device.directory is None else Usage().node_programs(device.directory)
    return f" ({'; '.join(programs)})" if programs else ""


class _Attributes:
    """The text attributes of a directory, without the line's end and blanks. `[]` raises OSError where one is missing.

    Other characters that Python takes for blanks stay: there are devices that differ only in a control character at the
    end of their serial numbers.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __getitem__(self, name: str) -> str:
        return (self._directory / name).read_bytes().decode(errors="replace").strip(" \t\r\n")

    def get(self, name: str) -> str:
        try:
            return self[name]
        except OSError:
            return ""


def _speed(text: str) -> Speed | None:
    """Everything above SuperSpeed is one speed here, 10000 and 20000 and what the next USB brings."""
    faster = text.isdecimal() and int(text) > 5000
    return Speed.SUPER_PLUS if faster else _SPEEDS.get(text)


def interface_drivers(directory: Path) -> dict[int, str]:
    """The driver of each interface of a device that has one now; none if the device has gone. Waits for nobody."""
    try:
        return _interfaces(directory)[0]
    except (OSError, ValueError):
        return {}


def present_configuration(directory: Path) -> int | None:
    """The value of the configuration that a device has now, None for none: then Linux leaves the attribute empty. Waits
    while somebody works on the device. Raises OSError or ValueError if the device has gone."""
    return _configuration(_Attributes(directory)["bConfigurationValue"])


def _configuration(value: str) -> int | None:
    return int(value) if value else None


def _interfaces(directory: Path) -> tuple[dict[int, str], tuple[str, ...]]:
    """Who holds which interface, and which interfaces are not authorized.

    Interfaces come and go while this looks, as when somebody on the host sets another configuration: one that has just
    gone costs nothing but itself. Nothing of it is read that its name says (`2-1.4:1.0`, the last part the number).
    """
    drivers, unauthorized = {}, []
    for name in os.listdir(directory):
        place, _, number = name.rpartition(".")
        if not place.startswith(f"{directory.name}:"):
            continue
        interface = directory / name
        try:
            driver = os.readlink(interface / "driver")
        except OSError:
            pass
        else:
            drivers[int(number)] = os.path.basename(driver)
        if not _is_authorized(interface):
            unauthorized.append(name)
    return drivers, tuple(sorted(unauthorized))


def _is_authorized(directory: Path) -> bool:
    return _Attributes(directory).get("authorized") != "0"


def _twin(directory: Path) -> str:
    """The hub port that the kernel calls the peer of a device's port, as the port path of what sits there."""
    try:
        peer = _PORT.fullmatch(Path(os.readlink(directory / "port" / "peer")).name)
    except OSError:
        return ""
    if peer is None:
        return ""
    return f"{peer[1]}-{peer[3]}" if peer[1] else f"{peer[2]}.{peer[3]}"
