"""The options of bare `usbvfiod`, which serves one VM, and the commands beside it."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from ..daemon.config import Config, check_backend, parse_device
from ..daemon.selector import SPIN
from ..errors import PluginError
from ..hooks.registry import Registry
from . import demo, devices, plugins

logger = logging.getLogger(__name__)

EPILOG = (
    "Exit codes: 0 ended as asked, 1 failure, 2 wrong command line or configuration, 3 the socket cannot be used, "
    "4 a device cannot be listed or opened, 5 a plugin failed."
)


def application(registry: Registry) -> click.Group:
    """The command line, with the commands that plugins add."""
    group = click.Group(
        "usbvfiod",
        callback=_serve,
        invoke_without_command=True,
        epilog=EPILOG,
        params=_options(),
        context_settings={"obj": registry, "help_option_names": ["-h", "--help"], "max_content_width": 100},
        help=(
            "Give a virtual machine USB devices.\n\n"
            "Without a command, serve one VM: a VMM that speaks vfio-user connects to the socket and finds an xHCI "
            "controller, with the given devices plugged in. Ends on SIGTERM or SIGINT."
        ),
    )
    for command in (devices.devices, plugins.plugins, demo.demo):
        group.add_command(command)
    registry.add_commands(group)
    return group


def _options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--socket-path"],
            metavar="PATH",
            type=click.Path(path_type=Path),
            help="Listen on this Unix socket. A stale one is replaced.",
        ),
        click.Option(
            ["--fd"],
            metavar="N",
            type=click.IntRange(min=0),
            help="Serve on this inherited socket, which listens or is connected.",
        ),
        click.Option(["--backend"], metavar="NAME", help="The backend of --device values that name none."),
        click.Option(
            ["--device", "devices"],
            metavar="SPEC",
            multiple=True,
            help="Plug in [BACKEND:]ADDRESS[?option=value&...]; may be repeated.",
        ),
        click.Option(["-v", "--verbose"], count=True, help="Log more; -vv logs everything."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Log only warnings and errors."),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="Form of the log.",
        ),
        click.Option(["--strict-plugins"], is_flag=True, help="Fail if an installed plugin cannot be used."),
        click.Option(
            ["--spin", "spin_microseconds"],
            metavar="MICROSECONDS",
            type=click.IntRange(0, 10_000),
            default=round(SPIN * 1e6),
            show_default=True,
            help="Poll this long for the next message before sleeping, while that pays.",
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


@click.pass_context
def _serve(
    context: click.Context,
    /,
    socket_path: Path | None,
    fd: int | None,
    backend: str | None,
    devices: tuple[str, ...],
    verbose: int,
    quiet: bool,
    log_format: str,
    strict_plugins: bool,
    spin_microseconds: int,
) -> None:
    from ..daemon import log

    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other")
    registry: Registry = context.obj
    log.set_up(-1 if quiet else verbose, log_format)
    if strict_plugins and registry.failures:
        raise PluginError("; ".join(f"plugin {plugin.name}: {plugin.error}" for plugin in registry.failures))
    for plugin in registry.failures if context.invoked_subcommand != "plugins" else ():
        logger.warning("plugin %s is not used: %s", plugin.name, plugin.error)
    if context.invoked_subcommand is not None:
        if socket_path is not None or fd is not None or backend is not None or devices:
            raise click.UsageError(
                f"--socket-path, --fd, --backend and --device are for serving and have no meaning for "
                f"{context.invoked_subcommand}"
            )
        return
    if socket_path is None and fd is None:
        raise click.UsageError("give --socket-path PATH or --fd N, or a command")
    if socket_path is not None and fd is not None:
        raise click.UsageError("--socket-path and --fd exclude each other")
    backends = registry.backends()
    if backend is not None:
        check_backend(backend, backends)
    specs = tuple(parse_device(text, backends, backend) for text in devices)
    config = Config(socket_path, fd, specs, spin_microseconds / 1e6)

    from ..daemon.server import serve

    serve(config, registry, backends)


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
        "features": ["socket-path", "fd", "reconnect"],
    }
    click.echo(json.dumps(capabilities, indent=2))
    context.exit()


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    import platform
    from importlib.metadata import version

    from ..hooks.specs import PLUGIN_API

    click.echo(f"usbvfiod {version('usbvfiod')} (plugin API {PLUGIN_API}, Python {platform.python_version()})")
    context.exit()
