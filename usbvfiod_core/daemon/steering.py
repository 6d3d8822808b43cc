"""The sockets at which clients steer a server, who may come to them, and the place where commands find them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..usb.backend import Backend
from ..usb.device import Loop
from ..vfio_user.listener import Adopted, ListenerState, Listening, listening
from . import places
from .attachments import Attachments
from .config import SocketError
from .control import ControlSocket, ControlState
from .control_client import Handle
from .peers import HOTPLUG, Gate, Policy
from .server_settings import ServerSettings

if TYPE_CHECKING:
    from .hotplug_socket import HotplugSocket

log = logging.getLogger(__name__)


@dataclass
class SteeringState:
    """The sockets at which clients control a server. `name` is what commands find it by, `called` the same or the best
    name that there is, `link` the path of a link to the control socket, all empty for none."""

    control: ControlState | None = None
    hotplug: ListenerState | None = None
    name: str = ""
    called: str = ""
    link: str = ""


class Steering:
    """The control socket and the hotplug socket of a server, as far as it has them.

    `control_fd` is an inherited control socket, `place` the directory in which commands look for servers. All on the
    loop's thread.
    """

    def __init__(
        self, loop: Loop, settings: ServerSettings, policy: Policy, *, control_fd: int | None, place: Path | None
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._control_fd = control_fd
        self._place = place
        self._link: Path | None = None
        self._access = {name: settings.access(name) for name in ("socket", "control", "hotplug_socket")}
        self._gates = {
            "control": Gate("control socket", policy),
            "hotplug_socket": Gate("hotplug socket", policy, HOTPLUG),
        }
        self.control: ControlSocket | None = None
        self.hotplug: HotplugSocket | None = None
        self.name = ""
        """What commands find this server by; empty if they do not, or by a link."""
        self.called = ""
        """The same, or the best name that there is."""
        self.set_policy(policy)

    @property
    def gate(self) -> Gate:
        """Of the control socket."""
        return self._gates["control"]

    def set_policy(self, policy: Policy) -> None:
        """From now on peers may do this."""
        for name, gate in self._gates.items():
            gate.policy = policy.with_group(self._access[name].gid)

    def start(
        self,
        handle: Handle,
        attachments: Attachments,
        backends: Mapping[str, Backend],
        host: str | None,
    ) -> None:
        """Listen. `host` is the backend of the host's devices. Raises SocketError."""
        settings = self._settings
        self._look()
        listener = self._listener("control", settings.control_path, self._control_fd)
        if listener is not None:
            self.control = ControlSocket(self._loop, handle, self.gate)
            self.control.start(listener)
        listener = self._listener("hotplug_socket", settings.hotplug_socket_path, settings.hotplug_fd)
        if listener is not None:
            self.hotplug = self._new_hotplug(attachments, backends, host)
            self.hotplug.start(listener)
        self._be_found(handle)
        control_path = None if self.control is None else self.control.path
        self.called = places.called(self._place, control_path, self._settings.socket_path)

    # -- to another process, and from one ----------------------------------------------------------------------------

    def stop(self) -> None:
        """Hear nobody until `go_on`."""
        for sock in (self.control, self.hotplug):
            if sock is not None:
                sock.stop()

    def go_on(self) -> None:
        """End what `stop` has begun; or begin, after `restore`."""
        for sock in (self.control, self.hotplug):
            if sock is not None:
                sock.go_on()

    def state(self) -> tuple[SteeringState, dict[str, int]]:
        """What another process needs, and descriptors by name, which belong to the caller."""
        state = SteeringState(name=self.name, called=self.called, link="" if self._link is None else str(self._link))
        fds: dict[str, int] = {}
        if self.control is not None:
            state.control, found = self.control.state()
            fds.update((f"control/{name}", fd) for name, fd in found.items())
        if self.hotplug is not None:
            state.hotplug, fds["hotplug"] = self.hotplug.state()
        return state, fds

    def restore(
        self,
        state: SteeringState,
        fds: dict[str, int],
        handle: Handle,
        attachments: Attachments,
        backends: Mapping[str, Backend],
        host: str | None,
    ) -> None:
        """Take the place of another process, in the place of `start`; nobody is told or heard before `go_on`. The
        descriptors belong to this from now on. Raises OSError, ConfigError and ValueError."""
        self.name, self.called = state.name, state.called
        self._link = Path(state.link) if state.link else None
        if state.control is not None:
            control = ControlSocket(self._loop, handle, self.gate)
            own = {name.removeprefix("control/"): fd for name, fd in fds.items() if name.startswith("control/")}
            control.restore(state.control, own)
            self.control = control
        if state.hotplug is not None:
            hotplug = self._new_hotplug(attachments, backends, host)
            hotplug.stop()
            hotplug.start(listening(None, None, adopted=Adopted(state.hotplug, fds["hotplug"])))
            self.hotplug = hotplug

    def tell(self) -> None:
        """Log how commands find this server, which serves now."""
        if self.name:
            log.info("`usbvfiod list` finds this server, or among several `usbvfiod list --vm %s`", self.name)
        elif self._place is None and self.control is None and not self._settings.no_control:
            log.info("no command reaches this server: without $XDG_RUNTIME_DIR it needs --control-path PATH")

    def close(self) -> None:
        """Hang up on everybody, and remove what was made."""
        for sock in (self.control, self.hotplug):
            if sock is not None:
                sock.close()
        if self._link is not None:
            self._link.unlink(missing_ok=True)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _listener(self, name: str, path: Path | None, fd: int | None) -> Listening | None:
        """What listens at `path`, or is inherited as `fd`; None for nowhere. Raises SocketError."""
        if path is None and fd is None:
            return None
        try:
            return listening(None if path is None else str(path), fd, self._access[name])
        except ConfigError as error:
            raise SocketError(f"{name.partition('_')[0]}: {error}") from None

    def _new_hotplug(
        self, attachments: Attachments, backends: Mapping[str, Backend], host: str | None
    ) -> HotplugSocket:
        from .hotplug_socket import HotplugSocket  # few servers have one

        return HotplugSocket(self._loop, attachments, backends, host, self._gates["hotplug_socket"])

    def _look(self) -> None:
        """Say what may not be meant so, and refuse what cannot be."""
        settings = self._settings
        if self._control_fd is not None and settings.control_path is None:
            for key, value in (("group", settings.control_group), ("mode", settings.control_mode)):
                if value is not None:
                    raise SocketError(
                        f"control-{key} is for a socket that the server makes; whoever has made this one (SocketGroup= "
                        "and SocketMode= in a unit) gives it its group and mode"
                    )
        for caution in self._cautions():
            log.warning("%s", caution)

    def _cautions(self) -> Iterator[str]:
        settings = self._settings
        paths = (settings.socket_path, settings.control_path, settings.hotplug_socket_path)
        for access, path in zip(self._access.values(), paths, strict=True):
            if path is not None:
                yield from access.cautions(str(path))

    def _be_found(self, handle: Handle) -> None:
        """Have a control socket where commands look for it, or a link to the one that there is. A server that cannot
        serves all the same."""
        if self._place is None:
            return
        try:
            places.prepare(self._place)
            if self.control is None:
                self.name = self._listen_in(self._place, handle)
            elif self.control.path is not None:
                self._link = places.link(self._place, self._settings.socket_path, self.control.path)
        except ConfigError as error:
            log.info("commands such as `usbvfiod list` do not find this server: %s", error)

    def _listen_in(self, place: Path, handle: Handle) -> str:
        """Make the control socket in the directory, under a name that is free; the name. Raises ConfigError."""
        for name in places.names(self._settings.socket_path):
            try:
                listener = listening(str(place / f"{name}.sock"), None, self._access["control"])
            except ConfigError as error:
                reason = error
                continue
            self.control = ControlSocket(self._loop, handle, self.gate)
            self.control.start(listener)
            return name
        raise reason
