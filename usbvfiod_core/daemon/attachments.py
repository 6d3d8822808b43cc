"""Attachments: what should be plugged into the controller, and what became of it.

Attaching goes through four gates, and each failure is one error for whoever asked: find the device among those its
backend lists, ask the plugins whether it may be used, open it, let the plugins wrap it. What may block of this runs in
a thread. Then it is plugged into a port and stays there, whatever the client does, until it is lost or detached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Protocol

from ..errors import ConfigError, DeviceError, PluginError, UsbvfiodError
from ..hooks.registry import Registry
from ..hooks.settings import Settings
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from .config import DeviceSpec, check_backend
from .matching import find

log = logging.getLogger(__name__)

OPEN_NOTICE = 2.0
"""Seconds after which a device that is still being opened is mentioned in the log."""


class RootHub(Protocol):
    """What attachments need of the controller."""

    def plug(self, device: Device, port_id: int | None = None) -> int: ...
    def unplug(self, port_id: int) -> None: ...


class AttachmentRefused(DeviceError):
    """A plugin does not admit the device."""


class State(Enum):
    """Where an attachment is in its life."""

    OPENING = "opening"
    PLUGGED = "plugged"
    LEAVING = "leaving"
    """Unplugged; its transfers are on their way back."""
    GONE = "gone"


class Attachment:
    """One device in one port. `port_id` is 0 until it is plugged."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self.info = DeviceInfo(spec.backend, spec.address, 0, 0, spec.address)
        self.state = State.OPENING
        self.port_id = 0
        self.name = spec.text
        self.device: Device | None = None


class Attachments:
    """The attachments of one controller, which calls `unplugged`. All methods are called on the loop's thread."""

    def __init__(self, loop: Loop, hub: RootHub, registry: Registry, backends: Mapping[str, Backend]) -> None:
        self._loop = loop
        self._hub = hub
        self._registry = registry
        self._backends = backends
        self._attachments: list[Attachment] = []
        self._closing = False
        self._when_empty: Callable[[], object] | None = None

    @property
    def present(self) -> tuple[Attachment, ...]:
        """The attachments that are not gone, in the order they were asked for."""
        return tuple(self._attachments)

    def attach(self, spec: DeviceSpec, done: Callable[[Attachment | UsbvfiodError], object]) -> None:
        """Open and plug in what `spec` says; give `done` the attachment, or the error that prevented it, later."""
        try:
            backend = self._backends[check_backend(spec.backend, self._backends)]
        except UsbvfiodError as error:
            self._loop.call_soon(done, error)
            return
        attachment = Attachment(spec)
        self._attachments.append(attachment)

        slow = self._loop.call_later(OPEN_NOTICE, log.warning, "device %s takes long to open", spec.text)

        def opened(result: Device | BaseException) -> None:
            slow.cancel()
            try:
                if isinstance(result, BaseException):
                    raise result
                self._plug(attachment, result)
            except BaseException as error:
                self._forget(attachment)
                done(_explained(spec, error))
            else:
                done(attachment)

        self._loop.run_blocking(lambda: self._open(backend, attachment), opened)

    def detach(self, attachment: Attachment) -> None:
        """Unplug a device, as if pulled out of the port; it is gone when its transfers have come back."""
        if attachment.state is State.PLUGGED:
            attachment.state = State.LEAVING
            self._hub.unplug(attachment.port_id)

    def unplugged(self, port_id: int, device: Device) -> None:
        """The controller has unplugged and closed a device, because it was told to or because the device was lost."""
        for attachment in self.present:
            if attachment.port_id == port_id and attachment.device is device:
                if attachment.state is State.PLUGGED:
                    log.warning("%s (%s) is gone from port %d", attachment.name, attachment.spec.text, port_id)
                attachment.state = State.GONE
                self._forget(attachment)
                self._registry.observe(attachment.info, port_id, "unplugged")

    def close(self, done: Callable[[], object]) -> None:
        """Detach everything; `done` when every device has been closed. What is still being opened is closed then."""
        self._closing = True
        self._when_empty = done
        for attachment in self.present:
            self.detach(attachment)
        self._check_empty()

    # -- own ----------------------------------------------------------------------------------------------------

    def _open(self, backend: Backend, attachment: Attachment) -> Device:
        """Find, admit and open; in a thread."""
        spec = attachment.spec
        info = find(spec.address, backend.list_devices())
        if info is not None:
            attachment.info = info
        refusal = self._registry.refusal(attachment.info, Settings(spec.options))
        if refusal is not None:
            raise AttachmentRefused(refusal)
        return backend.open(attachment.info.address, spec.options, self._loop)

    def _plug(self, attachment: Attachment, device: Device) -> None:
        if self._closing:
            device.close()
            raise DeviceError("the server is ending")
        device = self._registry.wrap(device, attachment.info, Settings(attachment.spec.options), self._loop)
        attachment.name = device.name
        attachment.device = device
        try:
            attachment.port_id = self._hub.plug(device, attachment.spec.port)
        except BaseException:
            device.close()
            raise
        attachment.state = State.PLUGGED
        log.info("%s (%s) is plugged into port %d", attachment.name, attachment.spec.text, attachment.port_id)
        self._registry.observe(attachment.info, attachment.port_id, "plugged")

    def _forget(self, attachment: Attachment) -> None:
        if attachment in self._attachments:
            self._attachments.remove(attachment)
        self._check_empty()

    def _check_empty(self) -> None:
        if self._when_empty is not None and not self._attachments:
            done, self._when_empty = self._when_empty, None
            self._loop.call_soon(done)


def _explained(spec: DeviceSpec, error: BaseException) -> UsbvfiodError:
    """`error` with the device it is about in front."""
    for kind in (AttachmentRefused, DeviceError, ConfigError, PluginError):
        if isinstance(error, kind):
            return kind(f"device {spec.text}: {error}")
    log.debug("device %s", spec.text, exc_info=error)
    return DeviceError(f"device {spec.text}: backend {spec.backend} failed: {type(error).__name__}: {error}")
