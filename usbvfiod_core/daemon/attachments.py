"""Attachments: what should be plugged into the controller, and keeping it so.

Each attachment is an intent. Whenever a backend says that devices came or went, what it lists is compared with the
intents, and those whose device is there go through four gates: ask the plugins whether it may be used, open it, let the
plugins wrap it, plug it in. What may block of this runs in a thread of its own, so that no device holds up another. A
device that is lost is unplugged, and plugged into the same port when it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from ..errors import ConfigError, DeviceAway, DeviceError, DeviceWithheld, UsbvfiodError
from ..hooks.registry import Registry
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device
from ..usb.guarded import guarded, guarded_text
from ..vfio_user import expendable
from .assignment import assign, check_given
from .config import DeviceSpec, Mode, check_backend
from .guest_ports import GuestPorts, RootHub, wrong_kind
from .intents import Attachment, Done, State, instance
from .inventory import Inventory
from .matching import Kind, kind_of
from .opening import OPEN_NOTICE, AttachmentRefused, DeviceAbsent, OpeningLoop, Openings, choose_port, explained

log = logging.getLogger(__name__)


class Attachments:
    """The attachments of one controller, which calls `leaving` and `unplugged`. All on the loop's thread.
    `changed` is called with an attachment that has come into another state, or has another reason for it."""

    def __init__(
        self, loop: OpeningLoop, hub: RootHub, registry: Registry, backends: Mapping[str, Backend], ports: GuestPorts
    ) -> None:
        self._loop = loop
        self._hub = hub
        self._registry = registry
        self._backends = backends
        self._attachments: list[Attachment] = []
        self.numbers = 0
        """The last number that was used; none is used twice."""
        self._closing = False
        self._when_empty: Callable[[], object] | None = None
        self.ports = ports
        self.openings = Openings(loop, registry, backends, self, self._finish, self._set)
        self.inventory = Inventory(loop, backends, self._listed, self._wants)
        self.changed: Callable[[Attachment], object] = lambda attachment: None

    def __iter__(self) -> Iterator[Attachment]:
        """The attachments that are not gone, in the order they were asked for."""
        return iter(tuple(self._attachments))

    @property
    def missing(self) -> list[Attachment]:
        """Those of mode `required` that are not plugged in."""
        return [each for each in self if each.spec.mode is Mode.REQUIRED and each.state is not State.PLUGGED]

    def attach(
        self,
        spec: DeviceSpec,
        done: Done,
        *,
        fd: int | None = None,
        configured: bool = False,
        patience: float = OPEN_NOTICE,
        ports: Iterable[int] = (),
    ) -> None:
        """From now on keep plugged in what `spec` says; tell `done` later how the first try ended.

        `done` gets the attachment, which may as well wait for its device, or after `patience` seconds still be opening
        it; or the error that ended it. `fd` is a descriptor of the device itself, which belongs to the attachment from
        this call on. `ports` are those that it has had, and has again if they are free.
        """
        attachment = Attachment(self.numbers + 1, spec, configured=configured)
        attachment.since = self._loop.time()
        try:
            check_backend(spec.backend, self._backends)
            if spec.port is not None:
                self.ports.claim(attachment, spec.port)
        except UsbvfiodError as error:
            if fd is not None:
                expendable.close(fd)
            self._loop.call_soon(done, explained(spec, error))
            return
        self.numbers += 1
        self.ports.claim_again(attachment, ports)
        self._attachments.append(attachment)
        attachment.waiters.append(done)
        if fd is not None:
            attachment.wanted = attachment.allowed = True
        if not attachment.wanted:
            self._loop.call_soon(self._arrive, attachment, State.HELD, "nobody has asked for it yet")
            return
        slow = self._loop.call_later(patience, self._slow, attachment)
        attachment.waiters.append(lambda result: slow.cancel())
        self._pursue(attachment, fd)

    def plug(self, attachment: Attachment, done: Done, *, fd: int | None = None) -> None:
        """Somebody asks for an attachment: plug it in now if its device is there, and keep it so.

        Where that is going on already, `done` is told how it ends, and `fd` is opened only if it ends otherwise.
        """
        ending = self._closing or (attachment.holds and not attachment.wanted)
        if ending or attachment.state is State.PLUGGED:
            if fd is not None:
                expendable.close(fd)
            reason = self._why_not if ending else "it is already plugged in"
            self._loop.call_soon(done, DeviceError(f"device {attachment}: {reason}"))
            return
        attachment.wanted = attachment.allowed = True
        attachment.waiters.append(done)
        if self.openings.runs(attachment):
            self._set(attachment, State.OPENING)
        if attachment.holds:
            if fd is not None:
                attachment.drop_fd()
                attachment.fd = fd
            return
        attachment.cancel_timer()
        attachment.soon()
        self._set(attachment, State.WAITING)
        self._pursue(attachment, fd)

    def detach(
        self, attachment: Attachment, done: Done | None = None, *, forget: bool = False, why: str = "it was asked for"
    ) -> None:
        """Unplug a device, as if pulled out of the port, and keep it out; `done` when its transfers have come back.

        The attachment stays, with its port, unless it is to be forgotten. The log says `why`.
        """
        if attachment.wanted:
            attachment.answer(DeviceError(f"device {attachment.spec.text}: {self._why_not}"))
        attachment.wanted = False
        attachment.allowed = attachment.spec.mode is not Mode.ASK
        attachment.forget |= forget
        attachment.cancel_timer()
        attachment.drop_fd()
        if done is not None:
            attachment.waiters.append(done)
        if attachment.state is State.PLUGGED:
            self.unplug(attachment, why)
        elif attachment.state is State.OPENING:
            self._loop.call_later(OPEN_NOTICE, self._give_up, attachment)
        elif not attachment.holds:
            self._loop.call_soon(self._rest, attachment)

    def move(self, attachment: Attachment, port_id: int, done: Done) -> None:
        """Unplug a device and plug it into another port of its kind, which it keeps. Raises ConfigError: it cannot."""
        is_usb3 = self.ports.check(attachment, port_id)
        if attachment.device is not None and attachment.device.speed.is_usb3 is not is_usb3:
            raise ConfigError(wrong_kind(self.ports, attachment.device.name, not is_usb3, port_id))
        if attachment.port_id == port_id:
            self._loop.call_soon(done, attachment)
            return
        self.ports.claim(attachment, port_id)
        if attachment.state is State.PLUGGED:
            attachment.waiters.append(done)
            attachment.soon()
            self.unplug(attachment, f"it moves to port {port_id}")
        else:
            self._loop.call_soon(done, attachment)

    def take_in(self, attachment: Attachment) -> None:
        """Take in an attachment of another server, as it was there; it has its ports."""
        self.numbers = max(self.numbers, attachment.number)
        self._attachments.append(attachment)

    def unplug(self, attachment: Attachment, why: str) -> None:
        """Unplug the device of one that is plugged in, and go on as it wants. The log says `why`."""
        log.info("%s is unplugged from port %d: %s", attachment.title, attachment.port_id, why)
        self._set(attachment, State.LEAVING)
        self._hub.unplug(attachment.port_id)

    def leaving(self, port_id: int, device: Device) -> None:
        """The port of a device is empty, because the device was lost or because we said so."""
        for attachment in self:
            if attachment.device is device and attachment.state is State.PLUGGED:
                attachment.lost(self._loop.time())
                attachment.allowed = attachment.spec.mode is not Mode.ASK
                why = guarded_text(device, "why_gone")
                log.warning("%s is gone from port %d: %s", attachment.title, port_id, why or "it has disconnected")
                self._set(attachment, State.LEAVING, why or "it is gone")

    def unplugged(self, port_id: int, device: Device) -> None:
        """The transfers of a device that was unplugged are back, and it was closed."""
        for attachment in self:
            if attachment.device is device:
                attachment.device, attachment.port_id = None, 0
                attachment.tell_loss(guarded_text(device, "loss"))
                self._registry.observe(attachment.info, port_id, "unplugged")
                self._rest(attachment)

    def close(self, done: Callable[[], object]) -> None:
        """Detach everything; `done` when every device has been closed. What is still being opened is closed then."""
        self._closing = True
        self._when_empty = done
        self.inventory.close()
        for attachment in self:
            self.detach(attachment, why="the server ends", forget=True)
        self._check_empty()

    # -- from the intent to an open device ---------------------------------------------------------------------------

    def _pursue(self, attachment: Attachment, fd: int | None = None) -> None:
        """Find its device: behind the descriptor, or in the list that is made next."""
        backend = attachment.spec.backend
        if fd is None:
            self.inventory.look(backend)
            return
        self._set(attachment, State.OPENING)
        self.openings.identify(attachment, fd, partial(self._identified, attachment, fd))

    def _identified(self, attachment: Attachment, fd: int, result: DeviceInfo | BaseException) -> None:
        try:
            if self._closing or not attachment.wanted:
                raise DeviceError(self._why_not)
            if isinstance(result, BaseException):
                raise result
            check_given(self, attachment, result)
        except Exception as error:
            expendable.close(fd)
            self._failed(attachment, error)
            return
        self._open(attachment, result, fd)

    def _wants(self, backend: str) -> bool:
        return any(each.spec.backend == backend and each.pending for each in self)

    def _listed(self, backend: str, result: list[DeviceInfo] | BaseException, event: bool) -> None:
        """What a backend lists was read again."""
        pending = [each for each in self if each.spec.backend == backend and each.pending]
        if isinstance(result, BaseException):
            for attachment in pending:
                self._failed(attachment, result)
            return
        for attachment, choice in assign(self, pending, result).items():
            if isinstance(choice, ConfigError | DeviceError):
                self._undecided(attachment, choice)
            else:
                self._consider(attachment, choice, event)

    def _consider(self, attachment: Attachment, info: DeviceInfo | None, event: bool) -> None:
        spec = attachment.spec
        if info is None and kind_of(spec.address) is not Kind.OWN:
            self._absent(attachment)
            return
        # What is not listed may be what was lost, for all that is known.
        attachment.found(info or attachment.info, self._loop.time())
        info = info or spec.unseen
        same = instance(info) == instance(attachment.info)
        attachment.info = info
        if not attachment.allowed:
            if attachment.state is not State.ASKING:
                log.info("%s (%s) is there; attach it to allow it", info.name, attachment)
            self._arrive(attachment, State.ASKING)
            return
        if attachment.state is State.REFUSED and same:
            return
        wait = attachment.wait(self._loop.time(), event=event)
        if wait:
            self._later(attachment, wait)
        else:
            self._open(attachment, info)

    def _open(self, attachment: Attachment, info: DeviceInfo, fd: int | None = None) -> None:
        attachment.cancel_timer()
        attachment.info = info
        attachment.trying(self._loop.time())
        self._set(attachment, State.OPENING, attachment.away)
        self.openings.open(attachment, fd)

    def _finish(self, attachment: Attachment, result: Device | BaseException) -> None:
        try:
            if isinstance(result, BaseException):
                raise result
            self._plug(attachment, result)
        except DeviceAbsent:
            self._absent(attachment)
            if attachment.pending:  # while it was being opened nobody looked for what may have come instead
                self._pursue(attachment)
        except (DeviceWithheld, DeviceAway) as error:
            self._withheld(attachment, error)
        except BaseException as error:
            self._failed(attachment, error)

    def _plug(self, attachment: Attachment, device: Device) -> None:
        if self._closing or not attachment.wanted:
            guarded(device, "close")
            raise DeviceError(self._why_not)
        loop = attachment.loop or self._loop
        attachment.layers = []
        device = self._registry.wrap(device, attachment.info, attachment.spec.settings, loop, attachment.layers)
        attachment.device, attachment.note = device, ""
        try:
            port_id = choose_port(self.ports, attachment, device)
            self._hub.plug(device, port_id)
        except BaseException:
            attachment.device = None
            guarded(device, "close")
            raise
        attachment.name, attachment.port_id = device.name, port_id
        attachment.last = attachment.info
        attachment.plugs += 1
        if attachment.failures:  # what has kept it away may have kept others, which need not wait for their own turn
            self.inventory.look(attachment.spec.backend, event=True)
        attachment.failures = 0
        attachment.away = attachment.complaint = ""
        attachment.drop_fd()
        log.info("%s is plugged into port %d at %s speed", attachment.title, port_id, device.speed.word)
        self._arrive(attachment, State.PLUGGED)
        self._registry.observe(attachment.info, port_id, "plugged")

    @property
    def _why_not(self) -> str:
        return "the server is ending" if self._closing else "it was detached"

    # -- where it ends -----------------------------------------------------------------------------------------------

    def _absent(self, attachment: Attachment) -> None:
        """Its device is not there."""
        attachment.cancel_timer()
        if self._is_over(attachment):
            return
        if attachment.fresh:
            attachment.tell_absence()
        self._arrive(attachment, State.WAITING, attachment.absence)
        if self.inventory.has_events(attachment.spec.backend):
            attachment.failures, attachment.away = 0, ""
        else:
            self._later(attachment, attachment.missed())

    def _withheld(self, attachment: Attachment, error: DeviceWithheld | DeviceAway) -> None:
        """Its device is not given now, or its host is not there."""
        if self._is_over(attachment):
            return
        attachment.complain(explained(attachment.spec, error))
        delay = attachment.put_off(error, self._loop.time())
        self._arrive(attachment, State.WAITING, str(error))
        self._later(attachment, delay)

    def _undecided(self, attachment: Attachment, error: UsbvfiodError) -> None:
        """There are several devices that it may mean, or another attachment has the one."""
        if attachment.fresh:
            self._failed(attachment, error)
            return
        attachment.cancel_timer()
        told = explained(attachment.spec, error)
        attachment.complain(told)
        self._set(attachment, State.WAITING, str(error))
        attachment.answer(told)

    def _failed(self, attachment: Attachment, error: BaseException) -> None:
        """Its device could not be listed, found, admitted, opened, wrapped or plugged in."""
        if self._is_over(attachment):
            return
        told = explained(attachment.spec, error)
        if attachment.fresh:
            attachment.forget = True
            attachment.answer(told)
            self._rest(attachment)
            return
        delay = attachment.missed()
        attachment.complain(told)
        refused = isinstance(error, AttachmentRefused)
        self._set(attachment, State.REFUSED if refused else State.RETRYING, str(error))
        if not refused:
            self._later(attachment, delay)
        attachment.answer(told)

    def _is_over(self, attachment: Attachment) -> bool:
        """Whether it does not matter why a try failed: nobody wants it now, or there is a descriptor to go on with."""
        if self._closing or not attachment.wanted:
            self._rest(attachment)
        elif attachment.fd is not None:
            self._pursue(attachment, attachment.take_fd())
        else:
            return False
        return True

    def _rest(self, attachment: Attachment) -> None:
        """Nothing of it is open any more."""
        if attachment.state is State.GONE:
            return
        if self._closing or attachment.forget:
            self.ports.release(attachment)
            self._attachments.remove(attachment)
            self._arrive(attachment, State.GONE)
            self.openings.settle()
            self._check_empty()
        elif not attachment.wanted:
            self._arrive(attachment, State.HELD, "it was detached")
        else:
            self._set(attachment, State.WAITING, attachment.reason or "it is gone")
            self._pursue(attachment, attachment.take_fd())

    def _arrive(self, attachment: Attachment, state: State, reason: str = "") -> None:
        if attachment.state is not State.GONE:
            fresh, attachment.fresh = attachment.fresh, False
            self._set(attachment, state, reason)
            attachment.answer(attachment)
            if fresh:
                self.openings.settle()

    def _set(self, attachment: Attachment, state: State, reason: str = "") -> None:
        if (attachment.state, attachment.reason) != (state, reason):
            if attachment.state is not state:
                attachment.since = self._loop.time()
            attachment.state, attachment.reason = state, reason
            attachment.drop_loop()
            self.changed(attachment)

    def _slow(self, attachment: Attachment) -> None:
        """It takes long: nobody waits for it any more."""
        attachment.fresh = False
        attachment.answer(attachment)
        self.openings.settle()

    def _give_up(self, attachment: Attachment) -> None:
        """It was to be detached; if it is still being opened, nobody waits for that."""
        if self.openings.give_up(attachment):
            self._rest(attachment)

    def _later(self, attachment: Attachment, delay: float) -> None:
        """Look for its device again after `delay` seconds."""
        attachment.cancel_timer()
        attachment.next_try = self._loop.time() + delay
        attachment.timer = self._loop.call_later(delay, self._due, attachment)

    def _due(self, attachment: Attachment) -> None:
        attachment.cancel_timer()
        self.inventory.look(attachment.spec.backend)

    def _check_empty(self) -> None:
        if self._when_empty is not None and not self._attachments:
            done, self._when_empty = self._when_empty, None
            self._loop.call_soon(done)
