"""Bare `usbvfiod`, which serves one VM, and the commands beside it."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..daemon.config import CommandLine
from ..daemon.config_file import ConfigFile
from ..hooks.registry import Registry
from .completing import COMPLETING
from .ending import FAILURE, INTERRUPTED, OK, USAGE, fail
from .groups import Commands, SectionedGroup
from .plain import file_of, selection, with_file
from .serve import serve, told
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


HINTS = {
    **dict.fromkeys(("add", "connect", "insert", "mount", "plug", "use"), "write usbvfiod attach SPEC"),
    **dict.fromkeys(
        ("disconnect", "eject", "release", "remove", "rm", "umount", "unmount", "unplug"),
        "write usbvfiod detach ATTACHMENT",
    ),
    **dict.fromkeys(("attached", "attachments", "ls", "ps", "show"), "write usbvfiod list"),
    **dict.fromkeys(("lsusb", "scan"), "write usbvfiod devices"),
    **dict.fromkeys(("events", "follow", "monitor"), "write usbvfiod watch"),
    **dict.fromkeys(("key", "press", "type", "write"), "write usbvfiod send ATTACHMENT WORD..."),
    **dict.fromkeys(("dump", "pcap", "record", "sniff", "trace"), "write usbvfiod capture ATTACHMENT -w FILE"),
    **dict.fromkeys(("check", "validate"), "write usbvfiod OPTION... config check"),
    **dict.fromkeys(
        ("exit", "kill", "quit", "shutdown", "stop"), "a server ends on SIGTERM, or Ctrl+C in its terminal"
    ),
    **dict.fromkeys(("run", "serve", "server", "start"), "write usbvfiod --socket-path PATH to serve a VM"),
    "help": "write usbvfiod --help, or usbvfiod COMMAND --help",
    "version": "write usbvfiod --version",
}
"""What to do instead, by names that people look for and that no command has."""


def application(registry: Registry, read_file: ConfigFile | None = None) -> click.Group:
    """The command line, with the commands that plugins add; `read_file` is what its --config names."""
    group = SectionedGroup(
        "usbvfiod",
        commands=Commands({name: f"{__package__}.{place}" for name, place in _COMMANDS.items()}),
        sections=SECTIONS,
        callback=partial(_serve, read_file),
        invoke_without_command=True,
        epilog=EPILOG,
        otherwise="without a command, usbvfiod --socket-path PATH serves a VM",
        hints=HINTS,
        params=server_options(),
        context_settings={"obj": registry, "help_option_names": ["-h", "--help"], "max_content_width": 100},
        help=(
            "Give a virtual machine USB devices.\n\n"
            "Without a command, serve one VM: a VMM that speaks vfio-user connects to the socket and finds an xHCI "
            "controller, with the given devices plugged in. Ends on SIGTERM or SIGINT.\n\n" + EXAMPLES
        ),
    )
    registry.add_commands(group)
    if COMPLETING in os.environ:
        from . import completion  # noqa: F401  # it tells click how to complete
    return group


def run(registry: Registry, words: Sequence[str]) -> int:
    """Do what these words say, with the plugins that they select; the exit code. Raises UsbvfiodError, Mistakes."""
    color = False if os.environ.get("NO_COLOR") else None
    try:
        before = _beforehand(words)
        read_file = file_of(before)
        registry.discover(with_file(before, read_file))
        group = application(registry, read_file)
        gc.freeze()
        gc.enable()
        result = group.main(words, prog_name="usbvfiod", standalone_mode=False, color=color)
    except click.UsageError as error:
        return fail(f"{error.format_message()} ({_hint(error, words)})", USAGE)
    except click.ClickException as error:
        return fail(error.format_message(), FAILURE)
    except click.Abort:
        return fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else OK


def _hint(error: click.UsageError, words: Sequence[str]) -> str:
    """What to try after a wrong command line."""
    context = error.ctx
    if context is None:
        return "try usbvfiod --help"
    root = context.find_root()
    command = context.command_path.removeprefix(root.command_path).strip()
    if isinstance(error, click.NoSuchOption) and command:
        option = error.option_name
        if any(option in each.opts and fits(command, each.name) for each in root.command.params):
            return f"it goes before the command: {root.command_path} {option} ... {command}"
    elif isinstance(error, click.NoSuchOption) and isinstance(root.command, click.Group):
        for named in words:
            command_named = root.command.commands.get(named)
            if command_named is not None and any(error.option_name in each.opts for each in command_named.params):
                return f"it goes after the command: {root.command_path} {named} {error.option_name} ..."
    return f"try {context.command_path} --help"


def _beforehand(words: Sequence[str]) -> CommandLine:
    """What the words say of plugins, and the file that does: plugins are loaded before the words are parsed, because
    some add commands."""
    group = click.Group("usbvfiod", params=server_options())
    context = group.make_context(
        "usbvfiod", list(words), resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True
    )
    params = context.params
    chosen = selection(params.get("plugin") or (), params.get("no_plugin") or (), params)
    return CommandLine(file=params.get("file"), plugins=chosen)


@click.pass_context
def _serve(
    context: click.Context,
    read_file: ConfigFile | None,
    /,
    file: Path | None,
    devices: tuple[str, ...],
    plugin: tuple[str, ...],
    no_plugin: tuple[str, ...],
    **parameters: Any,
) -> None:
    given = {name: value for name, value in parameters.items() if _is_given(context, name)}
    if given.get("quiet") and given.get("verbose"):
        raise click.UsageError("-q and -v cannot be used together")
    known = told(context.obj, CommandLine(given, devices, file, selection(plugin, no_plugin, given)), read_file)
    command = context.invoked_subcommand
    if command == "config":
        context.obj = known
    elif command is None:
        serve(known)
    else:
        known.check(command)
        _refuse_serving(context, command, [name for name in _OF_A_SERVER if name in given], devices)


def _refuse_serving(context: click.Context, command: str, given: Sequence[str], devices: Sequence[str]) -> None:
    """Raise UsageError for options of a server, which mean nothing to a command."""
    meaningless = [*given, *["device"] * bool(devices)]
    if not meaningless:
        return
    names = ", ".join(f"--{name.replace('_', '-')}" for name in meaningless)
    assert isinstance(context.command, click.Group)
    theirs = {option for each in context.command.commands[command].params for option in each.opts}
    behind = next((name for name in names.split(", ") if name in theirs), None)
    if behind is not None:
        raise click.UsageError(f"{behind} goes after the command: usbvfiod {command} {behind} ...")
    raise click.UsageError(f"{names}: these options are for serving and cannot be used with {command}")


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
