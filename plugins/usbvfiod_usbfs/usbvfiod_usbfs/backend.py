"""The backend `usbfs`: finds the devices in sysfs, opens their files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from typing import Final

from usbvfiod_core import Backend, Device, DeviceError, DeviceInfo, Loop
from usbvfiod_core.host import hotplug, sysfs
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.sysfs import SysfsDevice

USB_DEVICE_MAJOR: Final = 189
"""Major number of USB device files (Linux's Documentation/admin-guide/devices.txt)."""

_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


class UsbfsBackend(Backend):
    """`usbfs:/dev/bus/usb/002/003`, `usbfs:2-1.4`; the core resolves VID:PID."""

    name = "usbfs"
    of_host = True

    def list_devices(self) -> list[DeviceInfo]:
        return [sysfs.device_info(self.name, device) for device in sysfs.scan()]

    def open(self, address: str, options: Mapping[str, str], loop: Loop) -> Device:
        parsed = HostOptions.parse(options)
        device = _usable(sysfs.find(address, sysfs.scan()).now())
        try:
            fd = os.open(device.node, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _GONE:
                raise DeviceError(f"{device.node} has been unplugged") from None
            reason = sysfs.access_problem(device) if isinstance(error, PermissionError) else None
            raise DeviceError(reason or f"{device.node}: {error.strerror}") from None
        return _open(fd, device, parsed, loop)

    def watch(self, loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        return hotplug.watch(loop, changed)

    def identify_fd(self, fd: int) -> DeviceInfo:
        return sysfs.device_info(self.name, _of_fd(fd))

    def open_fd(self, fd: int, options: Mapping[str, str], loop: Loop) -> Device:
        try:
            parsed = HostOptions.parse(options)
            device = _usable(_of_fd(fd))
        except BaseException:
            os.close(fd)
            raise
        return _open(fd, device, parsed, loop)


def _open(fd: int, device: SysfsDevice, options: HostOptions, loop: Loop) -> Device:
    from .device import open_device  # whoever only lists devices, or asks for help, need not wait for it
    from .handle import Handle

    handle = Handle(fd)
    try:
        return open_device(loop, handle, device, options)
    except BaseException:
        handle.close()
        raise


def _usable(device: SysfsDevice) -> SysfsDevice:
    reason = sysfs.refusal(device)
    if reason is not None:
        raise DeviceError(reason)
    return device


def _of_fd(fd: int) -> SysfsDevice:
    """The device whose file an open descriptor is. Raises DeviceError."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise DeviceError(f"the file descriptor cannot be used: {error.strerror}") from None
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != USB_DEVICE_MAJOR:
        raise DeviceError("the file descriptor is not that of a USB device file")
    minor = os.minor(status.st_rdev)
    bus, number = minor // 128 + 1, minor % 128 + 1
    for device in sysfs.scan():
        if (device.bus, device.number) == (bus, number):
            return device.now()
    raise DeviceError(f"the device of the file descriptor, {bus:03d}/{number:03d}, has been unplugged")
