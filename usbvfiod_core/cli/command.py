"""Bare `usbvfiod`, which serves one VM, and the commands beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..daemon import places
from ..daemon.activation import serving_them, take_sockets
from ..daemon.config import CommandLine
from ..daemon.config_file import read
from ..daemon.successor import HANDOVER
from ..errors import ConfigError
from ..hooks.registry import Registry
from ..hooks.settings import PluginSelection
from . import completing
from .checks import Given, settings
from .groups import Commands, SectionedGroup
from .server_options import server_options

_OF_A_SERVER = (
    "socket_path",
    "socket_group",
    "socket_mode",
    "fd",
    "control_path",
    "control_group",
    "control_mode",
    "no_control",
    "hotplug_socket_path",
    "hotplug_socket_group",
    "hotplug_socket_mode",
    "hotplug_fd",
    "metrics",
    "metrics_group",
    "metrics_mode",
    "pcap_path",
    "pcap_size",
    "pcap_files",
    "opener",
    "backend",
)

EPILOG = (
    "Exit codes: 0 ended as asked, 1 failure, 2 wrong command line or configuration, 3 the socket cannot be used, "
    "4 a device cannot be listed or opened, 5 a plugin failed, 6 no such attachment, 7 the server takes too long, "
    "8 no server at the control socket."
)


EXAMPLES = """\b
  usbvfiod --socket-path /tmp/usb.sock --device 'virtual:keyboard?name=keys'
  usbvfiod devices                       what of this host can be plugged in
  usbvfiod attach 10c4:ea60              plug it in, and again whenever it comes back
  usbvfiod list                          what the running server has
  usbvfiod send keys type hello
  usbvfiod why 10c4:ea60                 why it cannot be plugged in"""

SECTIONS = {
    "See what there is": ("devices", "list", "status", "top", "watch", "metrics"),
    "Change what a running server does": (
        "attach",
        "detach",
        "move",
        "send",
        "reload",
        "log-level",
        "quiesce",
        "resume",
        "upgrade",
    ),
    "Find out what is wrong": ("why", "doctor", "capture", "extcap", "replay"),
    "Set up": ("front", "demo", "config", "plugins", "completion", "man"),
}


def fits(command: str, option: str | None) -> bool:
    """Whether an option of `usbvfiod` itself means something to a command: those for serving do so to `config` only."""
    return command.split()[0] == "config" or (option not in _OF_A_SERVER and option != "devices")


_COMMANDS = {
    "devices": "devices:devices",
    "list": "look:list_attachments",
    "status": "look:status",
    "watch": "look:watch",
    "top": "top:top",
    "metrics": "metrics:metrics",
    "why": "why:why",
    "doctor": "doctor:doctor",
    "capture": "capture:capture",
    "extcap": "extcap:extcap",
    "replay": "replay:replay",
    "attach": "changes:attach",
    "detach": "changes:detach",
    "move": "changes:move",
    "send": "changes:send",
    "reload": "changes:reload",
    "log-level": "changes:log_level",
    "quiesce": "quiescing:quiesce",
    "resume": "quiescing:resume",
    "upgrade": "upgrade:upgrade",
    "config": "config:config",
    "plugins": "plugins:plugins",
    "front": "front:front",
    "demo": "demo:demo",
    "completion": "completion:completion",
    "man": "man:man",
}
"""The modules of this package in which the commands are, and their names there."""


def application(registry: Registry) -> click.Group:
    """The command line, with the commands that plugins add."""
    group = SectionedGroup(
        "usbvfiod",
        commands=Commands({name: f"{__package__}.{place}" for name, place in _COMMANDS.items()}),
        sections=SECTIONS,
        callback=_serve,
        invoke_without_command=True,
        epilog=EPILOG,
        params=server_options(),
        context_settings={"obj": registry, "help_option_names": ["-h", "--help"], "max_content_width": 100},
        help=(
            "Give a virtual machine USB devices.\n\n"
            "Without a command, serve one VM: a VMM that speaks vfio-user connects to the socket and finds an xHCI "
            "controller, with the given devices plugged in. Ends on SIGTERM or SIGINT.\n\n" + EXAMPLES
        ),
    )
    registry.add_commands(group)
    if completing.VARIABLE in os.environ:
        from . import completion  # noqa: F401  # it tells click how to complete
    return group


def selection(arguments: Sequence[str]) -> PluginSelection:
    """Which plugins the arguments, and the configuration file that they name, select: plugins are loaded before the
    arguments are parsed, because some add commands. Raises ConfigError for what is wrong with the file."""
    group = click.Group("usbvfiod", params=server_options())
    context = group.make_context(
        "usbvfiod", list(arguments), resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True
    )
    path: Path | None = context.params.get("file")
    params = context.params
    chosen = _selection(params.get("plugin") or (), params.get("no_plugin") or (), bool(params.get("plugin_files")))
    if path is not None:
        chosen = read(path).plugins.overridden_by(chosen)
    return chosen


def _selection(plugin: Sequence[str], no_plugin: Sequence[str], files: bool) -> PluginSelection:
    disable = tuple(name for name in no_plugin if name not in plugin)
    return PluginSelection(disable=disable, require=tuple(plugin), files=files)


@click.pass_context
def _serve(
    context: click.Context,
    /,
    file: Path | None,
    devices: tuple[str, ...],
    plugin: tuple[str, ...],
    no_plugin: tuple[str, ...],
    **parameters: Any,
) -> None:
    from ..daemon import log

    given = {name: value for name, value in parameters.items() if _is_given(context, name)}
    if given.get("quiet") and given.get("verbose"):
        raise click.UsageError("-q and -v cannot be used together")
    registry: Registry = context.obj
    command_line = CommandLine(given, devices, file, _selection(plugin, no_plugin, bool(given.get("plugin_files"))))
    command = context.invoked_subcommand
    read_file = read(file) if file is not None else None
    server = settings(command_line, read_file)
    modules = [plugin.module for plugin in registry.plugins]
    log.set_up(-1 if server.quiet else server.verbose, server.log_format, modules)
    known = Given(registry, command_line, read_file, registry.declared())
    taking = None
    if command is None and HANDOVER in os.environ:
        from ..daemon.taking_over import TakingOver  # few servers take another one's place

        taking = TakingOver.begun(os.environ)
    if command == "config":
        context.obj = known
        return
    if command is not None:
        known.check(command)
        meaningless = [name for name in _OF_A_SERVER if name in given] + ["device"] * bool(devices)
        if meaningless:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in meaningless)
            raise click.UsageError(f"{names}: these options are for serving and cannot be used with {command}")
        return
    configuration, backends = known.complete()
    sockets = take_sockets(os.environ)
    if taking is not None:
        configuration, sockets = taking.prepared(configuration, backends)
    configuration = serving_them(configuration, sockets)
    try:
        configuration.check_socket()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    registry.configure(configuration.plugins)

    from ..daemon.server import serve

    place = None if server.no_control else places.directory(os.environ)
    serve(configuration, registry, backends, control_fd=sockets.control, place=place, taking=taking, held=sockets.held)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
