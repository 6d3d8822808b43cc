"""What can be asked through the control socket: one function a request, in one table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from ..errors import ConfigError, DeviceError, PluginError, UsbvfiodError, unknown
from ..files import Descriptor, Grant
from ..hooks.options import backend_options
from ..options import paths_of
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Loop
from ..vfio_user import expendable
from ..xhci.statistics import EndpointStatistics
from . import log as daemon_log
from .attachments import Attachments
from .capture_requests import CaptureRequests
from .captures import Captures
from .config import DeviceSpec
from .control_client import ControlClient, Reply
from .intents import Attachment, State
from .lookup import Lookup, NotAttached
from .opening import AttachmentRefused
from .peers import Gate
from .quiescing import LONGEST, Quiescing
from .quiescing import PATIENCE as GUEST_PATIENCE
from .report import attachment_entry, device_entry, endpoint_entry
from .server_settings import MAX_PORTS

log = logging.getLogger(__name__)

MAX_ATTACHMENTS: Final = MAX_PORTS
"""Attachments that requests may bring about, with those that are configured: as many as a controller can have ports."""

PATIENCE: Final = 8.0
"""Seconds after which whoever has attached a device is told that it is still being opened."""

_KINDS: Final = (
    (AttachmentRefused, "refused"),
    (ConfigError, "config"),
    (DeviceError, "device"),
    (PluginError, "plugin"),
)


class RequestError(UsbvfiodError):
    """A request that is none; the message says what would be."""


class Forbidden(UsbvfiodError):
    """A request that its peer may not make."""


class _Argument(NamedTuple):
    """What a request takes: its JSON type, and whether it may be left out."""

    kind: type
    optional: bool = False


_TYPES: Final = {str: "a text", int: "a number", bool: "true or false", list: "a list of texts"}


class ControlRequests:
    """Executes requests on attachments, those that `gate` lets through. `parse` reads a device specification, the rest
    is the server's.

    `handle` is for `ControlSocket`; all on the loop's thread.
    """

    def __init__(
        self,
        loop: Loop,
        attachments: Attachments,
        backends: Mapping[str, Backend],
        gate: Gate,
        parse: Callable[[str], DeviceSpec],
        status: Callable[[], dict[str, Any]],
        statistics: Callable[[], list[EndpointStatistics]],
        reload: Callable[[Callable[[dict[str, Any] | UsbvfiodError], object]], object],
        log_level: Callable[[str], object],
        captures: Captures,
        quiescing: Quiescing,
        upgrade: Callable[[int], object],
    ) -> None:
        self._loop = loop
        self._attachments = attachments
        self._backends = backends
        self._gate = gate
        self._parse = parse
        self._status = status
        self._statistics = statistics
        self._reload = reload
        self._log_level = log_level
        self._quiescing = quiescing
        self._upgrade = upgrade
        self._lookup = Lookup(attachments, backends.keys())
        self.capturing = capturing = CaptureRequests(captures, self._lookup.find)
        self._table: dict[str, tuple[Callable[..., None], dict[str, _Argument]]] = {
            "attach": (
                self._attach,
                {"device": _Argument(str), "fd": _Argument(bool, True), "files": _Argument(list, True)},
            ),
            "detach": (self._detach, {"attachment": _Argument(str), "hold": _Argument(bool, True)}),
            "move": (self._move, {"attachment": _Argument(str), "port": _Argument(int)}),
            "send": (self._send, {"attachment": _Argument(str), "words": _Argument(list)}),
            "list": (self._list, {}),
            "status": (self._show_status, {}),
            "devices": (self._devices, {}),
            "watch": (self._watch, {"devices": _Argument(bool, True)}),
            "log-level": (self._set_log_level, {"level": _Argument(str)}),
            "reload": (self._reload_configuration, {}),
            "quiesce": (self._quiesce, {"seconds": _Argument(int, True)}),
            "resume": (self._resume, {}),
            "capture": (
                capturing.begin,
                {
                    "attachments": _Argument(list, True),
                    "endpoints": _Argument(list, True),
                    "snap_length": _Argument(int, True),
                    "replace": _Argument(bool, True),
                    "fd": _Argument(bool, True),
                },
            ),
            "capture-end": (capturing.end, {"capture": _Argument(int)}),
            "upgrade": (self._replace, {"fd": _Argument(bool)}),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Every request."""
        return tuple(self._table)

    def handle(self, client: ControlClient, request: dict[str, Any], fds: list[int], reply: Reply) -> None:
        """Execute a request and answer it, at once or later. `fds` belong to it: that of the device, then the files."""
        fd = fds.pop(0) if fds and request.get("fd") is True else None
        files = [Descriptor(each, expendable.close) for each in fds]
        try:
            function, arguments = self._check(client, request, fd, len(files))
            if fd is not None:
                arguments["fd"] = fd
            if "files" in arguments:
                arguments["files"] = dict(zip(arguments["files"], files, strict=True))
            # A request that fails has not taken the descriptor yet.
            taken, fd = fd, None
            try:
                function(client, reply, **arguments)
            except UsbvfiodError:
                fd = taken
                raise
        except UsbvfiodError as error:
            if fd is not None:
                expendable.close(fd)
            reply(failure(error))

    def entry(self, attachment: Attachment) -> dict[str, object]:
        """An attachment for people."""
        withheld = self._quiescing.seconds is not None
        ports = self._attachments.ports.owned(attachment)
        return attachment_entry(attachment, ports, self._loop.time(), withheld=withheld)

    def status(self) -> dict[str, Any]:
        """The answer to `status`."""
        endpoints: dict[int, list[dict[str, object]]] = {}
        for each in self._statistics():
            endpoints.setdefault(each.port_id, []).append(endpoint_entry(each))
        attachments = [{**self.entry(each), "endpoints": endpoints.get(each.port_id, [])} for each in self._attachments]
        return {**self._status(), "attachments": attachments}

    # -- the requests ------------------------------------------------------------------------------------------------

    def _attach(
        self,
        client: ControlClient,
        reply: Reply,
        device: str,
        fd: int | None = None,
        files: Mapping[str, Descriptor] | None = None,
    ) -> None:
        def done(result: Attachment | UsbvfiodError) -> None:
            self._answer(reply, result)

        known = self._lookup.named(device)
        if known is not None:
            # It keeps what was given when it was made: whoever made it decides what is in it.
            self._attachments.plug(known, done, fd=fd)
            return
        try:
            spec = self._parse(device)
        except ConfigError as error:
            if ":" in device or "?" in device:
                raise
            found = "" if device in self._lookup.gone else f", and {error}"
            raise ConfigError(f"there is no attachment {device}{self._lookup.hint(device)}{found}") from None
        spec = replace(spec, grant=self._grant(client, spec, files or {}))
        attachments = list(self._attachments)
        if len(attachments) >= MAX_ATTACHMENTS:
            raise DeviceError(f"there are {MAX_ATTACHMENTS} attachments already; detach one first")
        if spec.name and any(each.spec.name == spec.name for each in attachments):
            raise ConfigError(f"there already is an attachment {spec.name}; choose another name or attach that one")
        self._attachments.attach(spec, done, fd=fd, patience=PATIENCE)

    def _grant(self, client: ControlClient, spec: DeviceSpec, files: Mapping[str, Descriptor]) -> Grant:
        """What may be opened for a device that a client attaches. Raises RequestError for files that are not among its
        options, Forbidden for paths that are the server's to open, and that the client may not name."""
        options = backend_options(self._backends[spec.backend], spec.address, spec.options)
        named = paths_of(options)
        can_be_given = {each.key: each for each in named if each.flags is not None}
        given = {}
        for key, descriptor in files.items():
            if key not in can_be_given:
                raise RequestError(f"attach: {spec.text} has no file {key!r} that can be passed")
            given[str(can_be_given[key].path)] = descriptor
        if client.peer.trusted:
            return Grant(given)
        for plugin in spec.plugin_options.values():
            named += (replace(each, flags=None) for each in paths_of(plugin))
        for each in named:
            if each.flags is None:
                raise Forbidden(f"attach: only root and the server's own user may give {each.key}={each.path}")
        return Grant(given, self._gate.policy.directories)

    def _detach(self, client: ControlClient, reply: Reply, attachment: str, hold: bool = False) -> None:
        """`hold`: keep it, with the descriptors it was given, so that `attach` can bring it back as it was."""
        found = self._lookup.find(attachment)
        done = partial(self._answer, reply)
        forget = not (hold or found.configured)
        if forget:
            self._lookup.leaves(found)
        self._attachments.detach(found, done, forget=forget)

    def _move(self, client: ControlClient, reply: Reply, attachment: str, port: int) -> None:
        self._attachments.move(self._lookup.find(attachment), port, lambda result: self._answer(reply, result))

    def _send(self, client: ControlClient, reply: Reply, attachment: str, words: list[str]) -> None:
        found = self._lookup.find(attachment)
        if found.device is None or found.state is not State.PLUGGED:
            raise DeviceError(f"{found} is not plugged in{f': {found.reason}' if found.reason else ''}")
        try:
            text = found.device.command(words)
        except UsbvfiodError:
            raise
        except Exception as error:
            log.exception("%s: its device failed at %r", found, words[:1])
            raise PluginError(f"{found.name} failed: {type(error).__name__}: {error}") from error
        reply({"ok": True, "text": text})

    def _list(self, client: ControlClient, reply: Reply) -> None:
        reply({"ok": True, "attachments": [self.entry(attachment) for attachment in self._attachments]})

    def _show_status(self, client: ControlClient, reply: Reply) -> None:
        reply({"ok": True, **self.status()})

    def _devices(self, client: ControlClient, reply: Reply) -> None:
        results: dict[str, list[DeviceInfo] | BaseException] = {}

        def listed(name: str, result: list[DeviceInfo] | BaseException) -> None:
            results[name] = result
            if len(results) < len(self._backends):
                return
            devices, errors = [], []
            for name, found in sorted(results.items()):
                if isinstance(found, BaseException):
                    errors.append(f"backend {name} cannot list its devices: {found}")
                else:
                    devices += [device_entry(info) for info in found]
            reply({"ok": True, "devices": devices, "errors": errors})

        if not self._backends:
            reply({"ok": True, "devices": [], "errors": []})
        for name in self._backends:
            self._attachments.inventory.ask(name, partial(listed, name))

    def _watch(self, client: ControlClient, reply: Reply, devices: bool = False) -> None:
        client.watching = True
        client.watches_devices = devices
        if devices:
            for name in self._backends:
                self._attachments.inventory.look(name)
        reply({"ok": True, "attachments": [self.entry(attachment) for attachment in self._attachments]})

    def _set_log_level(self, client: ControlClient, reply: Reply, level: str) -> None:
        if level not in daemon_log.LEVEL_NAMES:
            raise RequestError(unknown("level", level, daemon_log.LEVEL_NAMES))
        self._log_level(level)
        reply({"ok": True})

    def _reload_configuration(self, client: ControlClient, reply: Reply) -> None:
        self._reload(lambda result: reply(failure(result) if isinstance(result, UsbvfiodError) else result))

    def _quiesce(self, client: ControlClient, reply: Reply, seconds: int = GUEST_PATIENCE) -> None:
        if not 0 <= seconds <= LONGEST:
            raise RequestError(f"quiesce: seconds is 0 to {LONGEST}")

        def done(error: DeviceError | None) -> None:
            if error is None:
                self._list(client, reply)
            else:
                reply(failure(error))

        self._quiescing.begin(seconds, done)

    def _resume(self, client: ControlClient, reply: Reply) -> None:
        self._quiescing.end()
        self._list(client, reply)

    def _replace(self, client: ControlClient, reply: Reply, fd: int) -> None:
        """`fd`: an end of a channel, over which another process takes the place of this one (see `handing_over`)."""
        self._upgrade(fd)
        reply({"ok": True})

    # -- own ---------------------------------------------------------------------------------------------------------

    def _answer(self, reply: Reply, result: Attachment | UsbvfiodError) -> None:
        if isinstance(result, Attachment):
            reply({"ok": True, "attachment": self.entry(result)})
        else:
            reply(failure(result))

    def _check(
        self, client: ControlClient, request: dict[str, Any], fd: int | None, files: int
    ) -> tuple[Callable[..., None], dict[str, Any]]:
        """The function of a request and its arguments. Raises RequestError and Forbidden."""
        name = request.pop("request", None)
        if not isinstance(name, str):
            raise RequestError(f'a request has "request": one of {", ".join(sorted(self._table))}')
        if name not in self._table:
            raise RequestError(unknown("request", name, self._table))
        refusal = self._gate.refusal(client.peer, name)
        if refusal is not None:
            raise Forbidden(refusal)
        function, known = self._table[name]
        for key, value in request.items():
            if key not in known:
                raise RequestError(f"{name}: {unknown('argument', key, known)}")
            if not _is(value, known[key].kind):
                raise RequestError(f"{name}: {key} is {_TYPES[known[key].kind]}")
        for key, argument in known.items():
            if key not in request and not argument.optional:
                raise RequestError(f"{name}: {key} is missing")
        wanted = request.get("files", [])
        if (request.pop("fd", False) and fd is None) or len(wanted) > files:
            raise RequestError(f"{name}: no file descriptor came with the request, or too few")
        if len(set(wanted)) != len(wanted):
            raise RequestError(f"{name}: files names an option twice")
        return function, request


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a JSON type of `_TYPES`."""
    if kind is int and isinstance(value, bool):
        return False  # JSON's true is no number, though Python's is
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, kind)


def failure(error: UsbvfiodError) -> dict[str, Any]:
    """The answer to a request that failed."""
    kind = next((kind for known, kind in _KINDS if isinstance(error, known)), "failure")
    if isinstance(error, RequestError):
        kind = "request"
    elif isinstance(error, NotAttached):
        kind = "not-attached"
    elif isinstance(error, Forbidden):
        kind = "forbidden"
    return {"ok": False, "error": {"kind": kind, "message": str(error)}}
