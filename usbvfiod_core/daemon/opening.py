"""The gates a device passes before it is plugged in, the port it goes into, and whose fault it is if it does not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, Protocol

from ..errors import ConfigError, DeviceAway, DeviceError, DeviceWithheld, PluginError, UsbvfiodError
from ..files import granted
from ..hooks.options import backend_options
from ..hooks.registry import Registry
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from ..usb.guarded import guarded
from .config import DeviceSpec
from .guest_ports import GuestPorts, wrong_kind
from .intents import Attachment, DeviceLoop, State

log = logging.getLogger(__name__)


class AttachmentRefused(DeviceError):
    """A plugin does not admit the device."""


class DeviceAbsent(DeviceError):
    """The device went while it was being opened."""


class SandboxClosed(AttachmentRefused):
    """The sandbox does not let the server open what the device needs."""


OPEN_NOTICE: Final = 2.0
"""Seconds after which a device that is still being opened is mentioned, others do not wait for it, and whoever detaches
it does not either."""

OPENING_THREADS: Final = 256
"""Openings that can hang before one waits for another: those of many attachments, and of many that were given up."""

SLOW = "it takes long to open; detach gives it up"


class OpeningLoop(Loop, Protocol):
    """The loop that attachments are on."""

    def apart(self, *, awaited: bool = ..., threads: int = ...) -> DeviceLoop:
        """A loop whose `run_blocking` waits for nobody else's calls, nor the end for them unless they are `awaited`."""
        ...


class Openings:
    """Devices that are being opened in threads, in which nothing else is done. Each device gets a loop of its own, so
    that none waits for what another one does in threads.

    An opening may hang for as long as a file system does. Then its attachment says so, and can be given up.
    """

    def __init__(
        self,
        loop: OpeningLoop,
        registry: Registry,
        backends: Mapping[str, Backend],
        attachments: Iterable[Attachment],
        opened: Callable[[Attachment, Device | BaseException], object],
        changed: Callable[[Attachment, State, str], object],
    ) -> None:
        """`attachments` are those there are. `opened` is told what came of an opening that was not given up; `changed`
        sets the reason for a state."""
        self._loop = loop
        self._threads = loop.apart(awaited=False, threads=OPENING_THREADS)
        self._registry = registry
        self._backends = backends
        self._attachments = attachments
        self._opened = opened
        self._changed = changed
        self.held = False
        """While it is set, nothing that was opened is passed on."""
        self._running: set[Attachment] = set()
        self._results: dict[Attachment, Device | BaseException] = {}

    def runs(self, attachment: Attachment) -> bool:
        """Whether its device is being opened, given up or not."""
        return attachment in self._running

    def identify(self, attachment: Attachment, fd: int, then: Callable[[DeviceInfo | BaseException], object]) -> None:
        """Ask the backend which device a descriptor is of."""

        def identified(result: DeviceInfo | BaseException) -> None:
            self._running.discard(attachment)
            then(result)

        self._begin(attachment)
        self._threads.run_blocking(partial(self._backends[attachment.spec.backend].identify_fd, fd), identified)

    def open(self, attachment: Attachment, fd: int | None) -> None:
        """Open the device of an attachment, `attachment.info`, behind `fd` if one is given."""
        attachment.loop = self._loop.apart()
        spec = attachment.spec
        backend = self._backends[spec.backend]
        found: list[DeviceInfo] = []
        call = partial(open_device, self._registry, backend, spec, attachment.info, fd, attachment.loop, found.append)
        self._begin(attachment)
        self._threads.run_blocking(call, partial(self._done, attachment, found))

    def settle(self) -> None:
        """Pass on what was opened, new attachments in the order they were asked for: so they get the same ports."""
        in_turn = True
        for attachment in () if self.held else self._attachments:
            if attachment in self._results and (in_turn or not attachment.fresh):
                self._opened(attachment, self._results.pop(attachment))
            in_turn = in_turn and not attachment.fresh

    def give_up(self, attachment: Attachment) -> bool:
        """It was to be detached a while ago: whether it is still being opened, and what comes of it is not wanted."""
        if attachment.state is not State.OPENING or attachment.wanted:
            return False
        log.warning("device %s does not open and is given up; it is closed if it opens", attachment.spec.text)
        late = self._results.pop(attachment, None)
        if isinstance(late, Device):
            guarded(late, "close")
        return True

    def _begin(self, attachment: Attachment) -> None:
        self._running.add(attachment)
        self._loop.call_later(OPEN_NOTICE, self._slow, attachment, attachment.since)

    def _slow(self, attachment: Attachment, since: float) -> None:
        runs = attachment.state is State.OPENING and attachment.since == since and attachment in self._running
        if runs and not attachment.away:  # else that is what it waits for
            log.warning("device %s takes long to open", attachment.spec.text)
            self._changed(attachment, State.OPENING, SLOW)

    def _done(self, attachment: Attachment, found: list[DeviceInfo], result: Device | BaseException) -> None:
        """`found` is what had to be looked up."""
        self._running.discard(attachment)
        if attachment.state is State.OPENING:
            attachment.info = found[0] if found else attachment.info
            self._results[attachment] = result
            self.settle()
        elif not isinstance(result, BaseException):
            log.info("device %s was opened after it had been given up; it is closed", attachment.spec.text)
            guarded(result, "close")


def open_device(
    registry: Registry,
    backend: Backend,
    spec: DeviceSpec,
    info: DeviceInfo,
    fd: int | None,
    loop: Loop,
    learned: Callable[[DeviceInfo], object] = lambda info: None,
) -> Device:
    """Ask the plugins whether `info` may be used, and open it, behind `fd` if one is given. In a thread; may block.
    `learned` is told what it is, if that had to be looked up.

    Raises AttachmentRefused, DeviceAbsent, or whatever the backend raises, of which DeviceWithheld and DeviceAway are
    no failures.
    """
    try:
        options = backend_options(backend, info.address, spec.options)
        if fd is None and (info.vendor_id, info.product_id) == (0, 0):
            found = backend.look_up(info.address, options)
            if found is not None:
                info = found
                learned(info)
        refusal = registry.refusal(info, spec.settings)
        if refusal is not None:
            raise AttachmentRefused(refusal)
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
    except (DeviceWithheld, DeviceAway):
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
