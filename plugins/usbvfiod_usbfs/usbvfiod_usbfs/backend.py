"""The backend `usbfs`: finds the devices in sysfs, opens their files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from usbvfiod_core import Backend, CannotHandOver, Device, DeviceError, DeviceInfo, Handover, Loop
from usbvfiod_core.host import hotplug, sysfs, taken
from usbvfiod_core.host.gate import admit, open_problem
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.rights import open_node
from usbvfiod_core.state import unpack

_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


class UsbfsBackend(Backend):
    """`usbfs:/dev/bus/usb/002/003`, `usbfs:2-1.4`; the core resolves VID:PID."""

    name = "usbfs"
    of_host = True
    options = HostOptions

    def list_devices(self) -> list[DeviceInfo]:
        return sysfs.device_infos(self.name, sysfs.scan())

    def open(self, address: str, options: HostOptions, loop: Loop) -> Device:
        device = admit(sysfs.find(address, sysfs.scan()), options)
        try:
            fd = open_node(device.node)
        except OSError as error:
            if error.errno in _GONE and device.now() is device:
                raise DeviceError(f"{device.node} has been unplugged") from None
            raise DeviceError(open_problem(device, error)) from None
        return _open(fd, device, options, loop)

    def take_over(self, address: str, options: HostOptions, loop: Loop, handover: Handover) -> Device:
        from .device import UsbfsState, take_device_over
        from .handle import Handle

        state = unpack(UsbfsState, handover.state)
        fd = handover.descriptors.get("device")
        if fd is None:
            raise CannotHandOver("the descriptor of the device has not come with it")
        device = sysfs.find_fd(fd, sysfs.scan())
        return take_device_over(loop, Handle(fd), device, options, state, handover.descriptors.get("taken"))

    def watch(self, loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        return hotplug.watch(loop, changed)

    def give_back_left_over(self) -> None:
        taken.give_back_left_over()

    def identify_fd(self, fd: int) -> DeviceInfo:
        return sysfs.device_info(self.name, sysfs.find_fd(fd, sysfs.scan()))

    def open_fd(self, fd: int, options: HostOptions, loop: Loop) -> Device:
        try:
            device = admit(sysfs.find_fd(fd, sysfs.scan()), options)
        except BaseException:
            os.close(fd)
            raise
        return _open(fd, device, options, loop)


def _open(fd: int, device: SysfsDevice, options: HostOptions, loop: Loop) -> Device:
    from .device import open_device  # whoever only lists devices, or asks for help, need not wait for it
    from .handle import Handle

    handle = Handle(fd)
    try:
        return open_device(loop, handle, device, options)
    except BaseException:
        handle.close()
        raise
