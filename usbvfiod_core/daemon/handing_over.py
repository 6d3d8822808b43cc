"""The server's side of `usbvfiod upgrade`: it hands everything over to a process that takes its place.

The other process asks, step by step (see `taking_over`). Until it has said that it goes on, nothing is lost: whatever
goes wrong, this server goes on as if nobody had asked. The one moment that decides is when `gone` is in the channel:
from then on this process touches neither sockets nor devices any more, and ends.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import DeviceError, UsbvfiodError
from ..installed import version
from ..state import FORMAT, pack
from ..usb.device import Loop, Timer
from ..vfio_user.transport import Server as Transport
from ..xhci.controller import Controller
from .attachments import Attachments
from .capture_handover import CaptureSuccession
from .channel import Channel, ChannelClosed, Message
from .intents import Attachment
from .reload import Reloading
from .server_state import ReplugState, ServerState, directories_of
from .steering import Steering
from .steps import Accept, Failed, Freeze, Offer, OfferedDevice, Prepare, said
from .succession import Succession
from .successor import passed_on

if TYPE_CHECKING:
    from .metrics_socket import MetricsSocket

log = logging.getLogger(__name__)

QUIET: Final = 2.0
"""Seconds for transfers to come back."""
ACCEPTANCE: Final = 5.0
"""Seconds for the other process to build everything from the state."""
LAST_WORD: Final = 2.0
"""Seconds from `go` to `gone`, between which the other process does nothing else."""
UNPLUGGING: Final = 10.0
"""Seconds for devices that cannot be handed over to be unplugged."""
MIDWAY: Final = 0.25
"""Seconds for devices at which a pause would show, until that is over."""
_PACE: Final = 0.001


class Parts(Protocol):
    """What of a server is handed over."""

    transport: Transport
    controller: Controller
    attachments: Attachments
    devices: Succession

    @property
    def steering(self) -> Steering: ...
    @property
    def captures(self) -> CaptureSuccession: ...
    @property
    def metrics(self) -> MetricsSocket | None: ...
    @property
    def reloading(self) -> Reloading: ...
    @property
    def hindrance(self) -> str:
        """Why nobody can take its place now; empty if somebody can."""
        ...

    @property
    def fixed(self) -> Mapping[str, str]:
        """See `server_state.fixed`."""
        ...

    @property
    def inherited(self) -> Mapping[str, int | None]:
        """The descriptors of sockets that whoever has started it has handed down: `socket` and `control`."""
        ...

    @property
    def since(self) -> tuple[float, float, int]:
        """When it was started, by `time.monotonic` and `time.time`, and how often it was replaced."""
        ...

    def handed_over(self) -> None:
        """Another process goes on, and the service manager hears this one for the last time."""
        ...

    def replaced(self, pid: int) -> None:
        """The process of this number is the server from now on: end without a word."""
        ...


class HandingOver:
    """At most one process at a time takes the place of the server. All on the loop's thread."""

    def __init__(self, loop: Loop, parts: Parts) -> None:
        self._loop = loop
        self._parts = parts
        self._channel: Channel | None = None
        self._timer: Timer | None = None
        self._stopping = False
        """Whether it was asked to stop."""
        self._frozen = False
        self._replug: list[ReplugState] = []
        self._back: Callable[[], object] = _nothing
        """Plugs in again what was unplugged for the other process."""
        self._going = False
        self._new_pid = 0
        self._over = False
        self._asked = 0
        self._version = version("usbvfiod")

    @property
    def frozen(self) -> bool:
        """Whether guest and clients wait for what comes of it."""
        return self._frozen

    def begin(self, channel: Channel) -> None:
        """Somebody wants to take the place. Raises DeviceError, and ChannelClosed for one that has gone already; then
        nothing has begun, and the channel is still the caller's."""
        if self._frozen:
            raise DeviceError("another process is about to take the place of the server")
        if self._parts.hindrance:
            raise DeviceError(self._parts.hindrance)
        prepare = Prepare(sys.argv[1:], os.getcwd(), passed_on(os.environ), os.geteuid())
        channel.send("prepare", pack(prepare))
        if self._channel is not None:
            self._drop("another process wants to take the place of the server, too")
        self._channel = channel
        self._asked += 1
        self._loop.add_reader(channel.fileno(), self._readable, channel)

    def abandon(self, reason: str) -> bool:
        """Nobody is to take the place any more; whether somebody has done so in this moment."""
        if self._channel is None:
            return False
        self._late(reason)
        return self._over

    # -- its steps ---------------------------------------------------------------------------------------------------

    def _readable(self, channel: Channel) -> None:
        self._guarded(self._hear, channel)

    def _hear(self, channel: Channel) -> None:
        message = channel.receive()
        if message is not None:
            self._step(message)

    def _step(self, message: Message) -> None:
        if message.step == "offer" and not self._stopping:
            self._say("offer", self._offer(), {"log": 2})
        elif message.step == "freeze" and not self._stopping:
            self._stopping = True
            self._freeze(said(Freeze, message).replug)
        elif message.step == "accept" and self._frozen and not self._going:
            self._go(said(Accept, message).pid)
        elif message.step == "gone" and self._going:
            self._gone()
        elif message.step == "failed":
            self._failed(said(Failed, message).message)
        else:
            raise ChannelClosed(f"the other process says {message.step!r} when it is not its turn")

    def _offer(self) -> dict[str, Any]:
        parts = self._parts
        offer = Offer(
            FORMAT,
            self._version,
            dict(parts.fixed),
            dict(parts.inherited),
            [OfferedDevice(each.spec.text, each.spec.backend, each.configured) for each in parts.attachments],
            [reason for _, reason in parts.devices.refusals()],
        )
        return pack(offer)

    def _freeze(self, replug: bool) -> None:
        attachments = self._parts.attachments
        refusals = self._parts.devices.refusals()
        if not refusals:
            now = self._loop.time()
            self._when_between(now + QUIET, now + MIDWAY)
            return
        if not replug:
            reasons = "; ".join(reason for _, reason in refusals)
            raise DeviceError(f"{reasons} (--replug unplugs what cannot be handed over for a moment)")
        leaving = [attachment for attachment, _ in refusals]
        for attachment in leaving:
            if attachment.spec.grant is not None and attachment.spec.grant.given:
                raise DeviceError(
                    f"{attachment}: a client has passed its files open, which are gone when it is unplugged"
                )
        self._wait(UNPLUGGING, "devices take too long to be unplugged")
        self._replug = [
            ReplugState(
                each.spec.text, each.configured, sorted(attachments.ports.owned(each).values()), directories_of(each)
            )
            for each in leaving
        ]
        were = [(each.spec, each.configured, state.ports) for each, state in zip(leaving, self._replug, strict=True)]

        def back() -> None:
            for spec, configured, ports in were:
                attachments.attach(spec, lambda result: None, configured=configured, ports=ports)

        self._back = back
        all_left = self._later(self._freeze, False)

        def left(attachment: Attachment) -> Callable[[object], None]:
            def done(result: object) -> None:
                leaving.remove(attachment)
                if not leaving:
                    all_left()

            return done

        for attachment in list(leaving):
            attachments.detach(attachment, left(attachment), forget=True, why="it cannot be handed over")

    def _when_between(self, deadline: float, midway: float) -> None:
        """Stop as soon as the client is between two messages, and will not map at once what it has just unmapped; the
        configuration is not being read again, which may change what is attached when all of it was told already; and no
        device is in the middle of something, for which there is time until `midway`."""
        parts, now = self._parts, self._loop.time()
        reading = parts.reloading.reading
        between = parts.transport.between and not (parts.controller.memory_expected or reading)
        if between and (now > midway or not parts.devices.is_midway()):
            self._stop(deadline)
        elif now > deadline:
            what = "the configuration is being read again" if reading else "the client is in the middle of a message"
            raise DeviceError(f"{what}; try again")
        else:
            self._loop.call_later(_PACE, self._later(self._when_between, deadline, midway))

    def _stop(self, deadline: float) -> None:
        parts = self._parts
        if parts.hindrance:  # since it was asked
            raise DeviceError(parts.hindrance)
        self._frozen = parts.reloading.held = True
        parts.devices.hold(True)
        parts.transport.stop()
        parts.steering.stop()
        if parts.metrics is not None:
            parts.metrics.stop()
        self._wait(deadline - self._loop.time(), "the devices' transfers do not come back in time; try again")
        devices_settled = self._later(lambda: parts.captures.settle(self._later(self._tell)))
        parts.controller.quiet(self._later(lambda: parts.devices.settle(devices_settled)))

    def _tell(self) -> None:
        parts = self._parts
        if not parts.transport.between:  # an unmapping waits for transfers, which have just come back
            self._loop.call_soon(self._later(self._tell))
            return
        fds: dict[str, int] = {}
        kept: dict[str, int] = {}
        try:
            transport, found = parts.transport.state()
            fds.update((f"transport/{name}", fd) for name, fd in found.items())
            steering, found = parts.steering.state()
            fds.update((f"sockets/{name}", fd) for name, fd in found.items())
            control = parts.steering.control
            captures, found = parts.captures.state([] if control is None else control.members)
            kept.update((f"capture/{name}", fd) for name, fd in found.items())
            metrics = None
            if parts.metrics is not None:
                metrics, fds["metrics"] = parts.metrics.state()
            shared = parts.controller.shared
            if shared is not None:
                kept["page"] = shared.fd
            attachments = []
            for told, own in parts.devices.state():
                attachments.append(told)
                kept.update((f"attachment/{told.number}/{name}", fd) for name, fd in own.items())
            backends, found = parts.devices.shared_state()
            kept.update((f"backend/{name}", fd) for name, fd in found.items())
            since, started, upgrades = parts.since
            state = ServerState(
                transport,
                parts.controller.state(),
                steering,
                attachments,
                self._replug,
                metrics,
                started,
                since,
                upgrades + 1,
                captures,
                parts.attachments.numbers,
                backends,
            )
            self._wait(ACCEPTANCE, "the other process takes too long")
            self._say("state", pack(state), {**kept, **fds})
        finally:
            for fd in fds.values():
                os.close(fd)

    def _go(self, pid: int) -> None:
        self._going = True
        self._new_pid = pid
        self._wait(LAST_WORD, "the other process does not go on")
        self._say("go")

    def _gone(self) -> None:
        parts, channel = self._parts, self._channel
        assert channel is not None
        self._end()
        parts.handed_over()
        parts.transport.forget()
        parts.devices.forget()
        parts.captures.forget()
        channel.close()
        self._over = True
        parts.replaced(self._new_pid)

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def _late(self, reason: str) -> None:
        """Too late; unless the other process has gone on in this very moment, which is the one case in which it is."""
        self._timer = None
        channel = self._channel
        if channel is None:
            return
        if self._going:
            channel.refuse_more()
            try:
                while (message := channel.receive()) is not None:
                    if message.step == "gone":
                        self._gone()
                        return
            except ChannelClosed:
                pass
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        """Go on as if nobody had asked."""
        log.warning("this server was not replaced, and goes on: %s", reason)
        self._drop(reason)

    def _drop(self, reason: str) -> None:
        channel, frozen = self._channel, self._frozen
        if channel is None:
            return
        self._end()
        try:
            channel.send("failed", pack(Failed(reason)))
        except ChannelClosed:
            pass
        channel.close()
        parts = self._parts
        if frozen:
            parts.reloading.held = False
            parts.controller.resume()
            parts.devices.hold(False)
            if parts.metrics is not None:
                parts.metrics.go_on()
            parts.steering.go_on()
            parts.transport.go_on()
        back, self._back = self._back, _nothing
        back()

    def _end(self) -> None:
        assert self._channel is not None
        self._loop.remove_reader(self._channel.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._channel = None
        self._stopping = self._frozen = self._going = False
        self._replug = []

    # -- own ---------------------------------------------------------------------------------------------------------

    def _later(self, step: Callable[..., object], *arguments: object) -> Callable[[], None]:
        """A step that nobody's message brings about; nothing, if by then this conversation is over."""
        asked = self._asked

        def take() -> None:
            if self._channel is not None and asked == self._asked:
                self._guarded(step, *arguments)

        return take

    def _guarded(self, step: Callable[..., object], *arguments: object) -> None:
        """Take a step; whatever it raises ends the conversation, and the server goes on."""
        try:
            step(*arguments)
        except UsbvfiodError as error:
            self._failed(str(error))
        except Exception as error:
            log.exception("the server cannot be handed over")
            self._failed(f"a fault of the server's own: {type(error).__name__}: {error}")

    def _wait(self, seconds: float, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._late, reason)

    def _say(self, step: str, body: Mapping[str, Any] | None = None, fds: Mapping[str, int] | None = None) -> None:
        """Raises ChannelClosed."""
        assert self._channel is not None
        self._channel.send(step, body, fds)


def _nothing() -> None:
    pass
