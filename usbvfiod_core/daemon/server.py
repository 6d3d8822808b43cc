"""The composition root: the only file that knows every part. It serves one VM until it is told to end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiled import BUILD
from ..descriptors import have_enough
from ..errors import ConfigError, PluginError, UsbvfiodError
from ..hooks.registry import Registry
from ..installed import version
from ..rights import use_opener
from ..serving import ControllerServer
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device
from .attachments import Attachments
from .capture_files import CaptureFiles
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
from .notify import notify, watchdog_interval
from .quiescing import Quiescing
from .reload import carry_out, compare
from .report import device_entry
from .steering import Steering

if TYPE_CHECKING:
    from .metrics_socket import MetricsSocket

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 3.0
"""Seconds that devices have to end what they do before the process ends without them."""
FINISH_INTERVAL = 0.005
NOTIFY_TRIES = 100
NOTIFY_PAUSE = 0.1
"""Seconds until the service manager is told again what there was no room for."""


def serve(
    config: Config,
    registry: Registry,
    backends: Mapping[str, Backend],
    *,
    control_fd: int | None = None,
    place: Path | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT, or the end of an inherited connection. Raises UsbvfiodError at start only.

    `control_fd` is an inherited socket for control. `place` is the directory in which commands look for control sockets
    (see `places`): this server's is there, if that can be.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    loop = ServerLoop(config.spin)
    try:
        with never_waiting() as write_log:
            server = Server(config, registry, backends, loop, control_fd=control_fd, place=place)
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
    ) -> None:
        self.threads_may_start: Callable[[], object] = lambda: None
        """Called when there may be other threads than this one: a sandbox is closed before."""
        self._config = config
        self._confinement = Confinement(config, registry, backends)
        self._place = place
        self._backends = backends
        self._reloading = False
        self._loop = loop
        self._garbage = Garbage(loop)
        self._stopping = False
        self._errors: list[UsbvfiodError] = []
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
            look=self._confinement.look,
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
        self._host = host_backend(backends)
        use_opener(config.server.opener)
        self._steering = Steering(loop, config.server, config.control, control_fd=control_fd, place=place)
        self._quiescing = Quiescing(loop, hub, self._shown_or_not)
        self.requests = ControlRequests(
            loop,
            self.attachments,
            backends,
            self._steering.gate,
            parse=self._parse,
            status=self._status,
            statistics=self.controller.statistics,
            reload=self._reload,
            log_level=self._set_log_level,
            captures=self.captures,
            quiescing=self._quiescing,
        )
        self._started = loop.time(), time.time()
        self._version = version("usbvfiod")  # from a file, which is not to be read each time
        self._lateness = Lateness(loop)
        self._metrics: MetricsSocket | None = None
        self._starting = len(config.devices)
        """Devices of which it is not known yet whether they can be used."""
        self._serving = False
        self._news = ""
        """What the service manager is to know."""
        self._tidied = False

    def run(self) -> None:
        """Plug in the devices, serve, and end. Raises UsbvfiodError if a device or the socket cannot be used."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload, self._log_reload)
        self._feed_watchdog()
        self._loop.call_soon(self._start)
        with self._garbage.seldom():
            self._loop.run_forever()
        if self._errors:
            for error in self._errors[:-1]:
                log.error("%s", error)
            raise self._errors[-1]

    def stop(self) -> None:
        """End: close the socket, give the devices back, leave the loop. A second call does not wait for devices."""
        if self._stopping:
            self._loop.stop()
            return
        self._stopping = True
        self._notify("STOPPING=1")
        self.transport.close()
        self._steering.close()
        self._lateness.close()
        if self._metrics is not None:
            self._metrics.close()
        self._loop.call_later(CLOSE_TIMEOUT, self._give_up)
        self.attachments.close(self._finish)

    # -- own ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        have_enough()
        try:
            self._steering.start(self.requests.handle, self.attachments, self._backends, self._host)
            self._serve_metrics()
        except SocketError as error:
            self._errors.append(error)
            self.stop()
            return
        try:
            self._capture_files.open()
            self._confinement.close(self._directories())
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
        for caution in cautions(self._config.server.usb2_ports, self._config.server.usb3_ports):
            log.warning("%s", caution)
        # Ports that are asked for are reserved here, before any device is opened and takes the next free one.
        for spec in self._config.devices:
            self.attachments.attach(spec, partial(self._attached, spec), configured=True)
        self._proceed()

    def _serve_metrics(self) -> None:
        """Raises SocketError."""
        settings = self._config.server
        if settings.metrics is None:
            return
        try:
            needs_library()
            from .metrics_socket import MetricsSocket  # few servers have one, and it needs a library

            address = metrics_address(settings.metrics)
            self._metrics = MetricsSocket(self._loop, address, self._measured, access=settings.access("metrics"))
            self._metrics.start()
        except ConfigError as error:
            raise SocketError(str(error)) from None

    def _measured(self) -> dict[str, dict[str, Any]]:
        return {self._steering.called: self.requests.status(percentiles=False)}

    def _directories(self) -> set[Path]:
        """Where the server's sockets are, which it makes, and removes at its end."""
        settings = self._config.server
        paths = (settings.socket_path, settings.control_path, settings.hotplug_socket_path)
        found = {path.absolute().parent for path in paths if path is not None}
        if settings.metrics is not None and (path := metrics_address(settings.metrics).path) is not None:
            found.add(path.absolute().parent)
        return found | ({self._place} if self._place is not None else set())

    def _attached(self, spec: DeviceSpec, result: Attachment | UsbvfiodError) -> None:
        self._starting -= 1
        strict = self._config.server.strict_plugins or spec.mode is Mode.REQUIRED
        if isinstance(result, PluginError) and not strict:
            log.error("%s; the others are served", result)
        elif isinstance(result, UsbvfiodError) and not self._stopping:
            self._errors.append(result)
        self._proceed()

    def _attachment_changed(self, attachment: Attachment) -> None:
        self.captures.attachment_changed(attachment)
        self._publish(attachment)
        self._proceed()

    def _publish(self, attachment: Attachment) -> None:
        control = self._steering.control
        if control is not None and control.watched:
            control.publish({"event": "attachment", "attachment": self.requests.entry(attachment)})

    def _shown_or_not(self) -> None:
        """The guest sees the plugged devices no more, or again."""
        for attachment in self.attachments:
            if attachment.state is State.PLUGGED:
                self._publish(attachment)

    def _noted(self, device: Device, text: str) -> None:
        for attachment in self.attachments:
            if attachment.told(device, text):
                self._attachment_changed(attachment)

    def _device_changed(self, change: str, info: DeviceInfo) -> None:
        control = self._steering.control
        if control is not None and control.watched:
            control.publish({"event": "device", "change": change, "device": device_entry(info)})

    def _status(self) -> dict[str, Any]:
        client = self.transport.client
        regions = self.memory.regions
        shared = sum(region.end - region.start for region in regions if region.view is not None)
        mapped = sum(region.end - region.start for region in regions)
        return {
            "server": {
                "pid": os.getpid(),
                "usbvfiod": self._version,
                "build": BUILD,
                "name": self._steering.called,
                "started": round(self._started[1], 3),
                "seconds": round(self._loop.time() - self._started[0], 3),
                "cpu_seconds": round(time.process_time(), 6),
                "lateness": self._lateness.look(),
                "socket": "" if self._config.socket_path is None else str(self._config.socket_path),
                "usb2_ports": self._config.server.usb2_ports,
                "usb3_ports": self._config.server.usb3_ports,
                "serving": self._serving,
                "missing": [str(attachment) for attachment in self.attachments.missing],
                "sandbox": self._confinement.report,
                "quiesced": None if self._quiescing.seconds is None else round(self._quiescing.seconds, 3),
            },
            "client": None if client is None else client._asdict(),
            "memory": {"shared": shared, "unshared": mapped - shared},
        }

    def _parse(self, text: str) -> DeviceSpec:
        spec = parse_device(text, self._backends, self._config.server.backend, self._declared, self._host)
        self._capture_files.check([spec])
        return spec

    def _reload(self, done: Callable[[dict[str, Any] | UsbvfiodError], object]) -> None:
        """Read the configuration file again, and do what has changed in it. An error changes nothing."""
        config = self._config
        if config.command_line.file is None:
            done(ConfigError("this server was started without a configuration file"))
            return
        if self._reloading:
            done(ConfigError("the configuration is already being read again"))
            return
        self._reloading = True

        def loaded(result: Config | BaseException) -> None:
            if isinstance(result, BaseException):
                self._reloading = False
                known = isinstance(result, UsbvfiodError)
                done(result if known else ConfigError(f"{type(result).__name__}: {result}"))  # type: ignore[arg-type]
                return
            self._steering.set_policy(result.control)
            # What is only read at start stays as it is, and is named at each reload until it is restored.
            self._config = replace(result, server=config.server, plugins=config.plugins, selection=config.selection)
            carry_out(self.attachments, compare(self.attachments, config, result), finished)

        def read() -> Config:
            return self._capture_files.checked(load(config.command_line, self._backends, self._declared, self._host))

        def finished(answer: dict[str, Any]) -> None:
            self._reloading = False
            done(answer)

        self._loop.run_blocking(read, loaded)

    def _set_log_level(self, level: str) -> None:
        set_level(level)
        self.controller.journal.refresh()

    def _log_reload(self, result: dict[str, Any] | UsbvfiodError) -> None:
        if isinstance(result, UsbvfiodError):
            log.error("the configuration was not changed: %s", result)
            return
        log.info(
            "the configuration was read again: %d devices added, %d removed",
            *map(len, (result["added"], result["removed"])),
        )
        for error in result["errors"]:
            log.error("%s", error)
        for name in result["ignored"]:
            log.warning("%s is read only at start; restart the server to apply it", name)

    def _notify(self, state: str, tries: int = NOTIFY_TRIES) -> None:
        """Tell the service manager, when it reads. Only the newest news is told again."""
        if tries == NOTIFY_TRIES:
            self._news = state
        if state != self._news or notify(state):
            return
        if tries:
            self._loop.call_later(NOTIFY_PAUSE, self._notify, state, tries - 1)
        else:
            log.warning("the service manager was not told %s: it does not read", state)

    def _feed_watchdog(self) -> None:
        interval = watchdog_interval()
        if interval is not None:
            notify("WATCHDOG=1")  # and again soon, if nobody could be told
            self._loop.call_later(interval, self._feed_watchdog)

    def _proceed(self) -> None:
        """Serve, if every device was tried, none is an error, and those that are required are there."""
        if self._stopping or self._serving or self._starting:
            return
        self._tidy()
        if self._errors:
            self.stop()
        elif not self.attachments.missing:
            self._serving = True
            self._listen()
        else:
            missing = ", ".join(str(attachment) for attachment in self.attachments.missing)
            self._notify(f"STATUS=waiting for required devices: {missing}")

    def _tidy(self) -> None:
        """What a server that was killed has left of devices that this one does not use is given back to the host."""
        if self._tidied:
            return
        self._tidied = True
        for name, backend in self._backends.items():
            self._loop.run_blocking(backend.give_back_left_over, partial(self._has_tidied, name))

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
        self._garbage.settle()
        if self._steering.name:
            log.info("`usbvfiod list` finds this server, or among several `usbvfiod list --vm %s`", self._steering.name)
        where = self._config.socket_path if self._config.socket_path is not None else f"fd {self._config.fd}"
        self._confinement.log()
        log.info("serving on %s", where)
        self._notify("READY=1")

    def _unplugged(self, port_id: int, device: Device) -> None:
        self.attachments.unplugged(port_id, device)
        self._garbage.unplugged()

    def _finish(self) -> None:
        """Leave when what devices do in threads, such as flushing an image, is done, and captures are written."""
        self.captures.finish()
        if self._loop.blocking or self.captures.writing:
            self._loop.call_later(FINISH_INTERVAL, self._finish)
        else:
            self._loop.stop()

    def _give_up(self) -> None:
        for attachment in self.attachments:
            what = "does not open" if attachment.state is State.OPENING else "does not end its transfers"
            log.warning("device %s %s; ending without it", attachment.spec.text, what)
        self._loop.stop()
