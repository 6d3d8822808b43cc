"""Reading the configuration again while the server runs: what has changed in it, and nothing else, is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from ..errors import UsbvfiodError
from .attachments import Attachments
from .config import Config, DeviceSpec
from .intents import Attachment


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
    ignored = [
        f"server.{field.name.replace('_', '-')}"
        for field in fields(old.server)
        if getattr(old.server, field.name) != getattr(new.server, field.name)
    ]
    plugins = old.plugins.keys() | new.plugins.keys()
    ignored += [f"plugins.{name}" for name in sorted(plugins) if old.plugins.get(name) != new.plugins.get(name)]
    ignored += ["plugins"] if old.selection != new.selection else []
    return Changes(tuple(added), tuple(removed), tuple(ignored))


def carry_out(attachments: Attachments, changes: Changes, done: Callable[[dict[str, Any]], object]) -> None:
    """Detach, then attach, because what is new may want the port or the device of what goes.

    `done` is told what came of it, on the loop's thread, in this call if there is nothing to do. A device that does
    not give its transfers back is waited for.
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
            attachments.attach(spec, attached, configured=True)
        proceed()

    for attachment in changes.removed:
        attachments.detach(attachment, detached, why="the configuration has it no more", forget=True)
    if not changes.removed:
        attach()
