"""The virtual machine the lab runs in, seen from inside: plugs QEMU's emulated devices in and out.

    with Machine() as machine:
        keyboard = machine.plug("usb-kbd")
        machine.press("a")
        machine.unplug(keyboard)

The way to QEMU's monitor is a virtio serial port. The monitor outlives every test process, so what an earlier one has
left half-read is skipped.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.uevents import Uevents
from tests.lab.usb_device import HostUsbDevice, at_ports, root_hubs, wait_plugged, wait_unplugged
from usbvfiod_core.testing.limits import PATIENCE

PORTS = {"xhci": 8, "ehci": 6}
CONTROLLERS = {"xhci": "0x1b36:0x000d", "ehci": "0x8086:0x24cd"}
"""PCI vendor and device of the two controllers that lab.py gives the machine."""


class MonitorError(Exception):
    """QEMU refused a command; the message is its own."""


class Machine:
    """QEMU's monitor. Devices and drives that are left are removed by `close`."""

    def __init__(self) -> None:
        self._port = os.open(wire("qmp"), os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._received = b""
        self._last_id = f"{os.getpid()}.{time.monotonic_ns()}"
        self._count = 0
        self._hubs = {name: root_hubs(pci_function(ids)) for name, ids in CONTROLLERS.items()}
        self._plugged: dict[HostUsbDevice, tuple[str, str, str]] = {}
        self._drives: dict[HostUsbDevice, str] = {}
        self._drive_count = 0
        os.write(self._port, b"\n")  # ends what an earlier process may have begun
        self.execute("qmp_capabilities", tolerant=True)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unplug everything that this object plugged in."""
        for device in list(self._plugged):
            self.unplug(device)
        os.close(self._port)

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = PATIENCE,
        tolerant: bool = False,
    ) -> Any:
        """Run one command of QEMU's machine protocol; `tolerant` makes a refusal None instead of MonitorError."""
        self._count += 1
        identifier = f"{self._last_id}.{self._count}"
        request = json.dumps({"execute": command, "arguments": arguments or {}, "id": identifier}).encode() + b"\n"
        deadline = time.monotonic() + timeout
        while request:
            try:
                request = request[os.write(self._port, request) :]
            except BlockingIOError:
                self._await(select.POLLOUT, deadline, command)
        while True:
            message = self._message(deadline, command)
            if message.get("id") != identifier:
                continue
            if "error" not in message:
                return message["return"]
            if tolerant:
                return None
            raise MonitorError(f"{command}: {message['error']['desc']}")

    def plug(
        self,
        driver: str,
        *,
        controller: str = "xhci",
        port: int | None = None,
        children: Sequence[tuple[str, dict[str, Any]]] = (),
        timeout: float = PATIENCE,
        **properties: Any,
    ) -> HostUsbDevice:
        """Plug in one of QEMU's USB devices and wait until Linux has bound its drivers.

        `driver` and `properties` are QEMU's (device_add); `controller` is "xhci" or "ehci", `port` 1 to 8 or 6 there.
        `children` are put on the device's own bus: the card of usb-ccid, or the units of usb-uas, before Linux sees it.
        """
        taken = {where for _, name, where in self._plugged.values() if name == controller}
        ports = map(str, range(1, PORTS[controller] + 1))
        where = str(port) if port is not None else next(name for name in ports if name not in taken)
        identifier = f"{controller}-{where}"
        late = driver == "usb-uas"
        if late:
            properties["attached"] = False
        with Uevents() as uevents:
            device = {"driver": driver, "id": identifier, "bus": f"{controller}.0", "port": where}
            self.execute("device_add", device | properties)
            try:
                for number, (child, options) in enumerate(children):
                    words = {"driver": child, "id": f"{identifier}-{number}", "bus": f"{identifier}.0"}
                    self.execute("device_add", words | options)
                if late:
                    attached = {"path": f"/machine/peripheral/{identifier}", "property": "attached", "value": True}
                    self.execute("qom-set", attached)
                hubs = self._hubs[controller]
                found = wait_plugged(uevents, lambda: at_ports(hubs, where), f"{driver} at port {where}", timeout)
            except BaseException:
                self.execute("device_del", {"id": identifier}, tolerant=True)
                raise
        self._plugged[found] = (identifier, controller, where)
        return found

    def unplug(self, device: HostUsbDevice, timeout: float = PATIENCE) -> None:
        """Pull a device out and wait until Linux has let it go; its drive goes with it."""
        identifier, _, _ = self._plugged.pop(device)
        with Uevents() as uevents:
            self.execute("device_del", {"id": identifier})
            wait_unplugged(uevents, device, timeout)
        if device in self._drives:
            self._delete_drive(self._drives.pop(device), time.monotonic() + timeout)

    def press(self, *keys: str) -> None:
        """Press and release keys (QEMU's QKeyCode names) one after the other, as far as a keyboard is plugged in."""
        for key in keys:
            for down in (True, False):
                event = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}}
                self.execute("input-send-event", {"events": [event]})

    def point(self, x: int, y: int) -> None:
        """Move the tablet to a place, both coordinates from 0 to 32767."""
        axes = [{"type": "abs", "data": {"axis": axis, "value": value}} for axis, value in (("x", x), ("y", y))]
        self.execute("input-send-event", {"events": axes})

    def plug_drive(self, image: Path, driver: str = "usb-storage", **where: Any) -> HostUsbDevice:
        """Plug in a drive with this image, a raw file below /exchange: "usb-storage", or "usb-uas" with one unit."""
        self._drive_count += 1
        name = f"drive{os.getpid()}-{self._drive_count}"
        file = {"driver": "file", "filename": str(outside(image))}
        self.execute("blockdev-add", {"node-name": name, "driver": "raw", "file": file})
        try:
            if driver == "usb-storage":
                device = self.plug(driver, drive=name, **where)
            else:
                device = self.plug(driver, children=[("scsi-hd", {"drive": name, "lun": 0})], **where)
        except BaseException:
            self.execute("blockdev-del", {"node-name": name}, tolerant=True)
            raise
        self._drives[device] = name
        return device

    def _delete_drive(self, name: str, deadline: float) -> None:
        """QEMU lets go of a unit of usb-uas some time after the device is gone."""
        while True:
            try:
                self.execute("blockdev-del", {"node-name": name})
                return
            except MonitorError as error:
                if "in use" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _await(self, event: int, deadline: float, command: str) -> None:
        poll = select.poll()
        poll.register(self._port, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(f"QEMU does not answer to {command}")

    def _message(self, deadline: float, command: str) -> dict[str, Any]:
        while True:
            line, separator, rest = self._received.partition(b"\n")
            if separator:
                self._received = rest
                try:
                    message: dict[str, Any] = json.loads(line)
                except ValueError:
                    continue  # the rest of what was sent to an earlier process
                return message
            self._await(select.POLLIN, deadline, command)
            self._received += os.read(self._port, 65536)


def outside(path: Path) -> Path:
    """Where a file below /exchange is on the system that the machine runs on, which is where QEMU looks for files."""
    return Path(os.environ["USBVFIOD_EXCHANGE"]) / path.relative_to("/exchange")


def wire(name: str) -> Path:
    """The node of this end of a connection to QEMU (see lab.py); "wire0" and "wire1" are chardevs for its devices."""
    for port in Path("/sys/class/virtio-ports").glob("*/name"):
        if port.read_text().strip() == f"usbvfiod.{name}":
            return Path("/dev") / port.parent.name
    raise RuntimeError(f"no virtio port for {name}: not in the lab")


def pci_function(identity: str) -> Path:
    """The directory in sysfs of the PCI function of this vendor and device, "0x1b36:0x000d"."""
    for function in Path("/sys/bus/pci/devices").iterdir():
        if f"{(function / 'vendor').read_text().strip()}:{(function / 'device').read_text().strip()}" == identity:
            return function.resolve()
    raise RuntimeError(f"no PCI function {identity}: not in the lab")
