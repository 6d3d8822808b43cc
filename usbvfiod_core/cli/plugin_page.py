"""What `usbvfiod plugins show` says of one plugin: where it is from, its hooks, its options, its backends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..hooks.loading import Plugin
from ..hooks.options import Declared
from ..options import Schema, plain
from ..usb.backend import Backend
from .output import print_table, say

Section = tuple[str, Schema]


def facts(plugin: Plugin) -> dict[str, object]:
    """What is known of the plugin itself."""
    return {
        "name": plugin.name,
        "module": plugin.module,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "origin": plugin.origin,
        "requires": plugin.requires,
        "hooks": list(plugin.hooks),
        "commands": list(plugin.commands),
        "seconds": round(plugin.seconds, 6),
        "state": plugin.state,
        "error": plugin.error,
    }


def as_object(plugin: Plugin, declared: Declared, backends: Mapping[str, Backend]) -> dict[str, object]:
    """Everything, for JSON. `kinds` of a backend are by address; a backend without kinds has `options`."""
    return {
        **facts(plugin),
        "device_options": _options(declared.device),
        "configuration": _options(declared.config),
        "backends": [
            {
                "name": name,
                "of_host": backend.of_host,
                "options": [] if backend.kinds else _options(Schema(backend.options)),
                "kinds": {address: _options(Schema(cls)) for address, cls in backend.kinds.items()},
            }
            for name, backend in backends.items()
        ],
    }


def print_page(plugin: Plugin, declared: Declared, backends: Mapping[str, Backend]) -> None:
    """Everything, for people."""
    status = f"not used: {plugin.error}" if plugin.error else plugin.state
    lines = (
        ("plugin", f"{plugin.name} ({status})"),
        ("package", f"{plugin.distribution} {plugin.version}".strip()),
        ("module", plugin.module),
        ("file", plugin.origin),
        ("plugin API", plugin.requires),
        ("hooks", ", ".join(plugin.hooks)),
        ("commands", ", ".join(f"usbvfiod {name}" for name in plugin.commands)),
    )
    for title, text in lines:
        if text:
            say(f"{title + ':':12}{text}")
    for title, schema in _sections(plugin, declared, backends):
        say()
        say(title)
        if schema.fields:
            print_table(("OPTION", "VALUE", "DEFAULT", "WHAT IT IS FOR"), option_rows(schema))
        else:
            say("no options")


def _sections(plugin: Plugin, declared: Declared, backends: Mapping[str, Backend]) -> Iterator[Section]:
    if declared.device is not None:
        yield f"For a device, as ?{plugin.name}.OPTION=VALUE or in [device.plugins.{plugin.name}]:", declared.device
    if declared.config is not None:
        yield f"In the configuration file, in [plugins.{plugin.name}]:", declared.config
    for name, backend in backends.items():
        if not backend.kinds:
            yield f"Devices of the backend {name}, {name}:ADDRESS?OPTION=VALUE:", Schema(backend.options)
        for address, cls in backend.kinds.items():
            yield f"{name}:{address}?OPTION=VALUE", Schema(cls)


def option_rows(schema: Schema) -> list[tuple[str, ...]]:
    """Name, value, default and purpose of each option."""
    return [
        (field.key, field.wanted, "required" if field.required else _text(plain(field.default)), field.help)
        for field in schema.fields.values()
    ]


def _options(schema: Schema | None) -> list[dict[str, object]]:
    return [
        {
            "name": field.key,
            "type": field.wanted,
            "choices": field.choices,
            "required": field.required,
            "default": None if field.required else plain(field.default),
            "help": field.help,
        }
        for field in (schema.fields.values() if schema is not None else ())
    ]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(_text(each) for each in value)
    return str(value)
