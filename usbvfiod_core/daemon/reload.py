"""Reading the configuration again while the server runs: what has changed in it, and nothing else, is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

from ..errors import ConfigError, DeviceError, UsbvfiodError
from ..usb.device import Loop
from .attachments import Attachments
from .config import Config, DeviceSpec
from .intents import Attachment
from .peers import Policy

log = logging.getLogger(__name__)


Done = Callable[[dict[str, Any] | UsbvfiodError], object]


class Reloading:
    """Reads the configuration of a server again. `config` is what it was told last; `read` reads it anew, in a thread,
    and `set_policy` is told who may control the server. On the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        attachments: Attachments,
        config: Config,
        read: Callable[[Config], Config],
        set_policy: Callable[[Policy], object],
    ) -> None:
        self.config = config
        self._loop = loop
        self._attachments = attachments
        self._read = read
        self._set_policy = set_policy
        self.reading = False
        """Whether one is under way: until then nobody takes the place of the server, who would not know of it."""
        self.held = False
        """While it is set, none begins: another process is about to take the place of the server."""

    def begin(self, done: Done) -> None:
        """Read the configuration file again, and do what has changed in it. An error changes nothing."""
        config = self.config
        if config.command_line.file is None:
            done(ConfigError("this server was started without a configuration file"))
            return
        if self.held:
            done(DeviceError("another process is about to take the place of the server; try again"))
            return
        if self.reading:
            done(ConfigError("the configuration is already being read again"))
            return
        self.reading = True

        def loaded(result: Config | BaseException) -> None:
            if isinstance(result, BaseException):
                self.reading = False
                known = isinstance(result, UsbvfiodError)
                done(result if known else ConfigError(f"{type(result).__name__}: {result}"))  # type: ignore[arg-type]
                return
            self._set_policy(result.control)
            # What is only read at start stays as it is, and is named at each reload until it is restored.
            self.config = replace(result, server=config.server, plugins=config.plugins, selection=config.selection)
            carry_out(self._attachments, compare(self._attachments, config, result), finished)

        def finished(answer: dict[str, Any]) -> None:
            self.reading = False
            done(answer)

        self._loop.run_blocking(partial(self._read, config), loaded)


def log_reload(result: dict[str, Any] | UsbvfiodError) -> None:
    """Say in the log what came of it."""
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


class Changes(NamedTuple):
    """What a new configuration asks for. `ignored` is named as in the file."""

    added: tuple[DeviceSpec, ...]
    removed: tuple[Attachment, ...]
    ignored: tuple[str, ...]


def compare(attachments: Attachments, old: Config, new: Config) -> Changes:
    """What is to be attached and detached so that the configured attachments are those of `new`."""
    added = list(new.devices)
    removed = []
    for attachment in attachments:
        if not attachment.configured:
            continue
        if attachment.spec in added:
            added.remove(attachment.spec)
        else:
            removed.append(attachment)
    # A descriptor that the command line does not name is one of the service manager's, which stands for these.
    handed_down = ("fd", "socket_path", "control_path") if old.server.fd != new.server.fd else ()
    ignored = [
        f"server.{field.name.replace('_', '-')}"
        for field in fields(old.server)
        if getattr(old.server, field.name) != getattr(new.server, field.name) and field.name not in handed_down
    ]
    plugins = old.plugins.keys() | new.plugins.keys()
    ignored += [f"plugins.{name}" for name in sorted(plugins) if old.plugins.get(name) != new.plugins.get(name)]
    ignored += ["plugins"] if old.selection != new.selection else []
    return Changes(tuple(added), tuple(removed), tuple(ignored))


def carry_out(
    attachments: Attachments,
    changes: Changes,
    done: Callable[[dict[str, Any]], object],
    ports_of: Callable[[DeviceSpec], Iterable[int]] = lambda spec: (),
) -> None:
    """Detach, then attach, because what is new may want the port or the device of what goes.

    `done` is told what came of it, on the loop's thread, in this call if there is nothing to do. A device that does
    not give its transfers back is waited for. `ports_of` gives the ports that a device has had.
    """
    leaving, coming = len(changes.removed), len(changes.added)
    errors: list[str] = []

    def proceed() -> None:
        if leaving == coming == 0:
            done(
                {
                    "ok": True,
                    "added": [spec.text for spec in changes.added],
                    "removed": [attachment.spec.text for attachment in changes.removed],
                    "ignored": list(changes.ignored),
                    "errors": errors,
                }
            )

    def detached(result: object) -> None:
        nonlocal leaving
        leaving -= 1
        if not leaving:
            attach()

    def attached(result: Attachment | UsbvfiodError) -> None:
        nonlocal coming
        coming -= 1
        if isinstance(result, UsbvfiodError):
            errors.append(str(result))
        proceed()

    def attach() -> None:
        for spec in changes.added:
            attachments.attach(spec, attached, configured=True, ports=ports_of(spec))
        proceed()

    for attachment in changes.removed:
        attachments.detach(attachment, detached, why="the configuration has it no more", forget=True)
    if not changes.removed:
        attach()
