"""`usbvfiod metrics`: what all servers of a user have counted, for node_exporter's textfile collector."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ..daemon.exposition import exposition
from .control import none_found, timeout_option
from .output import print_text, say
from .servers import Find, Servers, servers_options
from .unreached import ServerUnreachable

READABLE = 0o644
"""The mode of a file: node_exporter is another user."""


@click.command()
@click.option(
    "-w",
    "--write",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write this file, in one piece, rather than to stdout.",
)
@click.option("--openmetrics", is_flag=True, help="In OpenMetrics' format, rather than Prometheus' own.")
@timeout_option(help="Wait this long for the answers.")
@servers_options
def metrics(file: Path | None, openmetrics: bool, timeout: float, find: Find) -> None:
    """Print what all servers of this user have counted, for Prometheus; `-w FILE` for node_exporter."""
    with Servers(find) as servers:
        servers.ask()
        servers.wait(time.monotonic() + timeout)
    for name, server in servers.known.items():
        if server.answer is None:
            say(f"{name}: {server.error or f'it has not answered within {timeout:g} s'}", err=True)
    if not servers.known:
        say(none_found(), err=True)
    answers: dict[str, Any] = {}
    for name, server in servers.known.items():
        try:
            # One alone is called as it says; of several none takes the place of another.
            called = (server.called if len(servers.known) == 1 else "") or name
            exposition({called: server.answer}, openmetrics=openmetrics)
        except (ServerUnreachable, TypeError, ValueError) as error:
            say(f"{name}: what it answers makes no sense: {error}", err=True)
        else:
            answers[called] = server.answer
    text = exposition(answers, openmetrics=openmetrics)
    if file is None:
        print_text(text)
    else:
        write(file, text)


def write(file: Path, text: str) -> None:
    """Put `text` in the place of `file`: whoever reads it sees the old text or the new one. Raises OSError."""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(file)) from None
    try:
        with open(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(fd, READABLE)
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
