"""`usbvfiod plugins`: which plugins are installed, what became of them, and the beginning of a new one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from ..errors import ConfigError
from ..hooks.registry import Plugin, Registry
from ..hooks.specs import PLUGIN_API
from ..installation import installation
from .groups import SectionedGroup
from .output import print_json, print_table
from .scaffold import KINDS, package, taken

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.group(cls=SectionedGroup, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List the installed plugins, their hooks, and why one is not used; or begin a new one."""
    registry: Registry = context.obj
    if context.invoked_subcommand is not None:
        return
    if as_json:
        print_json("plugins", [_entry(plugin) for plugin in registry.plugins], api=PLUGIN_API)
    elif registry.plugins:
        print_table(("PLUGIN", "PACKAGE", "STATUS", "HOOKS"), [_row(plugin) for plugin in registry.plugins])
    else:
        click.echo("no plugins: is usbvfiod itself installed?", err=True)


@plugins.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is to be.")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to write it; a new directory of the plugin's name here, if it is not given.",
)
@click.pass_context
def new(context: click.Context, name: str, kind: str, directory: Path | None) -> None:
    """Write a package for a plugin, with tests that pass.

    NAME is that of the plugin: lower-case letters, digits and dashes. Nothing that exists is overwritten.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a plugin's name has lower-case letters, digits and dashes between them, unlike {name!r}")
    registry: Registry = context.find_object(Registry) or Registry()
    reason = taken(name, [plugin.name for plugin in registry.plugins])
    if reason:
        raise ConfigError(f"the plugin cannot be called {name}: {reason}; choose another name")
    target = directory if directory is not None else Path(f"usbvfiod-{name}")
    files = package(name, kind)
    for path in files:
        if (target / path).exists():
            raise ConfigError(f"{target / path} exists already; choose another directory")
    for path, text in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text)
        click.echo(target / path)
    click.echo(f"now: cd {shlex.quote(str(target))} && {installation().development()}", err=True)


def _entry(plugin: Plugin) -> dict[str, object]:
    return {
        "name": plugin.name,
        "module": plugin.module,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "origin": plugin.origin,
        "requires": plugin.requires,
        "hooks": list(plugin.hooks),
        "seconds": round(plugin.seconds, 6),
        "state": plugin.state,
        "error": plugin.error,
    }


def _row(plugin: Plugin) -> tuple[str, ...]:
    package = f"{plugin.distribution} {plugin.version}".strip()
    status = f"not used: {plugin.error}" if plugin.error else plugin.state
    hooks = ", ".join(hook.removeprefix("usbvfiod_") for hook in plugin.hooks)
    return (plugin.name, package, status, hooks)
