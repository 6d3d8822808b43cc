"""A device of the lab's host, opened by a backend in this process, on a bench: quicker to be had than a server."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core import Backend
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop

CLASSES = {"usbfs": "UsbfsBackend", "libusb": "LibusbBackend"}


def backend_of(name: str) -> Backend:
    """The backend of this name."""
    backend: Backend = getattr(import_module(f"usbvfiod_{name}.backend"), CLASSES[name])()
    return backend


def open_bench(name: str, device: HostUsbDevice | Path, **options: str) -> DeviceBench:
    """Open a device, or raise DeviceError."""
    loop = StepLoop(virtual_time=False)
    node = device if isinstance(device, Path) else device.node
    try:
        opened = open_device(backend_of(name), str(node), options, loop)
    except BaseException:
        loop.close()
        raise
    return DeviceBench(opened, loop, submit_limit=1.0)
