"""`usbvfiod front`: a server that is started again after a crash, and goes on with its VM. `front` has all of it."""

from __future__ import annotations

import click

from .. import front as program
from .numbers import WholeNumber
from .server_options import refuse_commands


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--crashes",
    metavar="N",
    type=WholeNumber(0),
    default=program.CRASHES,
    show_default=True,
    help="Give up after so many crashes within a minute; 0 never does.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[--] OPTIONS...")
def front(crashes: int, options: tuple[str, ...]) -> None:
    """Serve one VM with these OPTIONS, and start the server again after a crash.

    The front holds the VM's connection, memory and interrupts, so that the next server goes on with them. To systemd's
    services systemd itself does that. Signals are passed on to the server, and the exit code is the server's.
    """
    refuse_commands(options)
    click.get_current_context().exit(program.front(options, crashes))
