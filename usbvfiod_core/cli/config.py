"""`usbvfiod config`: what the configuration file and the command line say together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..daemon.config import CORE_OPTIONS, Config, DeviceSpec
from ..daemon.config_file import LISTS
from ..daemon.peers import ALL, REQUESTS
from ..daemon.server_settings import ServerSettings
from ..hooks.options import Declared
from ..options import Schema
from .checks import Given
from .groups import SectionedGroup
from .output import say, say_lines

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@click.group(cls=SectionedGroup, invoke_without_command=True)
@click.pass_context
def config(context: click.Context) -> None:
    """Check or show the configuration that --config and the other options make."""
    if context.invoked_subcommand is None:
        raise click.UsageError("say what to do with the configuration: check or show", context)


@config.command()
@click.pass_obj
def check(given: Given) -> None:
    """Say what is wrong with the configuration, or that nothing is.

    Every error is named with file, line and key, and so is a missing image file or directory. A device of the host may
    be absent.
    """
    made, _ = given.complete(beforehand=True)
    plugins = f", {_count(len(made.plugins), 'configured plugin')}" if made.plugins else ""
    say(f"ok: {_count(len(made.devices), 'device')}{plugins}")


@config.command()
@click.pass_obj
def show(given: Given) -> None:
    """Print the configuration as a file that says the same, with the plugins' defaults."""
    made, _ = given.complete()
    say_lines("\n".join(toml(made, given.declared)).rstrip("\n"))
    for plugin in given.registry.failures:
        say(f"# plugin {plugin.name} is not used: {plugin.error}")


def toml(made: Config, declared: Mapping[str, Declared]) -> Iterator[str]:
    """The lines of a file that means `made`."""
    yield "[server]"
    yield from _pairs(Schema(ServerSettings).to_toml(made.server))
    control = made.control
    if control.directories:
        yield "\n[control]"
        yield from _pairs({"directories": [str(each) for each in control.directories]})
    if control.rules:
        yield "\n[control.allow]"
        everything = frozenset(REQUESTS)
        for rule in control.rules:
            named = [ALL] if rule.requests == everything else [each for each in REQUESTS if each in rule.requests]
            yield from _pairs({rule.who: named})
    for device in made.devices:
        yield "\n[[device]]"
        yield from _pairs(_device(device))
        for plugin, options in device.plugin_options.items():
            schema = declared[plugin].device
            if schema is not None:
                yield f"[device.plugins.{_key(plugin)}]"
                yield from _pairs(schema.to_toml(options))
    selection = made.selection
    lists = zip(LISTS, (selection.enable, selection.disable or None, selection.require or None), strict=True)
    chosen = {key: list(names) for key, names in lists if names is not None}
    if chosen:
        yield "\n[plugins]"
        yield from _pairs(chosen)
    for plugin, its in declared.items():
        if its.config is not None:
            yield f"\n[plugins.{_key(plugin)}]"
            yield from _pairs(its.config.to_toml(made.plugins.get(plugin, its.config.default())))
    yield ""


def _device(device: DeviceSpec) -> dict[str, object]:
    values: dict[str, object] = {"backend": device.backend, "address": device.address}
    core = (device.port, device.name, device.mode.value, device.follow_port, device.pcap and str(device.pcap))
    values.update((key, value) for key, value in zip(CORE_OPTIONS, core, strict=True) if value)
    if device.options:
        values["options"] = dict(device.options)
    return values


def _pairs(values: Mapping[str, object]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_value(each)}' for key, each in value.items())} }}"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char >= " " and char != "\x7f" else f"\\u{ord(char):04x}" for char in escaped) + '"'


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
