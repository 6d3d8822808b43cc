"""The options of bare `usbvfiod`, which serves one VM, and the commands beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..daemon import places
from ..daemon.activation import take_sockets
from ..daemon.config import CommandLine
from ..daemon.config_file import read
from ..daemon.guest_ports import LINUX_USB2, LINUX_USB3
from ..daemon.server_settings import MAX_PCAP_FILES, MAX_PORTS, MAX_SPIN, USB2_PORTS, USB3_PORTS, ServerSettings
from ..errors import ConfigError
from ..hooks.registry import Registry
from ..hooks.settings import PluginSelection
from ..pci.interrupts import Mechanism
from . import completing
from .checks import Given, settings
from .groups import Commands, SectionedGroup

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
    "Change what a running server does": ("attach", "detach", "move", "send", "reload", "log-level"),
    "Find out what is wrong": ("why", "doctor", "capture", "extcap", "replay"),
    "Set up": ("demo", "config", "plugins", "completion", "man"),
}

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
    "config": "config:config",
    "plugins": "plugins:plugins",
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
        params=_options(),
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
    group = click.Group("usbvfiod", params=_options())
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


def _options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config", "file"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Read this configuration file (TOML). The command line takes precedence.",
        ),
        click.Option(
            ["--socket-path"],
            metavar="PATH",
            type=click.Path(path_type=Path),
            help="Listen on this Unix socket. A stale one is replaced.",
        ),
        *_access("socket", "this socket"),
        click.Option(
            ["--fd"],
            metavar="N",
            type=click.IntRange(min=0),
            help="Serve on this inherited socket, listening or connected.",
        ),
        click.Option(
            ["--control-path"],
            metavar="PATH",
            type=click.Path(path_type=Path),
            help="Listen on this Unix socket for the commands that show and control a running server, "
            "rather than where they look for one.",
        ),
        *_access("control", "the control socket, and may use it"),
        click.Option(["--no-control"], is_flag=True, help="Have no such socket."),
        click.Option(
            ["--hotplug-socket-path"],
            metavar="PATH",
            type=click.Path(path_type=Path),
            help="Listen on this Unix socket for the remote control of the Rust program usbvfiod.",
        ),
        *_access("hotplug-socket", "that socket, and may use it"),
        click.Option(
            ["--hotplug-fd"],
            metavar="N",
            type=click.IntRange(min=0),
            help="The same, on this inherited listening socket.",
        ),
        click.Option(
            ["--metrics"],
            metavar="PATH|ADDRESS:PORT",
            help="Serve metrics for Prometheus at this Unix socket, or at a port of 127.0.0.1 or [::1].",
        ),
        *_access("metrics", "this Unix socket"),
        click.Option(
            ["--opener"],
            metavar="PATH",
            type=click.Path(path_type=Path),
            help="Have device nodes opened by the usbvfiod-opener that listens on this Unix socket.",
        ),
        click.Option(
            ["--backend"],
            metavar="NAME",
            shell_complete=completing.backends,
            help="The backend for --device values that do not name one.",
        ),
        click.Option(
            ["--device", "devices"],
            metavar="SPEC",
            multiple=True,
            shell_complete=completing.devices,
            help="Plug in [BACKEND:]ADDRESS[?option=value&...]; may be repeated.",
        ),
        click.Option(
            ["--pcap-path"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Capture all devices to this file, for Wireshark; of one device: the option pcap=FILE.",
        ),
        click.Option(
            ["--pcap-size"],
            metavar="MIB",
            type=click.IntRange(min=0),
            default=0,
            help="Begin the next file of a capture after so many MiB.",
        ),
        click.Option(
            ["--pcap-files"],
            metavar="N",
            type=click.IntRange(2, MAX_PCAP_FILES),
            default=ServerSettings().pcap_files,
            show_default=True,
            help="Fill so many files in turn, with --pcap-size.",
        ),
        click.Option(
            ["-v", "--verbose"], count=True, help="Log what the guest does with each device; -vv: each transfer, too."
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="Log only warnings and errors."),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="Format of the log.",
        ),
        click.Option(
            ["--no-color"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_no_color,
            help="Do not use colours, as with NO_COLOR in the environment.",
        ),
        click.Option(
            ["--plugin"],
            metavar="NAME|FILE.py",
            multiple=True,
            shell_complete=completing.plugins,
            help="Use this plugin, or the plugin in this file, and fail if it cannot be used; may be repeated.",
        ),
        click.Option(
            ["--no-plugin"],
            metavar="NAME",
            multiple=True,
            shell_complete=completing.plugins,
            help="Do not load this plugin; may be repeated.",
        ),
        click.Option(["--plugin-files"], is_flag=True, help="Let root load plugins from files."),
        click.Option(["--strict-plugins"], is_flag=True, help="Fail if an installed plugin cannot be used."),
        click.Option(
            ["--sandbox"],
            type=click.Choice(["auto", "on", "off"]),
            help="Confine the server to what its configuration names: auto as far as the kernel can, on completely or "
            "not at all.",
        ),
        click.Option(
            ["--spin"],
            metavar="MICROSECONDS",
            type=click.IntRange(0, MAX_SPIN),
            default=ServerSettings().spin,
            show_default=True,
            help="Poll this long for the next message before sleeping, as long as it helps.",
        ),
        *(
            click.Option(
                [f"--usb{kind}-ports"],
                metavar="N",
                type=click.IntRange(1, MAX_PORTS - 1),
                default=count,
                show_default=True,
                help=f"USB {kind} ports of the controller. A Linux guest uses {limit} at most.",
            )
            for kind, count, limit in ((2, USB2_PORTS, LINUX_USB2), (3, USB3_PORTS, LINUX_USB3))
        ),
        click.Option(
            ["--interrupts"],
            metavar="LIST",
            callback=_interrupts,
            default=",".join(each.value for each in Mechanism),
            show_default=True,
            help="The kinds of interrupt that the controller offers the guest.",
        ),
        click.Option(
            ["--interrupter-page"],
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            show_default=True,
            help="Let the VMM map the interrupters' registers; auto: if it is Cloud Hypervisor.",
        ),
        click.Option(
            ["--any-memory-file"],
            is_flag=True,
            help="Accept guest memory in files of any file system, not only in memory.",
        ),
        click.Option(
            ["--print-capabilities"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_capabilities,
            help="Print what this server can do, as JSON, and end.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version and end.",
        ),
    ]


def _access(name: str, what: str) -> Iterator[click.Option]:
    """Who may connect to a socket."""
    group, mode = f"--{name}-group", f"--{name}-mode"
    yield click.Option([group], metavar="GROUP", help=f"Let this group connect to {what}.")
    yield click.Option([mode], metavar="MODE", help=f"Its mode, in octal digits: 0600, or 0660 with {group}.")


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
    if sockets.server is not None and configuration.socket_path is None and configuration.fd is None:
        configuration = replace(configuration, server=replace(configuration.server, fd=sockets.server))
    try:
        configuration.check_socket()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    registry.configure(configuration.plugins)

    from ..daemon.server import serve

    place = None if server.no_control else places.directory(os.environ)
    serve(configuration, registry, backends, control_fd=sockets.control, place=place)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _interrupts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[Mechanism, ...]:
    names = [each.value for each in Mechanism]
    chosen = [name.strip() for name in value.split(",")]
    wrong = [name for name in chosen if name not in names]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is none of {', '.join(names)}")
    return tuple(Mechanism(name) for name in names if name in chosen)


def _no_color(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.color = False


def _print_capabilities(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    import json

    registry: Registry = context.obj
    capabilities = {
        "type": "usb",
        "protocol": "vfio-user",
        "description": "xHCI controller whose USB devices come from plugins",
        "backends": sorted(registry.backends()),
        "features": ["socket-path", "fd", "control-path", "hotplug-socket-path", "reconnect"],
    }
    click.echo(json.dumps(capabilities, indent=2))
    context.exit()


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from ..version import version_line

    click.echo(version_line())
    context.exit()
