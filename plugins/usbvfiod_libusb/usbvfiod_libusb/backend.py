"""The backend `libusb`: which devices there are, and opening one.

Devices are listed from sysfs and watched by the core's hotplug events, not by libusb: that opens nothing, needs no
right, tells of drivers and permissions, and is the same for every backend of a Linux host.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from usbvfiod_core import Backend, CannotHandOver, Device, DeviceError, DeviceInfo, Handover, Loop
from usbvfiod_core.host import hotplug, sysfs, taken
from usbvfiod_core.host.gate import admit, open_problem
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.ownership import Ownership
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.host.taken import Taken
from usbvfiod_core.rights import open_node
from usbvfiod_core.state import unpack

from . import binding
from .binding import Libusb, WrappedNode
from .status import ERROR_BUSY, ERROR_IO, ERROR_NO_DEVICE, error_code

if TYPE_CHECKING:
    from .device import LibusbDevice

log = logging.getLogger(__name__)


class LibusbBackend(Backend):
    """`load` gives the library; `scan` the devices of the host."""

    name = "libusb"
    of_host = True
    options = HostOptions

    def __init__(
        self, load: Callable[[], Libusb] = binding.load, scan: Callable[[], list[SysfsDevice]] = sysfs.scan
    ) -> None:
        self._load = load
        self._scan = scan
        self._libusb: Libusb | None = None
        self._lock = Lock()

    def list_devices(self) -> list[DeviceInfo]:
        return sysfs.device_infos(self.name, self._scan())

    def watch(self, loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        return hotplug.watch(loop, changed)

    def open(self, address: str, options: HostOptions, loop: Loop) -> Device:
        device = admit(sysfs.find(address, self._scan()), options)
        try:
            fd = open_node(device.node)
        except OSError as error:
            raise DeviceError(_open_problem(device, error)) from error
        return self._open(fd, device, options, loop)

    def give_back_left_over(self) -> None:
        taken.give_back_left_over()

    def identify_fd(self, fd: int) -> DeviceInfo:
        return sysfs.device_info(self.name, sysfs.find_fd(fd, self._scan()))

    def open_fd(self, fd: int, options: HostOptions, loop: Loop) -> Device:
        try:
            device = admit(sysfs.find_fd(fd, self._scan()), options)
        except BaseException:
            os.close(fd)
            raise
        return self._open(fd, device, options, loop)

    def take_over(self, address: str, options: HostOptions, loop: Loop, handover: Handover) -> Device:
        from .state import LibusbState

        state, fds = unpack(LibusbState, handover.state), handover.descriptors
        if "device" not in fds or (state.taken.path is not None and "taken" not in fds):
            raise CannotHandOver("a descriptor has not come with it")
        fd = fds["device"]
        device = sysfs.find_fd(fd, self._scan())
        if device.speed is None:
            raise CannotHandOver("its speed is not known to this host")
        libusb = self._library()
        try:
            node = WrappedNode.wrap(libusb, fd)
            made = _made(node, loop, device, options, Taken.take_over(device, state.taken, fds.get("taken")))
            made.take_state(state)
        except libusb.USBError as error:
            raise DeviceError(_libusb_problem(device, error)) from error
        return made

    def _open(self, fd: int, device: SysfsDevice, options: HostOptions, loop: Loop) -> Device:
        """The device whose node is open as `fd`, which is closed if this fails. Raises DeviceError."""
        libusb = node = None
        taken = Taken(device, notes=options.reattach)
        try:
            libusb = self._library()
            node = WrappedNode.wrap(libusb, fd)
            opened = _made(node, loop, device, options, taken)
            opened.take()
            return opened
        except BaseException as error:
            if node is not None:
                node.unwrap()
            taken.not_taken()
            os.close(fd)
            if libusb is not None and isinstance(error, libusb.USBError):
                raise DeviceError(_libusb_problem(device, error)) from error
            raise

    def _library(self) -> Libusb:
        with self._lock:
            if self._libusb is None:
                self._libusb = self._load()
            return self._libusb


def _made(node: WrappedNode, loop: Loop, device: SysfsDevice, options: HostOptions, taken: Taken) -> LibusbDevice:
    """The device behind a wrapped node."""
    from .device import LibusbDevice  # whoever only lists devices, or asks for help, need not wait for it

    assert device.speed is not None
    description = device.description(device.speed)  # and no streams: the binding has none
    return LibusbDevice(node, loop, description, options, Ownership(device, node.fd), taken)


def _open_problem(device: SysfsDevice, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{device.label} ({device.name}) is gone, or {device.node} is not to be seen from here"
    return open_problem(device, error)


def _libusb_problem(device: SysfsDevice, error: Exception) -> str:
    """What went wrong with a device that was there a moment ago."""
    code = error_code(error)
    if code == ERROR_NO_DEVICE:
        return f"{device.label} ({device.name}) has just gone"
    if code == ERROR_BUSY:
        who = sysfs.who_has_node(device)
        return f"{device.label} ({device.name}) is in use by another program{who}; end it, or its use of the device"
    if code == ERROR_IO:
        return (
            f"{device.label} ({device.name}) cannot be opened: {error}; its descriptors may be malformed, and "
            "the backend usbfs has the kernel read them"
        )
    return f"{device.label} ({device.name}) cannot be opened: {error}"
