"""Writes docs/commands.md from the command line itself: `make docs`, or `python -m tests.command_pages`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import click

from usbvfiod_core.cli.command import application
from usbvfiod_core.cli.plugin_page import option_rows
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.options import Schema
from usbvfiod_core.virtual import VirtualBackend

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "commands.md"

HEAD = """# Every command and option

Made by `make docs` from what `usbvfiod --help`, `usbvfiod COMMAND --help` and `usbvfiod plugins show NAME` print; do
not edit. [The command line](cli.md) says what for and how: device specifications, attachments, the log, exit codes.
Commands and options of plugins are in their READMEs.
"""

COMMON = 4
"""Options of so many commands are told once."""


def page() -> str:
    """The whole page."""
    group = application(Registry())
    assert isinstance(group, click.Group)
    commands = {("usbvfiod",): group, **dict(_commands(("usbvfiod",), group))}
    counted = Counter(row for command in commands.values() for row in _rows(command))
    common = {row: None for row, count in counted.items() if count >= COMMON}
    parts = [HEAD, "## Common options\n", _table(("option", ""), common)]
    for path, command in commands.items():
        parts += _command(path, command, common)
    parts.append("## Options of virtual devices\n")
    for address, options in VirtualBackend().kinds.items():
        parts += [f"### `virtual:{address}`\n", _options(Schema(options))]
    parts += [
        "## Options of the host's devices\n",
        "With the backends `usbfs` and `libusb`.\n",
        _options(Schema(HostOptions)),
    ]
    return "\n".join(parts)


def _commands(path: tuple[str, ...], group: click.Group) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands of a group, and those below them."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands((*path, name), command)


def _rows(command: click.Command) -> list[tuple[str, str]]:
    """The options of a command, and what they do."""
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    return [(_names(each), f"{each.help} {_limits(each)}".strip()) for each in options]


def _command(path: tuple[str, ...], command: click.Command, common: Container[tuple[str, str]]) -> Iterator[str]:
    name = " ".join(path)
    usage = command.collect_usage_pieces(click.Context(command, info_name=name))
    yield f"{'#' * max(len(path), 2)} {' '.join(path[1:]) or name}\n"
    yield f"`{' '.join([name, *usage])}`\n"
    yield from (f"{_paragraph(each)}\n" for each in re.split(r"\n\s*\n", (command.help or "").strip()))
    own = [row for row in _rows(command) if row not in common]
    if own:
        yield _table(("option", ""), own)
    shared = [row[0].split()[0].strip("`") for row in _rows(command) if row in common]
    if shared:
        yield f"[Common options](#common-options): {', '.join(f'`{each}`' for each in shared)}.\n"
    if command.epilog:
        yield "See [exit codes](cli.md#exit-codes).\n"


def _names(option: click.Option) -> str:
    wanted = option.metavar or ("|".join(option.type.choices) if isinstance(option.type, click.Choice) else "")
    return f"`{', '.join(option.opts)}{' ' * bool(wanted)}{wanted}`"


def _limits(option: click.Option) -> str:
    said = []
    if option.show_default:
        said.append(f"default {option.default}")
    if isinstance(option.type, (click.IntRange, click.FloatRange)) and option.type.max is not None:
        said.append(f"{option.type.min} to {option.type.max}")
    if option.required:
        said.append("required")
    return f"({', '.join(said)})" if said else ""


def _options(schema: Schema) -> str:
    return _table(("option", "value", "default", ""), ((f"`{key}`", *rest) for key, *rest in option_rows(schema)))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _paragraph(text: str) -> str:
    if text.startswith("\b\n"):  # as it is, which is how click marks it
        return f"```\n{chr(10).join(line.strip() for line in text.splitlines()[1:])}\n```"
    return " ".join(text.split())


if __name__ == "__main__":
    DOCUMENT.write_text(page())
