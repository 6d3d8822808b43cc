"""Finding and opening, and the words for what goes wrong. Opening for real is tried in tests/lab."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_usbfs import ONE_INTERFACE, sysfs_device
from usbvfiod_usbfs import usbvfiod_register_backends
from usbvfiod_usbfs.backend import UsbfsBackend

from usbvfiod_core import Backend, ConfigError, DeviceError
from usbvfiod_core.host import sysfs
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.loop import StepLoop


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Let sysfs list one device, whose node is a file, and tell where that is."""

    def listed(**more: object) -> Path:
        device = sysfs_device(ONE_INTERFACE, **more)  # type: ignore[arg-type]
        monkeypatch.setattr(sysfs, "NODES", tmp_path)
        monkeypatch.setattr(sysfs, "scan", lambda: [device])
        return device.node

    return listed


def test_the_hook_registers_it() -> None:
    backends: list[Backend] = []
    usbvfiod_register_backends(backends.append)
    assert [each.name for each in backends] == ["usbfs"]


def test_a_device_without_a_node_was_unplugged(scan: Callable[..., Path], loop: StepLoop) -> None:
    node = scan()
    with pytest.raises(DeviceError, match="unplugged"):
        UsbfsBackend().open(str(node), HostOptions(), loop)
    with pytest.raises(DeviceError, match="unplugged"):
        UsbfsBackend().open("2-1", HostOptions(), loop)


def test_a_device_that_is_there_without_a_node_was_not_unplugged(
    scan: Callable[..., Path], loop: StepLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that has /sys and no /dev/bus/usb."""
    node = scan()
    monkeypatch.setattr(sysfs.SysfsDevice, "now", lambda device: replace(device))
    with pytest.raises(DeviceError) as caught:
        UsbfsBackend().open(str(node), HostOptions(), loop)
    assert str(caught.value).startswith(f"{node}: No such file or directory; this would allow it: for a container")


@pytest.mark.parametrize(("code", "helps"), [(errno.EPERM, True), (errno.EACCES, False), (errno.ENODEV, False)])
def test_a_container_that_keeps_a_node_from_its_processes(
    scan: Callable[..., Path], loop: StepLoop, monkeypatch: pytest.MonkeyPatch, code: int, helps: bool
) -> None:
    """`docker run -v /dev/bus/usb:/dev/bus/usb`, or `--device` and the device was replugged. EACCES is AppArmor's."""
    node = scan()
    node.parent.mkdir()
    node.touch()
    monkeypatch.setattr(sysfs.SysfsDevice, "now", lambda device: replace(device))

    def kept(path: Path, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", kept)
    with pytest.raises(DeviceError) as caught:
        UsbfsBackend().open(str(node), HostOptions(), loop)
    told = str(caught.value)
    assert told.startswith(f"{node}: {os.strerror(code)}")
    assert ("--device-cgroup-rule='c 189:* rw'" in told and "DeviceAllow=char-usb_device rw" in told) is helps


def test_a_node_that_may_not_be_opened_gets_its_udev_rule(
    scan: Callable[..., Path], loop: StepLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = scan()
    node.parent.mkdir()
    node.touch(mode=0o600)

    def denied(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DeviceError, match=r'ATTR\{idVendor\}=="1209"'):
        UsbfsBackend().open(str(node), HostOptions(), loop)


def test_a_file_that_is_no_device_is_closed_again(scan: Callable[..., Path], loop: StepLoop) -> None:
    node = scan()
    node.parent.mkdir()
    node.touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError, match="interface 0 cannot be claimed"):
        UsbfsBackend().open(str(node), HostOptions(), loop)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("more", "words"), [({"name": "usb2"}, "root hub"), ({"device_class": 9}, "hub"), ({"speed": None}, "speed")]
)
def test_hubs_are_refused(scan: Callable[..., Path], loop: StepLoop, more: dict[str, object], words: str) -> None:
    node = scan(**more)
    with pytest.raises(DeviceError, match=words):
        UsbfsBackend().open(str(node), HostOptions(), loop)


def test_options_are_checked_first(loop: StepLoop) -> None:
    with pytest.raises(ConfigError, match="reset is one of"):
        open_device(UsbfsBackend(), "2-1", {"reset": "perhaps"}, loop)


def test_descriptors_of_other_files_are_refused() -> None:
    for path in (os.devnull, __file__):
        with open(path) as file, pytest.raises(DeviceError, match="is not a USB device node"):
            UsbfsBackend().identify_fd(file.fileno())
    with pytest.raises(DeviceError, match="Bad file descriptor"):
        UsbfsBackend().identify_fd(1 << 20)


def test_a_descriptor_belongs_to_the_backend_even_if_it_is_refused(loop: StepLoop) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(DeviceError):
        UsbfsBackend().open_fd(fd, HostOptions(), loop)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
