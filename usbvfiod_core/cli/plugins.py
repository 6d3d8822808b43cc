"""`usbvfiod plugins`: which plugins are installed, what became of them, and the beginning of a new one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from ..errors import ConfigError, unknown
from ..hooks.loading import Plugin
from ..hooks.registry import Registry
from ..hooks.specs import PLUGIN_API
from ..installation import installation
from .groups import SectionedGroup
from .output import print_json, print_object, print_table, say
from .plugin_page import as_object, facts, print_page
from .scaffold import KINDS, package, taken

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.group(
    cls=SectionedGroup, invoke_without_command=True, otherwise="without a command, usbvfiod plugins lists them"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List the installed plugins, their hooks, and why one is not used; or begin a new one."""
    registry: Registry = context.obj
    if context.invoked_subcommand is not None:
        return
    if as_json:
        print_json("plugins", [facts(plugin) for plugin in registry.plugins], api=PLUGIN_API)
    elif registry.plugins:
        print_table(("PLUGIN", "PACKAGE", "STATUS", "HOOKS"), [_row(plugin) for plugin in registry.plugins])
    else:
        say("no plugins: is usbvfiod itself installed?", err=True)


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(registry: Registry, name: str, as_json: bool) -> None:
    """Print the options of a plugin, its hooks, commands, version and where it is from; of a backend also its devices.

    NAME is that of the plugin, as `usbvfiod plugins` lists it.
    """
    declared = registry.declared()
    plugin = next((each for each in registry.plugins if each.name == name), None)
    if plugin is None:
        raise ConfigError(unknown("plugin", name, [each.name for each in registry.plugins]))
    found = (plugin, declared[name], registry.backends(only=name))
    if as_json:
        print_object({"plugin": as_object(*found)})
    else:
        print_page(*found)


@plugins.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is to be.")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
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
        say(target / path)
    say(f"now: cd {shlex.quote(str(target))} && {installation().development()}", err=True)


def _row(plugin: Plugin) -> tuple[str, ...]:
    package = f"{plugin.distribution} {plugin.version}".strip()
    status = f"not used: {plugin.error}" if plugin.error else plugin.state
    hooks = ", ".join(hook.removeprefix("usbvfiod_") for hook in plugin.hooks)
    return (plugin.name, package, status, hooks)
