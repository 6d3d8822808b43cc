"""Finding and opening devices, and everything that can be in the way."""

from __future__ import annotations

import errno
import gc
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import usbvfiod_libusb
from fake_libusb import FakeContext, FakeLibusb, UsbError, descriptors
from usbvfiod_libusb import binding, status
from usbvfiod_libusb.backend import LibusbBackend

from usbvfiod_core import Backend, ConfigError, DeviceError, Loop, Speed
from usbvfiod_core.host import sysfs
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.loop import StepLoop

UART = SysfsDevice(
    name="1-2",
    bus=1,
    number=4,
    vendor_id=0x0403,
    product_id=0x6001,
    manufacturer="FTDI",
    product="UART",
    speed=Speed.HIGH,
    configuration=1,
    descriptors=descriptors(),
    drivers={0: "ftdi_sio"},
)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of device nodes; opening the UART's gives an eventfd."""
    monkeypatch.setattr(sysfs, "NODES", tmp_path)
    UART.node.parent.mkdir()
    UART.node.write_bytes(b"")
    really = os.open
    monkeypatch.setattr(os, "open", lambda path, *args: os.eventfd(0) if path == UART.node else really(path, *args))
    return tmp_path


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop(virtual_time=False)
    yield loop
    loop.close()


def open_fds() -> set[str]:
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


class Scripted(FakeLibusb):
    """Its next context does something else first."""

    def __init__(self, change: Callable[[FakeContext], None] = lambda _: None) -> None:
        super().__init__()
        self.change = change

    def open_context(self) -> Any:
        context = super().open_context()
        self.change(self.contexts[-1])
        return context


def test_devices_are_listed_without_the_library() -> None:
    def load() -> binding.Libusb:
        raise AssertionError

    (info,) = LibusbBackend(load, lambda: [UART]).list_devices()
    assert (info.backend, info.address, info.port_path) == ("libusb", "/dev/bus/usb/001/004", "1-2")
    assert (info.name, info.driver, info.speed) == ("FTDI UART", "ftdi_sio", Speed.HIGH)


def test_a_device_is_opened_claimed_and_closed(nodes: Path, loop: StepLoop) -> None:
    libusb = FakeLibusb()
    before = open_fds()
    device = LibusbBackend(lambda: libusb, lambda: [UART]).open("1-2", HostOptions(ResetPolicy.NEVER), loop)
    assert (device.name, device.speed, device.max_streams) == ("FTDI UART", Speed.HIGH, 0)
    context = libusb.contexts[0]
    assert context.handle is not None
    assert context.handle.claimed == {0, 3}
    device.close()
    loop.run_ready()
    assert context.closed
    assert open_fds() == before


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (replace(UART, name="usb1"), "a root hub belongs to"),
        (replace(UART, device_class=9), "a hub is not passed through"),
        (replace(UART, speed=None), "its speed is not known"),
    ],
)
def test_what_is_no_device_for_a_guest_is_refused(
    nodes: Path, device: SysfsDevice, message: str, loop: StepLoop
) -> None:
    with pytest.raises(DeviceError, match=message):
        LibusbBackend(FakeLibusb, lambda: [device]).open(str(device.node), HostOptions(), loop)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "no permission for"),
        (errno.EPERM, "no permission for"),
        (errno.ENOENT, "is gone, or"),
        (errno.ENODEV, "is gone, or"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_node_that_cannot_be_opened(
    nodes: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str, loop: StepLoop
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(DeviceError, match=message):
        LibusbBackend(FakeLibusb, lambda: [UART]).open("1-2", HostOptions(), loop)


def test_bad_words_are_the_users_fault_and_open_nothing(nodes: Path, loop: StepLoop) -> None:
    backend = LibusbBackend(FakeLibusb, lambda: [UART])
    with pytest.raises(ConfigError, match="resett"):
        open_device(backend, "1-2", {"resett": "never"}, loop)
    with pytest.raises(DeviceError, match="no device 1-3"):
        backend.open("1-3", HostOptions(), loop)


def fail(name: str, code: int) -> Callable[[FakeContext], None]:
    """A context whose handle refuses this every time, or that gives no handle at all."""

    def change(context: FakeContext) -> None:
        wrap = context.wrapSysDevice

        def wrapped(fd: int) -> Any:
            if name == "wrap":
                raise UsbError(code)
            handle = wrap(fd)
            assert context.handle is not None
            context.handle.errors[name] = [0] + [code] * 1000
            return handle

        context.wrapSysDevice = wrapped  # type: ignore[method-assign, assignment]

    return change


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("wrap", status.ERROR_NO_DEVICE, "has just gone"),
        ("wrap", status.ERROR_IO, "cannot be opened: libusb error -1"),
        ("claim", status.ERROR_BUSY, "is in use by another program"),
        ("claim", status.ERROR_NO_DEVICE, "has just gone"),
    ],
)
def test_a_device_that_is_not_to_be_had(
    nodes: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, message: str, loop: StepLoop
) -> None:
    monkeypatch.setattr("usbvfiod_libusb.interfaces.TRIES", 3)
    libusb = Scripted(fail(name, code))
    before = open_fds()
    with pytest.raises(DeviceError, match=rf"FTDI UART \(1-2\) {message}"):
        LibusbBackend(lambda: libusb, lambda: [UART]).open("1-2", HostOptions(), loop)
    assert open_fds() == before
    assert libusb.contexts[0].closed
    handle = libusb.contexts[0].handle
    assert handle is None or (handle.closed and ("release", 0) in handle.calls)


