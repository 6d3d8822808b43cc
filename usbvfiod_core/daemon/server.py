"""The composition root: the only file that knows every part. It serves one VM until it is told to end."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..descriptors import DESCRIPTORS, allow
from ..errors import ConfigError, DeviceError, PluginError, UsbvfiodError
from ..hooks.registry import Registry
from ..installed import version
from ..rights import use_opener
from ..serving import ControllerServer
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device
from ..vfio_user.listener import Adopted
from . import heap
from .attachments import Attachments
from .capture_files import CaptureFiles
from .capture_handover import CaptureSuccession
from .captures import Captures
from .config import Config, DeviceSpec, Mode, SocketError, host_backend, parse_device
from .config_file import load
from .confinement import Confinement
from .control_requests import ControlRequests
from .garbage import Garbage
from .guest_ports import GuestPorts, cautions
from .intents import Attachment, State
from .lateness import Lateness
from .log import never_waiting, set_level
from .loop import SWITCH_INTERVAL, ServerLoop
from .metrics_address import metrics_address, needs_library
from .notify import PATIENCE, ServiceManager
from .quiescing import Quiescing
from .recovery import Survival
from .reload import Reloading, log_reload
from .replacement import Replacement
from .report import device_entry
from .server_status import server_status
from .steering import Steering
from .succession import Succession

if TYPE_CHECKING:
    from .metrics_socket import MetricsSocket
    from .taking_over import TakingOver

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 3.0
"""Seconds that devices have to end what they do before the process ends without them."""
FINISH_INTERVAL = 0.005
"""Seconds between two looks whether all of that is done."""


def serve(
    config: Config,
    registry: Registry,
    backends: Mapping[str, Backend],
    *,
    control_fd: int | None = None,
    place: Path | None = None,
    taking: TakingOver | None = None,
    held: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Serve until SIGTERM, SIGINT, or the end of an inherited connection. Raises UsbvfiodError at start only.

    `control_fd` is an inherited socket for control. `place` is the directory in which commands look for control sockets
    (see `places`): this server's is there, if that can be. `taking` is the conversation with the server whose place
    this one takes, `held` what the service manager holds of one that has crashed.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    heap.share()
    loop = ServerLoop(config.spin)
    try:
        with never_waiting() as write_log:
            server = Server(
                config, registry, backends, loop, control_fd=control_fd, place=place, taking=taking, held=held
            )
            server.threads_may_start = write_log
            server.run()
    finally:
        loop.close()


class Server:
    """One VM's memory, interrupts, controller, PCI function, socket and devices, on one loop."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        backends: Mapping[str, Backend],
        loop: ServerLoop,
        *,
        control_fd: int | None = None,
        place: Path | None = None,
        taking: TakingOver | None = None,
        held: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.threads_may_start: Callable[[], object] = lambda: None
        """Called when there may be other threads than this one: a sandbox is closed before."""
        self.control_fd = control_fd
        self.confinement = Confinement(config, registry, backends, 2 if taking is None else taking.log_fd)
        self._place = place
        self.backends = backends
        self.loop = loop
        self._garbage = Garbage(loop)
        self._stopping = False
        self._errors: list[UsbvfiodError] = []
        self.survival = Survival(loop, held, taking=taking is not None)
        ports = GuestPorts(config.server.usb2_ports, config.server.usb3_ports)
        served = ControllerServer(
            loop,
            path=None if config.socket_path is None else str(config.socket_path),
            fd=config.fd,
            access=config.server.access("socket"),
            mechanisms=config.server.interrupts,
            usb2_ports=ports.usb2,
            usb3_ports=ports.usb3,
            any_memory_file=config.server.any_memory_file,
            interrupter_page=config.server.interrupter_page,
            on_ended=self._garbage.client_ended,
            on_closed=self.stop,
            look=self.confinement.look,
            state_file=self.survival.file,
        )
        self.memory, self.controller, self.transport = served.memory, served.controller, served.transport
        hub = self.controller.hub
        self.attachments = Attachments(loop, self.controller, registry, backends, ports)
        self.attachments.changed = self._attachment_changed
        self.attachments.inventory.changed = self._device_changed
        hub.leaving = self.attachments.leaving
        hub.unplugged = self._unplugged
        hub.noted = self._noted
        self.captures = Captures(loop, hub)
        self._capture_files = CaptureFiles(self.captures, config)
        self._declared = registry.declared()
        self.host = host_backend(backends)
        use_opener(config.server.opener)
        self.steering = Steering(loop, config.server, config.control, control_fd=control_fd, place=place)
        self.reloading = Reloading(loop, self.attachments, config, self._read_again, self.steering.set_policy)
        self._manager = ServiceManager(loop)
        self.devices = Succession(self.attachments, loop, registry, backends)
        self.replacement = Replacement(self, taking)
        self.quiescing = Quiescing(loop, hub, self._shown_or_not)
        self.requests = ControlRequests(
            loop,
            self.attachments,
            backends,
            self.steering.gate,
            parse=self.parse,
            status=partial(server_status, self),
            statistics=self.controller.statistics,
            reload=self.reloading.begin,
            log_level=self._set_log_level,
            captures=self.captures,
            quiescing=self.quiescing,
            upgrade=self.replacement.begin,
        )
        self.captured = CaptureSuccession(
            loop, self.captures, self._capture_files, self.requests.capturing, self.attachments
        )
        self.started = loop.time(), time.time()
        self.version = version("usbvfiod")  # from a file, which is not to be read each time
        self.lateness = Lateness(loop)
        self.metrics: MetricsSocket | None = None
        self._starting = len(config.devices)
        """Devices of which it is not known yet whether they can be used."""
        self.serving = False
        self._tidied = False

    def run(self) -> None:
        """Plug in the devices, serve, and end. Raises UsbvfiodError if a device or the socket cannot be used."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.stop)
        self.loop.add_signal_handler(signal.SIGHUP, self.reloading.begin, log_reload)
        self.loop.add_signal_handler(signal.SIGUSR2, self.replacement.signalled)
        self._manager.feed_watchdog()
        self.loop.call_soon(self._start)
        with self._garbage.seldom():
            self.loop.run_forever()
        if self._errors:
            for error in self._errors[:-1]:
                log.error("%s", error)
            raise self._errors[-1]

    def stop(self) -> None:
        """End: close the socket, give the devices back, leave the loop. A second call does not wait for devices."""
        if self._stopping:
            self.loop.stop()
            return
        if self.replacement.unfinished:
            self.replacement.fail(DeviceError("the new process was told to end"))
            return
        if self.replacement.abandon("the server was told to end"):
            return
        self._stopping = True
        self._manager.tell("STOPPING=1")
        self.transport.close()
        self.survival.close()
        self.steering.close()
        self.lateness.close()
        if self.metrics is not None:
            self.metrics.close()
        self.loop.call_later(CLOSE_TIMEOUT, self._give_up)
        self.attachments.close(self._finish)

    # -- another process takes the place, or this one takes another's; see `replacement` -----------------------------

    def replaced(self, pid: int) -> None:
        """The process of this number is the server from now on: end, when the service manager and files know all."""
        self._stopping = True
        log.info("another process has taken the place of this one, which ends")
        self.loop.call_later(PATIENCE + CLOSE_TIMEOUT, self.loop.stop)
        self._manager.tell(f"MAINPID={pid}", then=self._finish)

    def succeeds(self, since: float, started: float) -> None:
        """From now on this is the server, which was started first at these times."""
        self.started = since, started
        self._starting, self.serving, self._tidied = 0, True, True
        self._garbage.settle()
        self.survival.begin(self)
        self._manager.tell("READY=1")

    def ended_with(self, error: UsbvfiodError) -> None:
        """It does not take the place of another one after all: end, and touch nothing, which is all the other's."""
        self._stopping = True
        self._errors.append(error)
        self.loop.stop()

    # -- own ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        allow(DESCRIPTORS, log.warning)
        if self.replacement.unfinished:
            try:
                self.confinement.close(self._directories())
                self.threads_may_start()
            except Exception as error:
                self.replacement.fail(error)
            else:
                self.replacement.take()
            return
        try:
            self.steering.start(self.requests.handle, self.attachments, self.backends, self.host)
            self.serve_metrics()
        except SocketError as error:
            self._errors.append(error)
            self.stop()
            return
        try:
            self._capture_files.open()
            self.confinement.close(self._directories())
        except Exception as error:
            reason = f"the sandbox cannot be closed: {type(error).__name__}: {error}"
            self._errors.append(error if isinstance(error, ConfigError) else ConfigError(reason))
            self.stop()
            return
        self.threads_may_start()
        try:
            self._capture_files.begin()
        except UsbvfiodError as error:
            self._errors.append(error)
            self.stop()
            return
        for caution in cautions(self.config.server.usb2_ports, self.config.server.usb3_ports):
            log.warning("%s", caution)
        try:
            if self.survival.recover(self):
                self._go_on()
        except Exception as error:
            log.error("the VM of the server before this one", exc_info=error)
            self._errors.append(DeviceError("this server cannot go on with the VM of the one before it"))
            self.stop()
            return
        # Ports that are asked for are reserved here, before any device is opened and takes the next free one.
        for spec in self.config.devices:
            ports = self.survival.ports_of(spec)
            self.attachments.attach(spec, partial(self._attached, spec), configured=True, ports=ports)
        self.survival.attach_others(self)
        self._proceed()

    def _go_on(self) -> None:
        """With the VM of a server that has crashed: it does not wait for any device."""
        self.serving = True
        self._serves()
        self.controller.resume()
        self.transport.go_on()
        log.warning("the server before this one has crashed; this one goes on with its VM, whose devices come back")

    def serve_metrics(self, adopted: Adopted | None = None) -> None:
        """Where another process has served them, from `MetricsSocket.go_on` on. Raises SocketError."""
        settings = self.config.server
        if settings.metrics is None:
            return
        try:
            needs_library()
            from .server_metrics import metrics_socket  # few servers have one, and it needs a library

            self.metrics = metrics_socket(self, metrics_address(settings.metrics))
            self.metrics.start(adopted)
        except ConfigError as error:
            raise SocketError(str(error)) from None

    def _directories(self) -> set[Path]:
        """Where the server's sockets are, which it makes, and removes at its end."""
        settings = self.config.server
        paths = (settings.socket_path, settings.control_path, settings.hotplug_socket_path)
        found = {path.absolute().parent for path in paths if path is not None}
        if settings.metrics is not None and (path := metrics_address(settings.metrics).path) is not None:
            found.add(path.absolute().parent)
        return found | ({self._place} if self._place is not None else set())

    def _attached(self, spec: DeviceSpec, result: Attachment | UsbvfiodError) -> None:
        self._starting -= 1
        strict = self.config.server.strict_plugins or spec.mode is Mode.REQUIRED
        if isinstance(result, PluginError) and not strict:
            log.error("%s; the others are served", result)
        elif isinstance(result, UsbvfiodError) and self.serving:
            log.error("%s", result)
        elif isinstance(result, UsbvfiodError) and not self._stopping:
            self._errors.append(result)
        self._proceed()

    def _attachment_changed(self, attachment: Attachment) -> None:
        self.captures.attachment_changed(attachment)
        self.survival.changed()
        self._publish(attachment)
        self._proceed()

    def _publish(self, attachment: Attachment) -> None:
        control = self.steering.control
        if control is not None and control.watched:
            control.publish({"event": "attachment", "attachment": self.requests.entry(attachment)})

    def _shown_or_not(self) -> None:
        """The guest sees the plugged devices no more, or again."""
        self.survival.changed()
        for attachment in self.attachments:
            if attachment.state is State.PLUGGED:
                self._publish(attachment)

    def _noted(self, device: Device, text: str) -> None:
        for attachment in self.attachments:
            if attachment.told(device, text):
                self._attachment_changed(attachment)

    def _device_changed(self, change: str, info: DeviceInfo) -> None:
        control = self.steering.control
        if control is not None and control.watched:
            control.publish({"event": "device", "change": change, "device": device_entry(info)})

    @property
    def config(self) -> Config:
        """As it was read last."""
        return self.reloading.config

    def _read_again(self, config: Config) -> Config:
        return self._capture_files.checked(load(config.command_line, self.backends, self._declared, self.host))

    def parse(self, text: str) -> DeviceSpec:
        spec = parse_device(text, self.backends, self.config.server.backend, self._declared, self.host)
        self._capture_files.check([spec])
        return spec

    def _set_log_level(self, level: str) -> None:
        set_level(level)
        self.controller.journal.refresh()

    def _proceed(self) -> None:
        """Serve, if every device was tried, none is an error, and those that are required are there."""
        if self._stopping or self._starting:
            return
        self._tidy()
        if self.serving:
            return
        if self._errors:
            self.stop()
        elif not self.attachments.missing:
            self.serving = True
            self._listen()
        else:
            missing = ", ".join(str(attachment) for attachment in self.attachments.missing)
            self._manager.tell(f"STATUS=waiting for required devices: {missing}")

    def _tidy(self) -> None:
        """What a server that was killed has left of devices that this one does not use is given back to the host."""
        if self._tidied:
            return
        self._tidied = True
        for name, backend in self.backends.items():
            self.loop.run_blocking(backend.give_back_left_over, partial(self._has_tidied, name))

    def _has_tidied(self, name: str, result: BaseException | None) -> None:
        if result is not None:
            log.error("backend %s: %s: %s", name, type(result).__name__, result, exc_info=result)

    def _listen(self) -> None:
        try:
            self.transport.start()
        except ConfigError as error:
            self._errors.append(SocketError(str(error)))
            self.stop()
            return
        self._serves()

    def _serves(self) -> None:
        self._garbage.settle()
        self.survival.begin(self)
        self.steering.tell()
        where = self.config.socket_path if self.config.socket_path is not None else f"fd {self.config.fd}"
        self.confinement.log()
        log.info("serving on %s", where)
        self._manager.tell("READY=1")

    def _unplugged(self, port_id: int, device: Device) -> None:
        self.attachments.unplugged(port_id, device)
        self._garbage.unplugged()

    def _finish(self) -> None:
        """Leave when what devices do in threads, such as flushing an image, is done, and captures are written."""
        self.captures.finish()
        if self.loop.blocking or self.captures.writing:
            self.loop.call_later(FINISH_INTERVAL, self._finish)
        else:
            self.loop.stop()

    def _give_up(self) -> None:
        for attachment in self.attachments:
            what = "does not open" if attachment.state is State.OPENING else "does not end its transfers"
            log.warning("device %s %s; ending without it", attachment.spec.text, what)
        self.loop.stop()
