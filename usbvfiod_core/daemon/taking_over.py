"""The other side of `usbvfiod upgrade`: this process takes the place of a server that runs.

It was started by `usbvfiod upgrade`, or on SIGUSR2 by the shell beside the server or the server itself, with the
server's options, and the environment says where the other end is. Configuration and plugins are read as at any start,
and the sandbox is closed, before the server is asked to stop for a moment. Until `go` nothing is touched that belongs
to it: whoever fails before just ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from ..errors import ConfigError, DeviceError, PluginError, UsbvfiodError
from ..state import StateError, check_format, pack, unpack
from ..usb.backend import Backend
from ..usb.device import Loop
from .activation import ActivationSockets, serving_them
from .channel import Channel, ChannelClosed, Message
from .config import Config
from .server_state import ServerState, fixed
from .steps import Accept, Failed, Freeze, Offer, descriptor, said
from .successor import GOES, HANDOVER, SERVES

ANSWER: Final = 10.0
"""Seconds for the server to answer, which may have a lot to do for its guest."""
UNPLUGGED: Final = 20.0
"""Seconds for it to unplug what cannot be handed over, and for its transfers to come back."""
_DOOR: Final = "door"


class TakingOver:
    """The conversation with the server whose place this process takes. It waits for each answer: until `go` there is
    nothing else for it to do."""

    def __init__(self, channel: Channel, report: int | None, *, replug: bool) -> None:
        self._channel = channel
        self._report = report
        self._replug = replug
        self._offer: Offer | None = None
        self._fds: dict[str, int] = {}
        self.log_fd = 2
        """Where the server's log goes, and this one's from `gone_on` on; known when it is `prepared`."""

    @classmethod
    def begun(cls, environment: MutableMapping[str, str]) -> TakingOver | None:
        """What the environment says, from which it is removed; None for a server that takes nobody's place. Raises
        ConfigError."""
        told = environment.pop(HANDOVER, "")
        if not told:
            return None
        kind, *numbers = told.split(":")
        try:
            fds = [int(each) for each in numbers]
            if kind == _DOOR:
                channel, other = Channel.pair()
                # Each try is a conversation of its own; the door is there for all of them.
                with socket.socket(fileno=fds[0]) as door, other:
                    socket.send_fds(door, [b"upgrade"], [other.fileno()])
                taking = cls(channel, None, replug=False)
                taking._expect("prepare")
                return taking
            channel = Channel(socket.socket(fileno=fds[0]))
            for fd in fds:
                os.set_inheritable(fd, False)
            return cls(channel, fds[1], replug=kind == "replug")
        except (ValueError, IndexError, OSError) as error:
            raise ConfigError(f"{HANDOVER} is {told!r}: {error}") from None

    def prepared(self, config: Config, backends: Mapping[str, Backend]) -> tuple[Config, ActivationSockets]:
        """Whether this process can go on with what there is: its configuration, with sockets that whoever has started
        the server has handed down to that. Raises UsbvfiodError."""
        try:
            self._say("offer")
            message = self._expect("offer")
            check_format(message.body.get("format"))  # of another one nothing else is expected to be understood
            self.log_fd = descriptor(message, "log")
            offer = self._offer = said(Offer, message)
            sockets = ActivationSockets(offer.inherited.get("socket"), offer.inherited.get("control"))
            config = serving_them(config, sockets)
            self._check(offer, config, backends)
        except UsbvfiodError as error:
            self.refuse(str(error))
            raise
        return config, sockets

    def _check(self, offer: Offer, config: Config, backends: Mapping[str, Backend]) -> None:
        """Raises ConfigError, PluginError and DeviceError."""
        own = fixed(config.server)
        for name, value in offer.fixed.items():
            if name in own and own[name] != value:
                raise ConfigError(
                    f"{name} is {value or 'not set'} while the guest runs, and would be {own[name] or 'not set'}; "
                    "restart the server to change it"
                )
        for each in offer.attachments:
            if each.backend not in backends:
                raise PluginError(
                    f"device {each.spec} is plugged in, and there is no backend {each.backend} here; "
                    "install its plugin, or detach the device"
                )
        if offer.refusals and not self._replug:
            raise DeviceError(f"{'; '.join(offer.refusals)} (--replug unplugs what cannot be handed over for a moment)")

    def freeze(self) -> ServerState:
        """Have the server stop, and get its state. The guest waits from now on. Raises UsbvfiodError."""
        self._say("freeze", pack(Freeze(self._replug)))
        message = self._expect("state", UNPLUGGED)
        self._fds = message.fds
        return unpack(ServerState, message.body)

    def descriptor(self, name: str) -> int:
        """The descriptor of this name, which belongs to the caller from now on. Raises ChannelClosed if it has not
        come."""
        if name not in self._fds:
            raise ChannelClosed(f"the server's state has come without the descriptor {name!r}")
        return self._fds.pop(name)

    def descriptors(self, prefix: str) -> dict[str, int]:
        """The descriptors whose names begin so, without that; they belong to the caller from now on."""
        names = [name for name in self._fds if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._fds.pop(name) for name in names}

    def accept(self) -> None:
        """Everything is there: have the server go, and return when this process is the server. Raises UsbvfiodError."""
        self._say("accept", pack(Accept(os.getpid())))
        self._expect("go")
        self._tell(GOES)
        self._say("gone")
        # From here on its log goes where the server's went.
        os.dup2(self.log_fd, 1)
        os.dup2(self.log_fd, 2)
        os.close(self.log_fd)

    def gone_on(self, loop: Loop, alone: Callable[[], object]) -> None:
        """This process serves: whoever has started it is told. `alone` is called when the other one has said its last
        word to the service manager."""

        def ended() -> None:
            loop.remove_reader(self._channel.fileno())
            self._channel.close()
            alone()

        loop.add_reader(self._channel.fileno(), ended)
        self._tell(SERVES)
        if self._report is not None:
            os.close(self._report)
            self._report = None
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def refuse(self, reason: str) -> None:
        """Tell the server why this process does not take its place."""
        try:
            self._channel.send("failed", pack(Failed(reason)))
        except (ChannelClosed, OSError):
            pass

    # -- own ---------------------------------------------------------------------------------------------------------

    def _tell(self, byte: bytes) -> None:
        """Whoever has started this process, if it waits."""
        if self._report is not None:
            try:
                os.write(self._report, byte)
            except OSError:
                pass  # it has ended

    def _say(self, step: str, body: Mapping[str, Any] | None = None) -> None:
        """Raises DeviceError with what the server has said instead of waiting for this, and ChannelClosed."""
        try:
            self._channel.send(step, body)
        except ChannelClosed as error:
            try:
                self._expect("nothing", 0.0)
            except ChannelClosed:
                raise error from None

    def _expect(self, step: str, timeout: float = ANSWER) -> Message:
        """Raises DeviceError with what the server says instead, and ChannelClosed."""
        message = self._channel.receive(timeout)
        if message is None:
            raise ChannelClosed(f"the server has not answered within {timeout:g} s")
        if message.step == "failed":
            raise DeviceError(f"the server goes on as it was: {said(Failed, message).message}")
        if message.step != step:
            raise ChannelClosed(f"the server answers {message.step!r}, not {step!r}")
        return message


def reasonable(error: Exception) -> UsbvfiodError:
    """An error of what was built from a state, for people."""
    if isinstance(error, UsbvfiodError):
        return error
    if isinstance(error, KeyError):
        return StateError(f"the server's state has come without {error}")
    return StateError(f"{type(error).__name__}: {error}")
