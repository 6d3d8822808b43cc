"""What a device is given back like: as it was found, or not at all."""

from __future__ import annotations

import ctypes
import errno
import json
import shutil
from pathlib import Path

import pytest
from fake_usbfs import FakeKernel, sysfs_device
from usbvfiod_usbfs import ioctl as usbfs
from usbvfiod_usbfs.device import open_device

from usbvfiod_core import DeviceError
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus

ONE = Configuration(tuple(Interface(each, 255) for each in (0, 1, 2, 70)))
TWO = Configuration((Interface(0, 255),), value=2)
UNCONFIGURED = 0xFFFFFFFF


class Host:
    """A device in sysfs, and the server that takes it."""

    def __init__(self, kernel: FakeKernel, directory: Path) -> None:
        self.kernel = kernel
        self.directory = directory / "2-1"
        self.directory.mkdir()
        self.file = directory / "taken-2-1.json"

    def open(self, configuration: int | None, drivers: dict[int, str], *, reattach: bool = True) -> DeviceBench:
        self.is_set(configuration)
        device = sysfs_device(ONE, TWO, configuration=configuration, drivers=drivers, directory=self.directory)
        loop = StepLoop()
        opened = open_device(loop, self.kernel.handle(self.ioctl), device, HostOptions(reattach=reattach))
        return DeviceBench(opened, loop)

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        if request == usbfs.SETCONFIGURATION:
            (value,) = usbfs.UINT.unpack(ctypes.string_at(argument, usbfs.UINT.size))
            self.is_set(None if value == UNCONFIGURED else value)
        return self.kernel.ioctl(fd, request, argument)

    def is_set(self, configuration: int | None) -> None:
        """sysfs shows a configuration, of which everything is claimed."""
        for interface in self.directory.glob("2-1:*"):
            shutil.rmtree(interface)
        (self.directory / "bConfigurationValue").write_text("" if configuration is None else str(configuration))
        for each in () if configuration is None else (ONE, TWO)[configuration - 1].interfaces:
            interface = self.directory / f"2-1:{configuration}.{each.number}"
            interface.mkdir()
            (interface / "bInterfaceNumber").write_text(f"{each.number:02x}")
            (interface / "driver").symlink_to("../../drivers/usbfs")

    def configure(self, bench: DeviceBench, value: int) -> None:
        assert bench.control(SetupPacket(0, 9, value, 0, 0)).status is TransferStatus.COMPLETED

    def given_back(self, bench: DeviceBench) -> list[tuple[str, tuple[int, ...]]]:
        """What is done at the end, but for releasing."""
        self.kernel.calls.clear()
        bench.close()
        assert not self.file.exists()
        return [call for call in self.kernel.calls if call[0] != "RELEASEINTERFACE"]


@pytest.fixture
def host(kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return Host(kernel, tmp_path)


def test_only_interfaces_that_had_a_driver_get_one(host: Host) -> None:
    bench = host.open(1, {0: "usbhid", 70: "cdc_acm"})
    assert json.loads(host.file.read_text())["drivers"] == {"0": "usbhid", "70": "cdc_acm"}
    assert host.given_back(bench) == [("CONNECT", (0,)), ("CONNECT", (70,))]


def test_the_configuration_is_set_again(host: Host) -> None:
    bench = host.open(2, {0: "usbhid"})
    host.configure(bench, 1)
    assert host.given_back(bench) == [("SETCONFIGURATION", (2,)), ("CONNECT", (0,))]


def test_an_unconfigured_device_is_unconfigured_again(host: Host) -> None:
    bench = host.open(None, {})
    host.configure(bench, 1)
    assert host.given_back(bench) == [("SETCONFIGURATION", (UNCONFIGURED,))]


def test_without_reattach_everything_stays(host: Host) -> None:
    bench = host.open(2, {0: "usbhid"}, reattach=False)
    host.configure(bench, 1)
    assert host.given_back(bench) == []


def test_a_device_that_could_not_be_taken_is_as_it_was(host: Host) -> None:
    host.kernel.answers["DISCONNECT_CLAIM"].extend([0, 0, -errno.EBUSY])
    with pytest.raises(DeviceError, match="in use by another program"):
        host.open(1, {1: "usbhid", 2: "usbfs"})
    assert host.kernel.calls[3:] == [("RELEASEINTERFACE", (0,)), ("RELEASEINTERFACE", (1,)), ("CONNECT", (1,))]
    assert not host.file.exists()
