"""A plugin for test servers: the host's USB ports are the files in a directory, which $SHELF names.

A file's name is a port path; in it are lines `product=...`, `id=VID:PID`, `serial=...`, `driver=...`, `in_use=...`, and
`note.VM=...` for what server VM may not use. A file that is removed is a device that is unplugged. One server at a time
has it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from usbvfiod_core import Backend, Device, DeviceError, DeviceInfo, Loop, NoOptions, Speed, hookimpl
from usbvfiod_core.virtual.loopback import Loopback

usbvfiod_requires = ">=1,<2"

PACE = 0.05


class Shelved(Loopback):
    """Gadget zero, while its file is there."""

    def __init__(self, loop: Loop, path: Path, product: str) -> None:
        self.product, self.manufacturer = product, ""
        super().__init__(loop, speed=Speed.HIGH)
        self.path = path
        self._file = path.open("r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise DeviceError(f"{path.name} is another server's") from None

    def closed(self) -> None:
        super().closed()
        self._file.close()


class Shelf(Backend):
    """`shelf:PORT`."""

    name = "shelf"

    def __init__(self) -> None:
        self.directory = Path(os.environ["SHELF"])
        self.server = os.environ.get("SHELF_SERVER", "")
        self.open_devices: list[Shelved] = []

    def list_devices(self) -> list[DeviceInfo]:
        return [self.info(path) for path in sorted(self.directory.iterdir())]

    def info(self, path: Path) -> DeviceInfo:
        facts = dict(line.split("=", 1) for line in path.read_text().splitlines())
        vendor, _, product = facts.get("id", "0525:a4a0").partition(":")
        return DeviceInfo(
            self.name,
            path.name,
            int(vendor, 16),
            int(product, 16),
            facts.get("product", "Gadget Zero"),
            serial=facts.get("serial", ""),
            speed=Speed.HIGH,
            port_path=path.name,
            driver=facts.get("driver", ""),
            note=facts.get(f"note.{self.server}", ""),
            in_use=facts.get("in_use", ""),
        )

    def open(self, address: str, options: NoOptions, loop: Loop) -> Device:
        path = self.directory / address
        if not path.exists():
            raise DeviceError(f"{address} is not there")
        wait_until_gone(os.environ.get("SHELF_SLOW"))
        device = Shelved(loop, path, self.info(path).name)
        self.open_devices.append(device)
        return device

    def watch(self, loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        seen = ""

        def look() -> None:
            nonlocal seen
            for device in [each for each in self.open_devices if not each.path.exists()]:
                self.open_devices.remove(device)
                if device.events is not None:
                    device.events.disconnected()
            now = repr(self.list_devices())
            if now != seen:
                seen = now
                changed()
            loop.call_later(PACE, look)

        loop.call_soon(look)
        return lambda: None


def wait_until_gone(path: str | None) -> None:
    """Opening takes as long as the file that $SHELF_SLOW names is there."""
    while path is not None and os.path.exists(path):
        time.sleep(PACE)


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(Shelf())


@hookimpl
def usbvfiod_admit_device(info: DeviceInfo) -> str | None:
    refused = os.environ.get("SHELF_REFUSES", "").split(",")
    return (
        f"{os.environ.get('SHELF_SERVER')} is not to have it" if info.port_path and info.port_path in refused else None
    )
