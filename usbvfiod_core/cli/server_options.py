"""The options of bare `usbvfiod`, which serves one VM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ..daemon.guest_ports import LINUX_USB2, LINUX_USB3
from ..daemon.server_settings import (
    MAX_PCAP_FILES,
    MAX_PORTS,
    MAX_SPIN,
    PCAP_FILES,
    USB2_PORTS,
    USB3_PORTS,
    ServerSettings,
)
from ..errors import ConfigError
from ..hooks.registry import Registry
from ..pci.interrupts import Mechanism
from . import completing
from .numbers import Descriptor, WholeNumber
from .plain import mechanisms


def refuse_commands(options: Sequence[str]) -> None:
    """Raise UsageError if there is a command among what is to be options of a server."""
    context = click.get_current_context()
    commands = context.find_root().command
    assert isinstance(commands, click.Group)
    parsed = click.Command("usbvfiod", params=server_options()).make_context(
        "usbvfiod", list(options), resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True
    )
    for each in parsed.args:
        if each in commands.commands:
            raise click.UsageError(f"{each} is a command; {context.info_name} takes the options of a server", context)


def server_options() -> list[click.Parameter]:
    """The options of bare `usbvfiod`, in the order of its help."""
    return [
        click.Option(
            ["--config", "file"],
            metavar="FILE",
            type=click.Path(path_type=Path, readable=False),
            help="Read this configuration file (TOML). The command line takes precedence.",
        ),
        click.Option(
            ["--socket-path"],
            metavar="PATH",
            type=click.Path(path_type=Path, readable=False),
            help="Listen on this Unix socket (mode 0600, at most 107 bytes). A stale one is replaced; one in "
            "use, or another file, is not.",
        ),
        *_access("socket", "this socket"),
        click.Option(
            ["--fd"],
            metavar="N",
            type=Descriptor(),
            help="Serve on this inherited socket instead. With a connected one, the server ends with the connection.",
        ),
        click.Option(
            ["--control-path"],
            metavar="PATH",
            type=click.Path(path_type=Path, readable=False),
            help="Listen on this Unix socket for the commands that show and control a running server, rather "
            "than where they look for one.",
        ),
        *_access("control", "the control socket"),
        click.Option(["--no-control"], is_flag=True, help="Have no control socket."),
        click.Option(
            ["--hotplug-socket-path"],
            metavar="PATH",
            type=click.Path(path_type=Path, readable=False),
            help="Listen on this Unix socket for the remote control of the Rust program usbvfiod.",
        ),
        *_access("hotplug-socket", "that socket"),
        click.Option(
            ["--hotplug-fd"],
            metavar="N",
            type=Descriptor(),
            help="The same, on this inherited listening socket.",
        ),
        click.Option(
            ["--metrics"],
            metavar="PATH|ADDRESS:PORT",
            help="Serve metrics for Prometheus at this Unix socket, or at a port of 127.0.0.1 or [::1]; 0 is "
            "a free one, which the log names. Needs the library h11.",
        ),
        *_access("metrics", "the Unix socket of --metrics"),
        click.Option(
            ["--opener"],
            metavar="PATH",
            type=click.Path(path_type=Path, readable=False),
            help="Have device nodes, and files that the server may not open, opened by the usbvfiod-opener "
            "that listens on this Unix socket.",
        ),
        click.Option(
            ["--backend"],
            metavar="NAME",
            shell_complete=completing.backends,
            help="The backend for --device values that do not name one. Without it, addresses of host devices "
            "go to usbfs, else to libusb, else to the only backend for host devices.",
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
            type=click.Path(path_type=Path, readable=False),
            help="Capture all devices to this file, for Wireshark, in the place of what is in it. For one "
            "device: its option pcap=FILE.",
        ),
        click.Option(
            ["--pcap-size"],
            metavar="MIB",
            type=WholeNumber(min=0),
            default=0,
            help="Begin the next file of a capture after so many MiB.",
        ),
        click.Option(
            ["--pcap-files"],
            metavar="N",
            type=WholeNumber(2, MAX_PCAP_FILES),
            default=PCAP_FILES,
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
            help="Use this plugin, or the plugin in this file, whatever the configuration file says, and fail "
            "if it cannot be used; may be repeated.",
        ),
        click.Option(
            ["--no-plugin"],
            metavar="NAME",
            multiple=True,
            shell_complete=completing.plugins,
            help="Do not load this plugin, which must be installed; may be repeated.",
        ),
        click.Option(
            ["--plugin-files"],
            is_flag=True,
            help="Let root load plugins from files, if they belong to root and nobody else can write them.",
        ),
        click.Option(
            ["--strict-plugins"],
            is_flag=True,
            help="Fail if an installed plugin cannot be used. Otherwise it is left out.",
        ),
        click.Option(
            ["--sandbox"],
            type=click.Choice(["auto", "on", "off"]),
            help="Confine the server to what its configuration names: auto as far as the kernel can, on "
            "completely or not at all. [default: what USBVFIOD_SANDBOX in the environment says, else "
            "auto]",
        ),
        click.Option(
            ["--spin"],
            metavar="MICROSECONDS",
            type=WholeNumber(0, MAX_SPIN),
            default=ServerSettings().spin,
            show_default=True,
            help="Poll this long for the next message before sleeping, as long as it helps. 0 never polls.",
        ),
        *(
            click.Option(
                [f"--usb{kind}-ports"],
                metavar="N",
                type=WholeNumber(1, MAX_PORTS - 1),
                default=count,
                show_default=True,
                help=f"Ports for {devices} devices, up to {MAX_PORTS} of both kinds. Linux guests use the "
                f"first {limit}{more}; macOS takes no controller with more than 15 of both kinds.",
            )
            for kind, devices, count, limit, more in (
                (2, "USB 2", USB2_PORTS, LINUX_USB2, ", but from Linux 7.1 on more may crash them"),
                (3, "SuperSpeed", USB3_PORTS, LINUX_USB3, ""),
            )
        ),
        click.Option(
            ["--interrupts"],
            metavar="LIST",
            callback=_interrupts,
            default=",".join(each.value for each in Mechanism),
            show_default=True,
            help="The kinds of interrupt that the controller offers. The guest takes the first that it can "
            "use, whatever their order here.",
        ),
        click.Option(
            ["--interrupter-page"],
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            show_default=True,
            help="Let the VMM map the page of the interrupters' registers, on an x86-64 host. That is faster "
            "with a VMM that waits for every write, as Cloud Hypervisor, and slower with others; auto: "
            "with Cloud Hypervisor only.",
        ),
        click.Option(
            ["--any-memory-file"],
            is_flag=True,
            help="Accept guest memory in files of any file system, not only in memory: whoever serves a "
            "network or FUSE file system can then keep the server waiting.",
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
    yield click.Option(
        [group], metavar="GROUP", help=f"Let this group connect to {what}. The server's user must be in it."
    )
    yield click.Option([mode], metavar="MODE", help=f"Its mode, in octal digits: 0600, or 0660 with {group}.")


def _interrupts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[Mechanism, ...]:
    try:
        return mechanisms(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


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
