"""The gates a device passes before it can be plugged in, and whose fault it is when it does not."""

from __future__ import annotations

import logging
import os

from ..errors import ConfigError, DeviceError, PluginError, UsbvfiodError
from ..hooks.registry import Registry
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from .config import DeviceSpec

log = logging.getLogger(__name__)


class AttachmentRefused(DeviceError):
    """A plugin does not admit the device."""


class DeviceAbsent(DeviceError):
    """The device went while it was being opened."""


def open_device(
    registry: Registry, backend: Backend, spec: DeviceSpec, info: DeviceInfo, fd: int | None, loop: Loop
) -> Device:
    """Ask the plugins whether `info` may be used, and open it, behind `fd` if one is given. In a thread; may block.

    Raises AttachmentRefused, DeviceAbsent, or whatever the backend raises.
    """
    refusal = registry.refusal(info, spec.settings)
    if refusal is not None:
        if fd is not None:
            os.close(fd)
        raise AttachmentRefused(refusal)
    if fd is not None:
        return backend.open_fd(fd, spec.options, loop)
    try:
        return backend.open(info.address, spec.options, loop)
    except DeviceError as error:
        # A device that sits in no socket is one that cannot be pulled out of it.
        if info.port_path and all(each.address != info.address for each in backend.list_devices()):
            raise DeviceAbsent(str(error)) from error
        raise


def explained(spec: DeviceSpec, error: BaseException) -> UsbvfiodError:
    """`error` with the device it is about in front."""
    for kind in (AttachmentRefused, DeviceError, ConfigError, PluginError):
        if isinstance(error, kind):
            return kind(f"device {spec.text}: {error}")
    log.debug("device %s", spec.text, exc_info=error)
    return DeviceError(f"device {spec.text}: backend {spec.backend} failed: {type(error).__name__}: {error}")
