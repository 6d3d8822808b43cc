"""USB devices made of the kernel's own gadget functions, on the host controllers of dummy_hcd.

    with Gadget([source_sink()], identity="0525:a4a0", speed="super") as gadget:
        device = gadget.bind()

A gadget is a directory of configfs (Documentation/usb/gadget_configfs.rst in Linux); writing the name of a device
controller into its UDC plugs it in. dummy_hcd is a device controller and the host controller it is wired to in one:
everything is real but the cable. It has no isochronous endpoints.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.lab.uevents import Uevents
from tests.lab.usb_device import HostUsbDevice, at_ports, root_hubs, wait_plugged, wait_unplugged
from usbvfiod_core.testing.limits import PATIENCE

CONFIGFS = Path("/sys/kernel/config")
GADGETS = CONFIGFS / "usb_gadget"
CONTROLLERS = 6
SPEEDS = {"full": "full-speed", "high": "high-speed", "super": "super-speed"}
ENGLISH = "0x409"

# A keyboard's report descriptor: eight bytes in (modifiers, reserved, six keys), one byte of lights out; HID 1.11, B.1.
KEYBOARD_REPORT = bytes.fromhex(
    "05 01 09 06 a1 01 05 07 19 e0 29 e7 15 00 25 01 75 01 95 08 81 02 95 01 75 08 81 03 95 05 75 01 05 08 19 01 29 05"
    "91 02 95 01 75 03 91 03 95 06 75 08 15 00 25 65 05 07 19 00 29 65 81 00 c0"
)

ASSOCIATED = (0xEF, 0x02, 0x01)
"""The device's class, subclass and protocol where functions of several interfaces are associated (IAD, USB 2.0 ECN)."""

_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a gadget: its driver's name in configfs and the attributes to write, paths below the function."""

    kind: str
    attributes: Mapping[str, str | bytes] = field(default_factory=dict)


def source_sink(**attributes: int) -> Function:
    """Gadget zero's source and sink (attributes such as pattern, bulk_qlen, bulk_buflen); usbtest drives it."""
    return Function("SourceSink", {name: str(value) for name, value in attributes.items()})


def loopback() -> Function:
    """Gives back what it is sent."""
    return Function("Loopback")


def gadget_zero(speed: str = "high", **attributes: int) -> Gadget:
    """Linux's gadget zero: source and sink in configuration 3, the loop in configuration 2."""
    return Gadget({3: [source_sink(**attributes)], 2: [loopback()]}, identity="0525:a4a0", speed=speed)


def mass_storage(image: Path, *, stall: bool = True, read_only: bool = False) -> Function:
    """A bulk-only drive with a unit for this image; with `stall` it halts endpoints as real ones do."""
    attributes = {"stall": str(int(stall)), "lun.0/ro": str(int(read_only)), "lun.0/removable": "1"}
    return Function("mass_storage", {**attributes, "lun.0/file": str(image)})


def keyboard() -> Function:
    """A boot keyboard; reports are written to the gadget's `node("hid")`."""
    numbers = {"protocol": "1", "subclass": "1", "report_length": "8"}
    return Function("hid", {**numbers, "report_desc": KEYBOARD_REPORT})


def acm() -> Function:
    """A CDC ACM serial port; its other end is the gadget's `node("acm")`."""
    return Function("acm")


def network(kind: str = "ncm") -> Function:
    """A network adapter ("ncm", "ecm", "rndis"); its other end is the interface `network_interface`."""
    return Function(kind)


def printer() -> Function:
    """A printer; what is printed is read from the gadget's `node("printer")`."""
    return Function("printer", {"pnp_string": "MFG:usbvfiod;MDL:lab;CLS:PRINTER;"})


def midi() -> Function:
    """A MIDI port; its other end is the gadget's `node("midi")`, a port of ALSA's."""
    return Function("midi", {"id": "gadget"})


