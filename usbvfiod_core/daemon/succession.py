"""The attachments of a server whose place another one takes (`usbvfiod upgrade`), on both sides.

The old server holds, waits until its devices have settled, and says what it has. The new one makes the same attachments
around the descriptors that came with it, and touches no device before `begin`. If it does not come to that, the old one
goes on; else the old one forgets its devices, which is not to close them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..errors import PluginError, UsbvfiodError
from ..files import granted
from ..hooks.options import backend_options
from ..hooks.registry import Registry
from ..usb.backend import Backend
from ..usb.device import Device
from ..usb.guarded import guarded, tell
from ..usb.handover import CannotHandOver, Handover, NotSettled
from .attachment_state import (
    DEVICE,
    FD,
    AttachmentState,
    PluggedState,
    info_of,
    info_state,
    spec_of,
    spec_state,
)
from .attachments import Attachments
from .config import check_backend
from .intents import Attachment, State
from .opening import SLOW, OpeningLoop, explained
from .server_state import BackendState

log = logging.getLogger(__name__)

Entry = tuple[AttachmentState, dict[str, int]]
"""An attachment, and its descriptors."""


class Succession:
    """Everything is called on the loop's thread. The registry was asked for the plugins' options before."""

    def __init__(
        self, attachments: Attachments, loop: OpeningLoop, registry: Registry, backends: Mapping[str, Backend]
    ) -> None:
        self._attachments = attachments
        self._loop = loop
        self._registry = registry
        self._backends = backends
        self._refused: list[tuple[Attachment, str]] = []
        """Devices that were taken over, and that a plugin does not admit here."""

    # -- the old server ------------------------------------------------------------------------------------------------

    def refusals(self) -> list[tuple[Attachment, str]]:
        """What cannot be handed over, and why, as far as it can be told while devices are at work."""
        found = []
        for attachment in self._attachments:
            if attachment.state is State.LEAVING or (attachment.state is State.OPENING and attachment.reason != SLOW):
                what = "unplugged" if attachment.state is State.LEAVING else "opened"
                found.append((attachment, f"device {attachment}: it is being {what}; try again"))
                continue
            try:
                self._plugged(attachment, {})
            except NotSettled:
                pass
            except CannotHandOver as error:
                found.append((attachment, str(error)))
        return found

    def is_midway(self) -> bool:
        """Whether a pause would show at a device; see `Device`."""
        return any(each.device is not None and guarded(each.device, "is_midway") for each in self._attachments)

    def hold(self, held: bool) -> None:
        """While `held` no device is opened or plugged in: the other server may be about to do that."""
        self._attachments.inventory.held = self._attachments.openings.held = held
        if not held:
            for attachment in list(self._attachments):
                self._goes_on(attachment)
            self._backends_go_on()
            self._attachments.openings.settle()
            self._look()

    def settle(self, done: Callable[[], object]) -> None:
        """No transfer is in flight: call `done` when nothing else goes on in any device, inside this call or later."""
        devices = [each.device for each in self._attachments if each.device is not None]
        waiting = len(devices) + 1

        def settled() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                done()

        for device in devices:
            device.when_settled(settled)
        settled()

    def state(self) -> list[Entry]:
        """All attachments, in the order they were asked for. The descriptors stay here. Raises CannotHandOver for a
        device that cannot be handed over, or not now."""
        return [self._state(each) for each in self._attachments]

    def shared_state(self) -> tuple[list[BackendState], dict[str, int]]:
        """What backends have beside their devices, and its descriptors, which stay here. They leave it alone from now
        on."""
        found: list[BackendState] = []
        descriptors: dict[str, int] = {}
        for name, backend in self._backends.items():
            told = backend.hand_over_shared()
            if told.state or told.descriptors:
                found.append(BackendState(name, told.state, sorted(told.descriptors)))
                descriptors.update((f"{name}/{key}", fd) for key, fd in told.descriptors.items())
        return found, descriptors

    def forget(self) -> None:
        """The other server goes on with all devices."""
        for attachment in self._attachments:
            attachment.cancel_timer()
            if attachment.device is not None:
                guarded(attachment.device, "forget")

    def _goes_on(self, attachment: Attachment) -> None:
        """Here, after all."""
        if attachment.device is None:
            return
        try:
            attachment.device.go_on()
        except Exception as error:
            tell(attachment.device, "go_on", error)
            if attachment.state is State.PLUGGED:
                self._attachments.unplug(attachment, "it cannot go on")

    def _state(self, attachment: Attachment) -> Entry:
        now, spec = self._loop.time(), attachment.spec
        stored, descriptors = spec_state(spec, self._registry.known_options)
        plugged = self._plugged(attachment, descriptors)
        state, reason = attachment.state, attachment.reason
        if state is State.OPENING:
            state, reason = State.WAITING, ""
        if attachment.fd is not None:
            descriptors[FD] = attachment.fd
        return (
            AttachmentState(
                attachment.number,
                stored,
                attachment.configured,
                info_state(attachment.info),
                None if attachment.last is None else info_state(attachment.last),
                state,
                reason,
                attachment.note,
                attachment.complaint,
                attachment.name,
                attachment.port_id,
                sorted(self._attachments.ports.owned(attachment).values()),
                attachment.wanted,
                attachment.allowed,
                max(now - attachment.since, 0.0),
                attachment.plugs,
                attachment.failures,
                attachment.losses,
                attachment.is_withheld,
                plugged,
            ),
            descriptors,
        )

    def _plugged(self, attachment: Attachment, descriptors: dict[str, int]) -> PluggedState | None:
        """What the device hands over, and what is around it; `descriptors` get the device's."""
        device = attachment.device
        if device is None or attachment.state is not State.PLUGGED:
            return None
        try:
            layers = [layer.state() for layer in attachment.layers]
            handover = device.hand_over()
        except CannotHandOver as error:
            raise type(error)(f"device {attachment.spec.text}: {error}") from error
        except Exception as error:
            log.debug("device %s", attachment.spec.text, exc_info=error)
            raise CannotHandOver(f"device {attachment.spec.text}: {type(error).__name__}: {error}") from error
        descriptors.update((f"{DEVICE}-{name}", fd) for name, fd in handover.descriptors.items())
        return PluggedState(handover.state, sorted(handover.descriptors), layers)

    # -- the new server ------------------------------------------------------------------------------------------------

    def take_over(self, entries: Sequence[Entry], done: Callable[[UsbvfiodError | None], object]) -> None:
        """Make the attachments of another server, before there are any here. `done` is told on the loop when all
        devices are made, or the first error. Nothing is plugged in and nobody told: that the controller knows them is
        the caller's affair, by `device_at`. After an error this server ends without closing any of them."""
        waiting = len(entries) + 1
        failure: UsbvfiodError | None = None

        def ended(error: UsbvfiodError | None = None) -> None:
            nonlocal waiting, failure
            waiting -= 1
            failure = failure or error
            if not waiting:
                done(failure)

        for state, descriptors in entries:
            try:
                self._adopt(state, descriptors, ended)
            except UsbvfiodError as error:
                ended(CannotHandOver(f"device {state.spec.text}: {error}"))
        ended()

    def take_over_shared(self, states: Sequence[BackendState], descriptors: dict[str, int]) -> None:
        """What backends of another server have beside their devices, before `take_over`; without those that are not
        here, whose devices are neither. All `descriptors` are of this; those of others are closed. Raises
        UsbvfiodError."""
        for each in states:
            own = {name: descriptors.pop(f"{each.name}/{name}", -1) for name in each.descriptors}
            missing = [name for name, fd in own.items() if fd < 0]
            if missing:
                raise CannotHandOver(f"backend {each.name}: the descriptor {missing[0]!r} has not come with it")
            backend = self._backends.get(each.name)
            if backend is not None:
                backend.take_over_shared(self._loop, Handover(each.state, own))
            else:
                for fd in own.values():
                    os.close(fd)

    def device_at(self, port_id: int) -> Device | None:
        """The device that is plugged into a port of the controller."""
        for attachment in self._attachments:
            if attachment.port_id == port_id and attachment.state is State.PLUGGED:
                return attachment.device
        return None

    def begin(self) -> None:
        """The other server is gone, and the controller has been given its devices: look for those that are missing, and
        unplug what is not admitted here."""
        self._backends_go_on()
        for attachment in self._attachments:
            if attachment.state is State.PLUGGED:
                log.info("%s goes on at port %d", attachment.title, attachment.port_id)
                self._registry.observe(attachment.info, attachment.port_id, "plugged")
        refused, self._refused = self._refused, []
        for attachment, reason in refused:
            if attachment.state is State.PLUGGED:
                self._attachments.unplug(attachment, reason)
        self._look()

    def _adopt(
        self, state: AttachmentState, descriptors: Mapping[str, int], ended: Callable[[UsbvfiodError | None], object]
    ) -> None:
        spec = spec_of(state.spec, self._registry.known_options, descriptors)
        attachment = Attachment(state.number, spec, configured=state.configured)
        attachment.info = info_of(state.info)
        attachment.last = None if state.last is None else info_of(state.last)
        attachment.state, attachment.reason, attachment.note = state.state, state.reason, state.note
        attachment.complaint, attachment.name, attachment.port_id = state.complaint, state.name, state.port_id
        attachment.wanted, attachment.allowed, attachment.fresh = state.wanted, state.allowed, False
        attachment.since = self._loop.time() - state.since
        attachment.plugs, attachment.failures, attachment.losses = state.plugs, state.failures, state.losses
        if state.withheld:
            attachment.withhold()
        attachment.fd = descriptors.get(FD)
        plugged = state.plugged
        if (plugged is None) is (state.state is State.PLUGGED):
            raise CannotHandOver(f"it is {state.state.value}, and its device does not say so")
        check_backend(spec.backend, self._backends)
        for port_id in state.ports:
            self._attachments.ports.claim(attachment, port_id)
        self._attachments.take_in(attachment)
        if plugged is None:
            ended(None)
            return
        own = {}
        for name in plugged.descriptors:
            if f"{DEVICE}-{name}" not in descriptors:
                raise CannotHandOver(f"the descriptor {name!r} has not come with it")
            own[name] = descriptors[f"{DEVICE}-{name}"]
        attachment.loop = self._loop.apart()
        call = partial(self._open, attachment, Handover(plugged.device, own))
        self._loop.run_blocking(call, partial(self._made, attachment, plugged, ended))

    def _backends_go_on(self) -> None:
        for name, backend in self._backends.items():
            try:
                backend.go_on_shared()
            except Exception:
                log.exception("backend %s: go_on_shared raised", name)

    def _look(self) -> None:
        """See whether devices have come that any attachment waits for."""
        for backend in sorted({each.spec.backend for each in self._attachments}):
            self._attachments.inventory.look(backend)

    def _open(self, attachment: Attachment, handover: Handover) -> tuple[Device, str | None]:
        """In a thread: the device, and why it is not admitted here."""
        spec, info, loop = attachment.spec, attachment.info, attachment.loop
        assert loop is not None
        backend = self._backends[spec.backend]
        options = backend_options(backend, info.address, spec.options)
        with granted(spec.grant):
            device = backend.take_over(info.address, options, loop, handover)
        try:
            return device, self._registry.refusal(info, spec.settings)
        except PluginError as error:
            return device, str(error)

    def _made(
        self,
        attachment: Attachment,
        plugged: PluggedState,
        ended: Callable[[UsbvfiodError | None], object],
        result: tuple[Device, str | None] | BaseException,
    ) -> None:
        spec = attachment.spec
        try:
            if isinstance(result, BaseException):
                raise result
            device, refusal = result
            loop = attachment.loop or self._loop
            wrapped = self._registry.wrap_again(device, attachment.info, spec.settings, loop, plugged.layers)
            attachment.device, attachment.layers = wrapped
        except UsbvfiodError as error:
            ended(CannotHandOver(f"device {spec.text}: {error}"))
        except BaseException as error:
            ended(explained(spec, error))
        else:
            if refusal is not None:
                self._refused.append((attachment, refusal))
            ended(None)
