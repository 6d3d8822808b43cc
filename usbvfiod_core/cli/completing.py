"""What a shell offers in the place of an argument: devices, attachments, ports, names of backends and plugins.

Whatever goes wrong, nothing is offered: the shell shows what the user types, and the command says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsbvfiodError
from ..hooks.loading import GROUP
from ..hooks.registry import Registry
from ..installed import entry_points
from ..visible import visible
from .completing_options import options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

COMPLETING = "_USBVFIOD_COMPLETE"
"""What click looks at under the name `usbvfiod`, to see whether a shell asks; it asks without arguments."""
PATIENCE = 2.0
"""Seconds in which a server must answer somebody who waits behind a key."""


def _offering(choices: Callable[[click.Context], Iterable[tuple[str, str]]]) -> Complete:
    """A click callback that offers what of `choices`, values and what they are, begins with what is typed."""

    @wraps(choices)
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # loaded by a shell that completes, by nobody else

        try:
            return [
                CompletionItem(value, help=visible(told))
                for value, told in choices(context)
                if value.startswith(incomplete) and value.isprintable()  # else it would be another line, or several
            ]
        except (UsbvfiodError, OSError):
            return []

    return complete


def devices(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Devices that a backend lists, by their addresses, and behind a `?` their options."""
    offer = _options(incomplete) if "?" in incomplete else _devices
    return offer(context, parameter, incomplete)


def _options(incomplete: str) -> Complete:
    def choices(context: click.Context) -> Iterable[tuple[str, str]]:
        registry = context.find_object(Registry)
        backend = context.find_root().params.get("backend")
        return options(registry, backend, incomplete) if registry is not None else ()

    return _offering(choices)


@_offering
def _devices(context: click.Context) -> Iterable[tuple[str, str]]:
    registry = context.find_object(Registry)
    for name, backend in sorted((registry.backends() if registry is not None else {}).items()):
        try:
            found = backend.list_devices()
        except Exception:  # a plugin's fault, which `devices` tells of
            continue
        for info in found:
            yield f"{name}:{info.address}", info.name


@_offering
def attachments(context: click.Context) -> Iterable[tuple[str, str]]:
    """Attachments of the running server, by name or number."""
    for each in _ask(context, "list")["attachments"]:
        yield each["name"] or str(each["number"]), f"{each['product']}, {each['state']}"


def attachable(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Attachments that are not plugged in, and devices."""
    held = [each for each in attachments(context, parameter, incomplete) if not str(each.help).endswith(", plugged")]
    return held + devices(context, parameter, incomplete)


def explained(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Attachments, and devices."""
    return attachments(context, parameter, incomplete) + devices(context, parameter, incomplete)


@_offering
def ports(context: click.Context) -> Iterable[tuple[str, str]]:
    """Ports of the controller that are free, of the kind that the attachment has."""
    status = _ask(context, "status")
    usb2, usb3 = status["server"]["usb2_ports"], status["server"]["usb3_ports"]
    taken = {port: each for each in status["attachments"] for port in (each["port"], *each["ports"])}
    who = context.params.get("attachment")
    meant = [each["port"] for each in status["attachments"] if who in (each["name"], str(each["number"]), each["spec"])]
    for port in range(1, usb2 + usb3 + 1):
        same = not meant or not meant[0] or (meant[0] > usb2) == (port > usb2)
        if port not in taken and same:
            yield str(port), "USB 3" if port > usb2 else "USB 2"


@_offering
def backends(context: click.Context) -> Iterable[tuple[str, str]]:
    """Names of backends."""
    registry = context.find_object(Registry)
    for name in sorted(registry.backends() if registry is not None else {}):
        yield name, ""


@_offering
def plugins(context: click.Context) -> Iterable[tuple[str, str]]:
    """Names of installed plugins."""
    for name in sorted({each.name for each in entry_points(GROUP)}):
        yield name, ""


@_offering
def commands(context: click.Context) -> Iterable[tuple[str, str]]:
    """Names of commands."""
    group = context.find_root().command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        yield name, group.commands[name].get_short_help_str()


def _ask(context: click.Context, request: str) -> dict[str, Any]:
    """What the server that is meant answers. Raises UsbvfiodError."""
    from .control import ControlConnection, find_server  # a server completes nothing, and asks none

    path = find_server(context.params.get("control_path"), context.params.get("vm"), required=True)
    assert path is not None
    with ControlConnection(path, PATIENCE) as server:
        return server.request(request)