class Gadget:
    """A gadget, made by the constructor, plugged in by `bind`. `remove`, or leaving `with`, takes it apart.

    `functions` are those of its configuration, or a dict of several configurations by their values. `speed` is the
    highest it offers: "full", "high" or "super"; `identity` is "VENDOR:PRODUCT" in hexadecimal, by default one that no
    driver claims (0525:a4a0 is usbtest's).
    """

    def __init__(
        self,
        functions: Sequence[Function] | Mapping[int, Sequence[Function]],
        *,
        identity: str = "1d6b:0104",
        speed: str = "high",
        serial: str = "0123456789",
        product: str = "Lab gadget",
        device_class: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        _load()
        self.device: HostUsbDevice | None = None
        self._controller: int | None = None
        self._reservation: int | None = None
        self._path = GADGETS / f"usbvfiod-{os.getpid()}-{next(_names)}"
        self._path.mkdir()
        self._functions: list[Path] = []
        try:
            self.set_speed(speed)
            self.set_identity(identity)
            for name, number in zip(("bDeviceClass", "bDeviceSubClass", "bDeviceProtocol"), device_class, strict=True):
                self._write(name, str(number))
            for name, text in (("serialnumber", serial), ("manufacturer", "usbvfiod"), ("product", product)):
                self._make(f"strings/{ENGLISH}")
                self._write(f"strings/{ENGLISH}/{name}", text)
            for value, content in (functions if isinstance(functions, Mapping) else {1: functions}).items():
                self._make(f"configs/c.{value}/strings/{ENGLISH}")
                self._write(f"configs/c.{value}/strings/{ENGLISH}/configuration", "all of it")
                for function in content:
                    self._add(value, function)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Gadget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def set_identity(self, identity: str) -> None:
        """Change vendor and product; the next `bind` shows them."""
        vendor, product = identity.split(":")
        self._write("idVendor", f"0x{vendor}")
        self._write("idProduct", f"0x{product}")

    def set_speed(self, speed: str) -> None:
        """Change the highest speed; the next `bind` shows it."""
        self._write("max_speed", SPEEDS[speed])
        self._write("bcdUSB", "0x0320" if speed == "super" else "0x0200")

    def bind(self, timeout: float = PATIENCE, *, elsewhere: bool = False) -> HostUsbDevice:
        """Plug it in and wait until Linux has bound its drivers: at the port it had last, or `elsewhere`."""
        with Uevents() as uevents:
            if self._controller is None or elsewhere:
                before, self._reservation = self._reservation, None
                self._controller, self._reservation = _reserve_controller()
                if before is not None:
                    os.close(before)
            self._write("UDC", f"dummy_udc.{self._controller}")
            hubs = root_hubs(Path(f"/sys/devices/platform/dummy_hcd.{self._controller}"))
            self.device = wait_plugged(uevents, lambda: at_ports(hubs, "1"), f"gadget {self._path.name}", timeout)
        return self.device

    def unbind(self, timeout: float = PATIENCE) -> None:
        """Pull it out and wait until Linux has let it go."""
        with Uevents() as uevents:
            self._write("UDC", "\n")
            if self.device is not None:
                wait_unplugged(uevents, self.device, timeout)
                self.device = None

    def remove(self) -> None:
        """Pull it out if it is plugged in, and take it apart; nothing is left in configfs."""
        if not self._path.exists():
            return
        if (self._path / "UDC").read_text().strip():
            self.unbind()
        if self._reservation is not None:
            os.close(self._reservation)
            self._controller = self._reservation = None
        configurations = list((self._path / "configs").glob("c.*"))
        for link in (self._path / "configs").glob("c.*/*.lab*"):
            link.unlink()
        for function in self._functions:
            function.rmdir()
        strings = [each / "strings" / ENGLISH for each in configurations]
        for directory in (*strings, *configurations, self._path / "strings" / ENGLISH, self._path):
            if directory.exists():
                directory.rmdir()

    @property
    def urbs(self) -> list[str]:
        """What the host has given its controller to do with the gadget and has not come back: a line for each URB."""
        listed = Path(f"/sys/devices/platform/dummy_hcd.{self._controller}/urbs").read_text()
        return [line for line in listed.splitlines() if line.startswith("urb/")]

    def node(self, kind: str) -> Path:
        """The gadget's own end of a function: the node that "acm", "hid", "midi" or "printer" has."""
        function = self._function(kind)
        if kind == "acm":
            return Path(f"/dev/ttyGS{(function / 'port_num').read_text().strip()}")
        if kind == "hid":
            numbers = (function / "dev").read_text().strip()
            return Path("/dev") / Path(f"/sys/dev/char/{numbers}").resolve().name
        if kind == "midi":
            card = (function / "id").read_text().strip()
            return Path(f"/dev/snd/midiC{(Path('/proc/asound') / card).resolve().name.removeprefix('card')}D0")
        return Path("/dev/g_printer0")

    @property
    def network_interface(self) -> str:
        """The interface at the gadget's end of a network adapter; there once it is bound."""
        for kind in ("ncm", "ecm", "rndis"):
            for function in self._functions:
                if function.name.startswith(f"{kind}."):
                    return (function / "ifname").read_text().strip()
        raise LookupError("this gadget has no network adapter")

    def _function(self, kind: str) -> Path:
        return next(function for function in self._functions if function.name.startswith(f"{kind}."))

    def _add(self, configuration: int, function: Function) -> None:
        gadget, number = self._path.name.rpartition("-")[2], len(self._functions)
        path = self._make(f"functions/{function.kind}.lab{os.getpid()}_{gadget}_{number}")
        self._functions.append(path)
        for name, value in function.attributes.items():
            target = path / name
            data = value.encode() if isinstance(value, str) else value
            target.write_bytes(data)
        (self._path / f"configs/c.{configuration}" / path.name).symlink_to(path)

    def _make(self, name: str) -> Path:
        path = self._path / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _write(self, name: str, text: str) -> None:
        (self._path / name).write_text(text)


def _load() -> None:
    """Load the modules and mount configfs, the first time."""
    if not Path("/sys/class/udc/dummy_udc.0").exists():
        subprocess.run(["modprobe", "libcomposite"], check=True)
        subprocess.run(["modprobe", "dummy_hcd", "is_super_speed=1", f"num={CONTROLLERS}"], check=True)
    if not GADGETS.exists():
        subprocess.run(["mount", "-t", "configfs", "config", str(CONFIGFS)], check=True)


def _reserve_controller() -> tuple[int, int]:
    """A controller of dummy_hcd that no gadget has, one that is not plugged in at the moment included, and a lock on it
    that holds as long as this descriptor."""
    for number in range(CONTROLLERS):
        lock = os.open(f"/run/usbvfiod-dummy-udc.{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return number, lock
    raise RuntimeError(f"all {CONTROLLERS} controllers of dummy_hcd are in use")
