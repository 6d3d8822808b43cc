"""`usbvfiod plugins`: which plugins are installed, and what became of them."""

from __future__ import annotations

import click

from ..hooks.registry import Plugin, Registry
from ..hooks.specs import PLUGIN_API
from .output import print_json, print_table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plugins(registry: Registry, as_json: bool) -> None:
    """List the installed plugins, their hooks, and why one is not used."""
    if as_json:
        print_json("plugins", [_entry(plugin) for plugin in registry.plugins], api=PLUGIN_API)
    elif registry.plugins:
        print_table(("PLUGIN", "PACKAGE", "STATUS", "HOOKS"), [_row(plugin) for plugin in registry.plugins])
    else:
        click.echo("no plugins: is usbvfiod itself installed?", err=True)


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
