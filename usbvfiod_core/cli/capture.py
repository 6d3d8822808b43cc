"""The command that captures what a device and its driver say to each other."""

from __future__ import annotations

import os
import sys

import click

from ..capture.recorder import MAX_SNAP_LENGTH, MIN_SNAP_LENGTH, SNAP_LENGTH
from ..errors import DeviceError, UsbvfiodError
from . import completing
from .capturing import captured
from .control import Connect, control_options
from .numbers import WholeNumber
from .output import say
from .scrubbing import Scrubbing

BROKEN_PIPE = os.strerror(32)
"""How a capture ends whose reader has seen enough."""


@click.command()
@click.argument("attachments", metavar="[WHICH]...", nargs=-1, shell_complete=completing.attachments)
@click.option(
    "-w",
    "--write",
    metavar="FILE|-",
    default="-",
    show_default=True,
    help="Write to this file, or to the standard output.",
)
@click.option(
    "--snaplen",
    metavar="BYTES",
    type=WholeNumber(MIN_SNAP_LENGTH, MAX_SNAP_LENGTH),
    default=SNAP_LENGTH,
    show_default=True,
    help="Keep so many bytes of each packet, of which 64 are its header.",
)
@click.option(
    "--endpoint",
    "endpoints",
    metavar="ADDRESS",
    multiple=True,
    help="Only what goes over this endpoint, such as 0x81 or 0; may be repeated.",
)
@click.option(
    "--scrub", is_flag=True, help="Leave out serial numbers, what drives hold and what is typed, to share the capture."
)
@control_options
def capture(
    attachments: tuple[str, ...], write: str, snaplen: int, endpoints: tuple[str, ...], scrub: bool, connect: Connect
) -> None:
    """Capture devices of a running server for Wireshark, until Ctrl+C.

    WHICH is an attachment as for `detach`; without one, all devices are captured, and those that come. The file is
    opened here, with the caller's rights; what is in it stays if the server refuses. A capture has what is typed and
    stored, unless it is scrubbed. The exit code is 4 if it ends by itself, except when its reader goes away.
    """
    named = write != "-"
    with connect() as server:
        made = named and not os.path.lexists(write)
        fd = _opened(write)
        scrubbing = Scrubbing(fd, server.hang_up, replaces=named) if scrub else None

        def started(interfaces: list[dict[str, str]]) -> None:
            if scrubbing is not None:
                scrubbing.close()
            elif named:
                os.close(fd)
            found = "; ".join(f"{each['name']} ({each['description']})" for each in interfaces)
            say(f"capturing {found or 'what comes'}; Ctrl+C ends it", err=True)

        try:
            result = captured(
                server,
                fd if scrubbing is None else scrubbing.fd,
                started,
                attachments=list(attachments),
                endpoints=list(endpoints),
                snap_length=snaplen,
                replace=named,
            )
        except UsbvfiodError:
            if scrubbing is not None:
                scrubbing.finish()
                if scrubbing.seen_enough:
                    return
            if made and os.path.isfile(write) and os.path.getsize(write) == 0:
                os.unlink(write)
            raise
    if scrubbing is not None:
        scrubbing.finish()
    say(_counted(result), err=True)
    if result["reason"] not in ("", BROKEN_PIPE):
        raise DeviceError(f"the capture has ended: {result['reason']}")


def _opened(write: str) -> int:
    if write == "-":
        if sys.stdout.isatty():
            raise click.UsageError("a capture is nothing for a terminal; give a file with -w FILE, or a pipe")
        return sys.stdout.fileno()
    try:
        return os.open(write, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise click.UsageError(f"{write} cannot be written: {error.strerror}") from None


def _counted(result: dict[str, int | str]) -> str:
    dropped = f", {result['dropped']} dropped because they were not read in time" if result["dropped"] else ""
    return f"{result['packets']} packets{dropped}"
