"""The command `usbvfiod web`: a page on which the devices of a host and its VMs are seen and plugged together.

It is a client of the servers' control sockets like any other, and has no rights but those of the user who runs it.
What serves is imported when the command is called, and the command when there is a command line, because this module is
loaded by every command and every server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbvfiod_core import hookimpl

if TYPE_CHECKING:
    import click

usbvfiod_requires = ">=1,<2"


@hookimpl
def usbvfiod_register_commands(group: click.Group) -> None:
    """Add `usbvfiod web`."""
    from .command import web

    group.add_command(web)
