"""What `usbvfiod web` takes on its command line."""

from __future__ import annotations

from pathlib import Path

import click

LAST_PORT = 65535


def _port(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """What `value` says. Raises BadParameter if no port has this number."""
    if value is None:
        return None
    if value.isascii() and value.isdecimal() and int(value) <= LAST_PORT:
        return int(value)
    raise click.BadParameter(f"{value} is not a port from 0 to {LAST_PORT}.")


@click.command()
@click.option(
    "--port",
    metavar="N",
    callback=_port,
    help="Listen on this port of the loopback interface; 0, the default, is any that is free.",
)
@click.option(
    "--socket-path",
    metavar="PATH",
    type=click.Path(path_type=Path, readable=False),
    help="Listen on this Unix socket instead, for a reverse proxy or ssh.",
)
@click.option("--socket-group", metavar="GROUP", help="Let this group connect to the socket.")
@click.option("--socket-mode", metavar="MODE", help="Its mode, in octal digits: 0600, or 0660 with --socket-group.")
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    help="Read the token from this file, so that the address stays the same. It is made if it is not there.",
)
@click.option(
    "--no-token",
    is_flag=True,
    help="Ask for no token. For a Unix socket behind a proxy that asks its users who they are.",
)
@click.option(
    "--host-name",
    "host_names",
    metavar="NAME",
    multiple=True,
    help="A name under which browsers reach the page through a proxy; may be repeated.",
)
@click.option(
    "--control-path",
    "control_paths",
    metavar="PATH",
    type=click.Path(path_type=Path, readable=False),
    multiple=True,
    help="Show the server with this control socket, too; may be repeated.",
)
def web(
    port: int | None,
    socket_path: Path | None,
    socket_group: str | None,
    socket_mode: str | None,
    token_file: Path | None,
    no_token: bool,
    host_names: tuple[str, ...],
    control_paths: tuple[Path, ...],
) -> None:
    """Show this user's servers and the host's devices on a page, and attach, detach and move devices there.

    Prints the address to open in a browser, with the token that it takes. Ends on SIGTERM or SIGINT.
    """
    from .options import Options
    from .serve import serve

    if port is not None and socket_path is not None:
        raise click.UsageError("--port and --socket-path cannot be used together")
    if socket_path is None and (socket_group or socket_mode):
        raise click.UsageError("--socket-group and --socket-mode are for --socket-path")
    if no_token and socket_path is None:
        raise click.UsageError("--no-token is for --socket-path: every user of this host reaches a port")
    if no_token and token_file is not None:
        raise click.UsageError("--no-token and --token-file cannot be used together")
    serve(
        Options(
            port=port or 0,
            socket_path=socket_path,
            socket_group=socket_group,
            socket_mode=socket_mode,
            token_file=token_file,
            no_token=no_token,
            host_names=host_names,
            control_paths=control_paths,
        )
    )
