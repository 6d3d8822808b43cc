"""A server that takes another one's place, and is itself replaced one day: what `Server` does of `usbvfiod upgrade`."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError, DeviceError, UsbvfiodError
from ..usb.backend import Backend
from ..vfio_user.listener import Adopted
from ..vfio_user.transport import Server as Transport
from ..xhci.controller import Controller
from .attachments import Attachments
from .capture_handover import CaptureSuccession
from .channel import Channel
from .config import Config, DeviceSpec
from .confinement import Confinement
from .control_requests import ControlRequests
from .handing_over import HandingOver
from .intents import Attachment
from .loop import ServerLoop
from .quiescing import Quiescing
from .recovery import Survival
from .reload import Reloading, carry_out, compare
from .server_state import ServerState, fixed, granted_spec, ports_of
from .steering import Steering
from .succession import Succession
from .successor import start
from .taking_over import TakingOver, reasonable

if TYPE_CHECKING:
    from .metrics_socket import MetricsSocket

log = logging.getLogger(__name__)


class Replaced(Protocol):
    """What this needs of the server."""

    loop: ServerLoop
    confinement: Confinement
    transport: Transport
    controller: Controller
    attachments: Attachments
    devices: Succession
    captured: CaptureSuccession
    steering: Steering
    requests: ControlRequests
    metrics: MetricsSocket | None
    quiescing: Quiescing
    reloading: Reloading
    survival: Survival
    backends: Mapping[str, Backend]
    host: str | None
    control_fd: int | None
    serving: bool
    started: tuple[float, float]

    @property
    def config(self) -> Config: ...
    def parse(self, text: str) -> DeviceSpec: ...
    def serve_metrics(self, adopted: Adopted | None = None) -> None: ...
    def replaced(self, pid: int) -> None: ...
    def succeeds(self, since: float, started: float) -> None: ...
    def ended_with(self, error: UsbvfiodError) -> None: ...


class Replacement:
    """Of one server. `taking` is the conversation with the server whose place it takes, if it does. All on the loop's
    thread."""

    def __init__(self, server: Replaced, taking: TakingOver | None) -> None:
        self._server = server
        self._taking = taking
        self.transport, self.controller = server.transport, server.controller
        self.attachments, self.devices = server.attachments, server.devices
        self._handing = HandingOver(server.loop, self)
        self._door: socket.socket | None = None
        self.upgrades = 0

    # -- this server is replaced -------------------------------------------------------------------------------------

    def begin(self, fd: int) -> None:
        """The request `upgrade`: `fd` is the other process's end of a channel, and belongs to this if nothing is
        raised. Raises ConfigError and DeviceError."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ConfigError(f"upgrade: its descriptor is not a socket: {error.strerror}") from None
        try:
            if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
                raise ConfigError("upgrade: its descriptor is to be an end of a pair of sockets, SOCK_SEQPACKET")
            self._handing.begin(Channel(sock, plain=True))
        except UsbvfiodError:
            sock.detach()
            raise

    def signalled(self) -> None:
        """SIGUSR2: start a process with this server's options, which takes its place. From inside of a sandbox the
        shell beside it does, which has them from before it was closed."""
        server = self._server
        try:
            witness = server.confinement.witness
            if witness is not None:
                door = witness.take_door()
                if door is not None:
                    self._open_door(door)
                witness.upgrade()
            elif server.confinement.stages:
                raise DeviceError("the sandbox lets no program be started, and no shell is beside it")
            else:
                own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with other:
                    self._open_door(own)
                    start(other.fileno())
        except (UsbvfiodError, OSError) as error:
            log.error("no process can be started to take this server's place: %s", error)

    def abandon(self, reason: str) -> bool:
        """The server is told to end: nobody takes its place, unless somebody has done so in this moment; whether
        somebody has."""
        return self._handing.abandon(reason)

    @property
    def steering(self) -> Steering:
        return self._server.steering

    @property
    def metrics(self) -> MetricsSocket | None:
        return self._server.metrics

    @property
    def captures(self) -> CaptureSuccession:
        return self._server.captured

    @property
    def reloading(self) -> Reloading:
        return self._server.reloading

    @property
    def hindrance(self) -> str:
        """Why nobody can take its place now; empty if somebody can."""
        if not self._server.serving:
            return "the server does not serve yet, it waits for devices; restart it"
        if self._server.quiescing.seconds is not None:
            return "the devices are kept from the guest; `usbvfiod resume` first"
        return ""

    @property
    def fixed(self) -> dict[str, str]:
        """See `server_state.fixed`."""
        return fixed(self._server.config.server)

    @property
    def inherited(self) -> dict[str, int | None]:
        """The descriptors of sockets that whoever has started it has handed down."""
        return {"socket": self._server.config.fd, "control": self._server.control_fd}

    @property
    def since(self) -> tuple[float, float, int]:
        """When it was started, by `time.monotonic` and `time.time`, and how often it was replaced."""
        return (*self._server.started, self.upgrades)

    def handed_over(self) -> None:
        """Another process goes on, and the service manager hears this one for the last time."""
        self._server.survival.handed_over()

    def replaced(self, pid: int) -> None:
        """The process of this number is the server from now on."""
        self._server.replaced(pid)

    def _open_door(self, door: socket.socket) -> None:
        """Hear whoever was started to take the place; there may be several, one after the other."""
        if self._door is not None:
            self._server.loop.remove_reader(self._door.fileno())
            self._door.close()
        self._door = door
        door.setblocking(False)
        self._server.loop.add_reader(door.fileno(), self._knocked)

    def _knocked(self) -> None:
        assert self._door is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._door, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._server.loop.remove_reader(self._door.fileno())
            self._door.close()
            self._door = None
        for fd in fds:
            try:
                self.begin(fd)
            except UsbvfiodError as error:
                log.error("this server is not replaced: %s", error)
                os.close(fd)

    # -- this server takes the place of another ----------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        """Whether it is about to take another one's place, and has not yet: then nothing is its own."""
        return self._taking is not None

    def take(self) -> None:
        """In the place of a start: everything comes from the other server. The sandbox is closed."""
        assert self._taking is not None
        try:
            state = self._taking.freeze()
            self.devices.take_over_shared(state.backends, self._taking.descriptors("backend/"))
            entries = [(each, self._taking.descriptors(f"attachment/{each.number}/")) for each in state.attachments]
            self.devices.take_over(entries, partial(self._guarded, self._built, state))
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """The other server goes on, and this one ends as if it had never been."""
        taking, self._taking = self._taking, None
        assert taking is not None
        if not isinstance(error, UsbvfiodError | OSError | ValueError | KeyError):
            log.error("the server's place cannot be taken", exc_info=error)
        known = reasonable(error)
        taking.refuse(str(known))
        self._server.ended_with(known)

    def _guarded(self, step: Callable[..., object], *arguments: object) -> None:
        if self._taking is None:
            return
        try:
            step(*arguments)
        except Exception as error:
            self.fail(error)

    def _built(self, state: ServerState, failure: UsbvfiodError | None) -> None:
        """Every device is there: build the rest around them, have the other one go, and serve."""
        server, taking = self._server, self._taking
        assert taking is not None
        if failure is not None:
            raise failure
        self.attachments.numbers = max(self.attachments.numbers, state.numbers)
        server.transport.restore(state.transport, taking.descriptors("transport/"))
        page = taking.descriptors("page").get("")
        try:
            server.controller.restore(state.controller, self.devices.device_at, page)
        finally:
            if page is not None:
                os.close(page)
        server.steering.restore(
            state.steering,
            taking.descriptors("sockets/"),
            server.requests.handle,
            server.attachments,
            server.backends,
            server.host,
        )
        control = server.steering.control
        self.captures.restore(
            state.captures, taking.descriptors("capture/"), [] if control is None else control.members
        )
        if state.metrics is not None:
            server.serve_metrics(Adopted(state.metrics, taking.descriptor("metrics")))
        taking.accept()
        self._taking = None
        self.upgrades = state.upgrades
        self._go_on(state)
        taking.gone_on(server.loop, server.survival.believed)

    def _go_on(self, state: ServerState) -> None:
        """This process is the server: the devices, the guest, then clients."""
        server = self._server
        self.devices.begin()
        self.captures.go_on()
        server.controller.resume()
        if server.metrics is not None:
            server.metrics.go_on()
        server.steering.go_on()
        server.transport.go_on()
        log.info("this server has taken the place of another one, and goes on")
        server.succeeds(state.since, state.started)
        self._settle(server.config, state)

    def _settle(self, config: Config, state: ServerState) -> None:
        """Plug in what was unplugged for this, and do what has changed in the configuration."""
        attachments = self._server.attachments
        for each in state.replug:
            if not each.configured:
                try:
                    spec = granted_spec(self._server.parse(each.spec), each)
                    attachments.attach(spec, partial(_tell, each.spec), ports=each.ports)
                except UsbvfiodError as error:
                    _tell(each.spec, error)
        carry_out(attachments, compare(attachments, config, config), _changed, partial(ports_of, state.replug))


def _tell(spec: str, result: Attachment | UsbvfiodError) -> None:
    if isinstance(result, UsbvfiodError):
        log.error("%s", result)


def _changed(result: dict[str, Any]) -> None:
    for error in result["errors"]:
        log.error("%s", error)
    if result["added"] or result["removed"]:
        log.info(
            "the configuration has changed: %d devices added, %d removed",
            *map(len, (result["added"], result["removed"])),
        )
