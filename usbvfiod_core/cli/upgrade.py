"""`usbvfiod upgrade`: a new process takes the place of a running server while its guest goes on."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

import click

from ..daemon.channel import Channel, ChannelClosed
from ..daemon.steps import Failed, Prepare, said
from ..daemon.successor import marked
from ..errors import ConfigError, DeviceError, UsbvfiodError
from .control import Connect, control_options
from .numbers import Number
from .output import say
from .server_options import refuse_commands
from .unreached import ServerTimeout

COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "usbvfiod_core")
"""The program that takes the place: this one."""
PATIENCE = 30.0
"""Seconds for it to read its configuration, and to take the place, unless `--wait` says others; the guest waits for a
part of the last one only."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--replug",
    is_flag=True,
    help="Unplug devices that cannot be handed over, and plug them in again afterwards; the guest sees that.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=Number(min=0, min_open=True),
    default=PATIENCE,
    show_default=True,
    help="How long the new process may take; on a busy machine it needs more to start.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS]...")
@control_options
def upgrade(replug: bool, wait: float, options: tuple[str, ...], connect: Connect) -> None:
    """Replace a running server by this version of the program, while its guest goes on.

    The new process has the options of the old one, or OPTIONS in their place, and reads its configuration file and
    plugins again. It takes over the VM's connection and the open devices; the guest notices a short pause. If it
    cannot, the old one goes on as it was, and the error says why.
    """
    refuse_commands(options)
    with connect() as server:
        channel, other = Channel.pair()
        with other:
            server.request("upgrade", fd=True, fds=[other.fileno()])
    server_is = _prepared(channel, wait)
    if server_is.uid != os.geteuid():
        raise ConfigError(
            f"the server is user {server_is.uid}'s, who replaces it; a unit of systemd's does it with "
            "`systemctl reload`"
        )
    arguments = list(options) or server_is.arguments
    environment = {**os.environ, **server_is.environment}
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=server_is.directory,
            env=marked(environment, "replug" if replug else "channel", channel.fileno(), write),
            pass_fds=(channel.fileno(), write),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(f"{COMMAND[0]} cannot be started: {error.strerror}") from None
    finally:
        os.close(write)
    channel.close()
    _wait(process, read, wait)
    say(f"process {process.pid} has taken the place of the server")


def _prepared(channel: Channel, patience: float) -> Prepare:
    message = channel.receive(patience)
    if message is None:
        raise ServerTimeout(f"the server has not answered within {patience:g} s")
    if message.step == "failed":
        raise DeviceError(said(Failed, message).message)
    if message.step != "prepare":
        raise ChannelClosed(f"the server says {message.step!r}, and not with which options it runs")
    return said(Prepare, message)


def _wait(process: subprocess.Popen[bytes], report: int, patience: float) -> None:
    """Until it serves. Raises UsbvfiodError if it does not."""
    with open(report, "rb") as told:
        deadline = time.monotonic() + patience
        if not _readable(told, deadline):
            process.kill()
            process.wait()
            raise ServerTimeout(
                f"the new process has not taken the place within {patience:g} s, and was ended; --wait gives it more"
            )
        if told.read(2) == b"ok":
            return
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)  # it has said why
    code = process.returncode
    if code is None or code < 0:
        ended = "does not end" if code is None else f"was ended by signal {-code}"
        raise UsbvfiodError(f"the new process {ended}; the server goes on as it was")
    click.get_current_context().exit(code or 1)


def _readable(file: BinaryIO, deadline: float) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))
