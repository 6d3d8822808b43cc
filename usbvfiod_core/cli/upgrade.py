"""`usbvfiod upgrade`: a new process takes the place of a running server while its guest goes on."""

from __future__ import annotations

import io
import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from ..daemon.channel import Channel, ChannelClosed
from ..daemon.steps import Failed, Prepare, said
from ..daemon.successor import GOES, SERVES, marked, succeeding
from ..errors import ConfigError, DeviceError, UsbvfiodError
from ..vfio_user.ancillary import note_senders, sender
from .control import Connect, control_options
from .numbers import SECONDS
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
    type=SECONDS,
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
        with socket.socket(fileno=os.dup(channel.fileno())) as own:
            with other:
                note_senders(own)
                server.request("upgrade", fd=True, fds=[other.fileno()])
            user = sender(own, wait)
            note_senders(own, False)
    server_is = _prepared(channel, user, wait)
    arguments = list(options) or server_is.arguments
    environment = succeeding(os.environ, server_is.environment, settings=not options)
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
    _wait(process, read, channel, wait)
    say(f"process {process.pid} has taken the place of the server")


def _prepared(channel: Channel, user: int | None, patience: float) -> Prepare:
    """What is to be started, as the server says. By the kernel it is this `user`'s: one that was taken over might have
    root start what it likes."""
    message = channel.receive()
    if message is None or user is None:
        raise ServerTimeout(f"the server has not answered within {patience:g} s")
    if message.step == "failed":
        raise DeviceError(said(Failed, message).message)
    if message.step != "prepare":
        raise ChannelClosed(f"the server says {message.step!r}, and not with which options it runs")
    server_is = said(Prepare, message)
    for each in (server_is.uid, user):
        if each != os.geteuid():
            raise ConfigError(
                f"the server is user {each}'s, who replaces it; a unit of systemd's does it with `systemctl reload`"
            )
    return server_is


def _wait(process: subprocess.Popen[bytes], report: int, channel: Channel, patience: float) -> None:
    """Until it serves. Raises UsbvfiodError if it does not."""
    with open(report, "rb", buffering=0) as told:
        word = _said(told, patience)
        if word is None:
            # It may take the place in this very moment. From here on it cannot, or has said so before.
            channel.end()
            word = _said(told, 0.0)
        killed = word is None
        if killed:
            process.kill()
            process.wait()
        elif word == GOES:
            word = _said(told, patience)
        channel.close()  # the server hears that the process has ended
    if word == SERVES:
        return
    if killed:
        raise ServerTimeout(
            f"the new process has not taken the place within {patience:g} s, and was ended; --wait gives it more"
        )
    if word is None:
        raise ServerTimeout(f"process {process.pid} has taken the place, and does not serve after {patience:g} s")
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)  # it has said why
    code = process.returncode
    if code is None or code < 0:
        ended = "does not end" if code is None else f"was ended by signal {-code}"
        raise UsbvfiodError(f"the new process {ended}; the server goes on as it was")
    click.get_current_context().exit(code or 1)


def _said(told: io.FileIO, patience: float) -> bytes | None:
    """What the process says next: `GOES`, `SERVES`, or nothing if it has ended; None if it says nothing in time."""
    poll = select.poll()
    poll.register(told, select.POLLIN)
    return told.read(1) if poll.poll(patience * 1000) else None
