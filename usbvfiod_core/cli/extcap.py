"""The commands that make Wireshark know of usbvfiod."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from ..errors import ConfigError
from .output import say

PERSONAL = Path(".local/lib/wireshark/extcap")
"""Below the home directory: where newer versions of Wireshark look."""
SCRIPT = """#!/bin/sh
# Ctrl+C is for tshark too, which asks for the end then: Python would tell of it.
trap '' INT
exec {} "$@"
"""


@click.group()
def extcap() -> None:
    """Make Wireshark know of running servers."""


@extcap.command()
@click.option(
    "--directory",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False, path_type=Path),
    help="Wireshark's extcap folder, where it is not the user's own; `tshark -G folders` shows it.",
)
def install(directory: Path | None) -> None:
    """Put a program into Wireshark's extcap folder, that lists what running servers have as interfaces.

    Older versions of Wireshark have only a global folder: name that with --directory, as root.
    """
    folder = directory or Path.home() / PERSONAL
    path = folder / "usbvfiod"
    program = shlex.join([sys.executable, "-P", "-m", "usbvfiod_core.cli.extcap_program"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(SCRIPT.format(program))
        path.chmod(0o755)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    say(f"{path} is installed; Wireshark shows devices of running servers when its list is refreshed (F5)")