def test_who_has_claimed_it_is_named(nodes: Path, monkeypatch: pytest.MonkeyPatch, loop: StepLoop) -> None:
    monkeypatch.setattr("usbvfiod_libusb.interfaces.TRIES", 1)
    monkeypatch.setattr(sysfs, "who_has_node", lambda device: f" (pcscd has {device.name})")
    backend = LibusbBackend(lambda: Scripted(fail("claim", status.ERROR_BUSY)), lambda: [UART])
    with pytest.raises(DeviceError, match=r"by another program \(pcscd has 1-2\); end it"):
        backend.open("1-2", HostOptions(), loop)


def test_a_descriptor_that_was_handed_over(nodes: Path, monkeypatch: pytest.MonkeyPatch, loop: StepLoop) -> None:
    libusb = FakeLibusb()
    backend = LibusbBackend(lambda: libusb, lambda: [UART])
    fd = os.eventfd(0)
    with pytest.raises(DeviceError, match="not a USB device node"):
        backend.identify_fd(fd)
    with pytest.raises(DeviceError, match="not a USB device node"):
        backend.open_fd(fd, HostOptions(), loop)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    monkeypatch.setattr(sysfs, "find_fd", lambda fd, devices: devices[0])
    fd = os.eventfd(0)
    assert backend.identify_fd(fd).port_path == "1-2"
    device = backend.open_fd(fd, HostOptions(), loop)
    device.close()
    loop.run_ready()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_hotplug_events_are_the_cores(monkeypatch: pytest.MonkeyPatch, loop: StepLoop) -> None:
    asked: list[tuple[Loop, object]] = []

    def watch(loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        asked.append((loop, changed))
        return changed

    monkeypatch.setattr("usbvfiod_core.host.hotplug.watch", watch)
    assert LibusbBackend().watch(loop, print) is print
    assert asked == [(loop, print)]


def test_the_hook_registers_it() -> None:
    found: list[Backend] = []
    usbvfiod_libusb.usbvfiod_register_backends(found.append)
    assert [backend.name for backend in found] == ["libusb"]


# -- the library -----------------------------------------------------------------------------------------------------


def test_the_packaged_library_is_loaded_and_looks_for_no_devices() -> None:
    import usb1  # type: ignore[import-untyped]
    from libusb_package import get_library_path

    libusb = binding.load()
    assert libusb.USBError is usb1.USBError
    context = libusb.open_context()
    fds = context.getPollFDList()
    assert len(fds) >= 1, "its own events at least"
    context.handleEventsTimeout(0)
    context.close()
    packaged = get_library_path()
    assert packaged is not None
    assert str(packaged.resolve()) in Path("/proc/self/maps").read_text()


def module(**members: object) -> types.ModuleType:
    made = types.ModuleType("module")
    made.__dict__.update(members)
    return made


@pytest.mark.parametrize("packaged", [None, "/nonexistent/libusb-1.0.so", "missing"])
def test_without_the_packaged_library_the_systems_is_used(
    monkeypatch: pytest.MonkeyPatch, packaged: str | None
) -> None:
    loads: list[object] = []

    def load_library(library: object = None) -> bool:
        loads.append(library)
        return True

    monkeypatch.setitem(sys.modules, "usb1", module(loadLibrary=load_library, USBError=UsbError))
    package = None if packaged == "missing" else module(get_library_path=lambda: packaged)
    monkeypatch.setitem(sys.modules, "libusb_package", package)
    binding.load()
    assert loads == [None]


def test_no_library_at_all_is_said_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(library: object = None) -> bool:
        raise OSError(errno.ENOENT, "cannot find a suitable libusb-1.0")

    monkeypatch.setitem(sys.modules, "usb1", module(loadLibrary=none, USBError=UsbError))
    monkeypatch.setitem(sys.modules, "libusb_package", None)
    with pytest.raises(DeviceError, match=r"; `\S+ -m pip install libusb-package` brings it"):
        binding.load()
    monkeypatch.setitem(sys.modules, "usb1", None)
    with pytest.raises(DeviceError, match=r"python-libusb1 cannot be used.*; `\S+ -m pip install libusb1` brings it"):
        binding.load()


def test_an_old_library_is_used_with_its_device_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []

    class Context:
        def __init__(self, **options: object) -> None:
            self.options = options

        def open(self) -> Context:
            made.append(self.options)
            if self.options:
                raise ValueError("libusb_init_context is not available")
            return self

    monkeypatch.setitem(sys.modules, "usb1", module(loadLibrary=lambda *_: True, USBError=UsbError, USBContext=Context))
    libusb = binding.load()
    libusb.open_context()
    libusb.open_context()
    assert made == [{"with_device_discovery": False}, {}, {}]


def test_no_configuration_is_parsed_when_a_device_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """python-libusb1 has libusb parse them all, and one that it cannot parse costs it the device."""
    native = module(libusb_get_config_descriptor=lambda *arguments: status.ERROR_IO)
    results: list[int] = []

    class Context:
        def __init__(self, **options: object) -> None: ...

        def open(self) -> Context:
            return self

        def wrapSysDevice(self, fd: int) -> int:
            results.append(native.libusb_get_config_descriptor(None, 0, None))
            if fd < 0:
                raise UsbError(status.ERROR_ACCESS)
            return fd

    made = module(loadLibrary=lambda *_: True, USBError=UsbError, USBContext=Context, libusb1=native)
    monkeypatch.setitem(sys.modules, "usb1", made)
    context = binding.load().open_context()
    assert context.wrapSysDevice(7) == 7  # type: ignore[comparison-overlap]
    with pytest.raises(UsbError):
        context.wrapSysDevice(-1)
    assert results == [status.ERROR_NOT_FOUND] * 2
    assert native.libusb_get_config_descriptor() == status.ERROR_IO, "others still have it"


def test_the_binding_takes_a_configuration_that_is_not_found_for_none() -> None:
    import usb1

    assert status.ERROR_NOT_FOUND == usb1.ERROR_NOT_FOUND
    assert callable(usb1.libusb1.libusb_get_config_descriptor)
