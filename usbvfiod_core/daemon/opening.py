"""The gates a device passes before it is plugged in, the port it goes into, and whose fault it is if it does not."""

from __future__ import annotations

import logging
import os

from ..errors import ConfigError, DeviceError, DeviceWithheld, PluginError, UsbvfiodError
from ..files import granted
from ..hooks.options import backend_options
from ..hooks.registry import Registry
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from .config import DeviceSpec
from .guest_ports import GuestPorts, wrong_kind
from .intents import Attachment

log = logging.getLogger(__name__)


class AttachmentRefused(DeviceError):
    """A plugin does not admit the device."""


class DeviceAbsent(DeviceError):
    """The device went while it was being opened."""


class SandboxClosed(AttachmentRefused):
    """The sandbox does not let the server open what the device needs."""


def open_device(
    registry: Registry, backend: Backend, spec: DeviceSpec, info: DeviceInfo, fd: int | None, loop: Loop
) -> Device:
    """Ask the plugins whether `info` may be used, and open it, behind `fd` if one is given. In a thread; may block.

    Raises AttachmentRefused, DeviceAbsent, or whatever the backend raises, of which DeviceWithheld is no failure.
    """
    refusal = registry.refusal(info, spec.settings)
    if refusal is not None:
        if fd is not None:
            os.close(fd)
        raise AttachmentRefused(refusal)
    try:
        options = backend_options(backend, info.address, spec.options)
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise
    if fd is not None:
        return backend.open_fd(fd, options, loop)
    closed = registry.sandbox_refusal(spec, None)
    if closed:
        raise SandboxClosed(closed)
    try:
        with granted(spec.grant):
            return backend.open(info.address, options, loop)
    except DeviceWithheld:
        raise
    except (DeviceError, ConfigError) as error:
        closed = registry.sandbox_refusal(spec, error)
        if closed:
            raise SandboxClosed(closed) from error
        # A device that sits in no socket is one that cannot be pulled out of it.
        gone = isinstance(error, DeviceError) and info.port_path
        if gone and all(each.address != info.address for each in backend.list_devices()):
            raise DeviceAbsent(str(error)) from error
        raise


def choose_port(ports: GuestPorts, attachment: Attachment, device: Device) -> int:
    """The port of the controller that an attachment's device goes into. Raises ConfigError."""
    is_usb3, spec = device.speed.is_usb3, attachment.spec
    owned = ports.owned(attachment)
    if is_usb3 not in owned and owned and attachment.last is None and not spec.follow_port:
        raise ConfigError(wrong_kind(ports, device.name, is_usb3, owned[not is_usb3]))
    port_id = ports.port_for(attachment, is_usb3)
    if spec.follow_port:
        # What sits in the socket next may need the other kind; then there may be none left.
        try:
            ports.port_for(attachment, not is_usb3)
        except ConfigError as error:
            log.warning("%s follows its port, but %s", attachment, error)
    return port_id


def explained(spec: DeviceSpec, error: BaseException) -> UsbvfiodError:
    """`error` with the device it is about in front."""
    for kind in (AttachmentRefused, DeviceError, ConfigError, PluginError):
        if isinstance(error, kind):
            return kind(f"device {spec.text}: {error}")
    log.debug("device %s", spec.text, exc_info=error)
    return DeviceError(f"device {spec.text}: backend {spec.backend} failed: {type(error).__name__}: {error}")
