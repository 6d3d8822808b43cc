"""A host that is a directory: what sysfs shows of one device, and what Linux does to it through its node."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path

from usbvfiod_core.host import sysfs
from usbvfiod_core.host.sysfs import SysfsDevice


class FakeHost:
    """`Hands` of a device with `settings`: for each configuration the driver that Linux finds for each interface, empty
    for none. `state` is what sysfs shows, `calls` what was done."""

    def __init__(self, root: Path, settings: Mapping[int, Mapping[int, str]], name: str = "1-2") -> None:
        self.root = root
        self.settings = settings
        self.directory = root / name
        self.calls: list[tuple[str, int | None]] = []
        self.refuses = 0
        """The negative errno with which configurations are refused."""
        self.directory.mkdir(parents=True)
        texts = {"busnum": "1", "devnum": "4", "idVendor": "1209", "idProduct": "0001", "speed": "480"}
        for key, value in {**texts, "bDeviceClass": "00", "bConfigurationValue": ""}.items():
            (self.directory / key).write_text(f"{value}\n")
        (self.directory / "descriptors").write_bytes(b"\x12\x01")

    def show(self, configuration: int | None, drivers: Mapping[int, str] | None = None) -> FakeHost:
        """Let sysfs show this configuration, with these drivers or those that Linux finds."""
        for interface in self.directory.glob(f"{self.directory.name}:*"):
            shutil.rmtree(interface)
        (self.directory / "bConfigurationValue").write_text("" if configuration is None else f"{configuration}\n")
        if configuration is not None:
            for number, found in self.settings[configuration].items():
                interface = self._interface(number, configuration)
                interface.mkdir()
                self.bind(number, found if drivers is None else drivers.get(number, ""))
        return self

    def bind(self, number: int, driver: str) -> None:
        """Give an interface a driver, or none."""
        link = self._interface(number, self.configuration) / "driver"
        link.unlink(missing_ok=True)
        if driver:
            target = self.root / "drivers" / driver
            target.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)

    @property
    def configuration(self) -> int | None:
        return sysfs.present_configuration(self.directory)

    @property
    def state(self) -> tuple[int | None, dict[int, str]]:
        return self.configuration, sysfs.interface_drivers(self.directory)

    def device(self) -> SysfsDevice:
        """What sysfs shows."""
        device = sysfs.read(self.directory)
        assert device is not None
        return device

    # -- as `Hands` --------------------------------------------------------------------------------------------------

    def configure(self, value: int | None) -> int:
        self.calls.append(("configure", value))
        if not self.refuses:
            self.show(value)
        return self.refuses

    def connect(self, interface: int) -> int:
        self.calls.append(("connect", interface))
        configuration, drivers = self.state
        if configuration is None:
            return -errno.EHOSTUNREACH
        if interface in drivers:
            return -errno.EBUSY
        self.bind(interface, self.settings[configuration].get(interface, ""))
        return 0

    def disconnect(self, interface: int) -> int:
        self.calls.append(("disconnect", interface))
        self.bind(interface, "")
        return 0

    # -- own -----------------------------------------------------------------------------------------------------------

    def _interface(self, number: int, configuration: int | None) -> Path:
        return self.directory / f"{self.directory.name}:{configuration}.{number}"
