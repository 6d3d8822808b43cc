"""Commands that keep a running server's devices from its guest for a while, and give them back: quiesce, resume."""

from __future__ import annotations

from typing import Any

import click

from ..daemon.quiescing import LONGEST, PATIENCE
from .control import Connect, control_options
from .numbers import WholeNumber
from .output import print_object, say


@click.command()
@click.option(
    "--wait",
    metavar="SECONDS",
    type=WholeNumber(0, LONGEST),
    default=PATIENCE,
    show_default=True,
    help="How long the guest may take to let its devices go.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def quiesce(wait: int, as_json: bool, connect: Connect) -> None:
    """Unplug all devices for the guest, before its VM is saved.

    The server keeps them, with their ports: nobody else gets them, and `resume` plugs them in again. Ends when the
    guest's driver has let go of all of them. Unmount drives in the guest before.
    """
    with connect() as server:
        server.timeout += wait
        answer = server.request("quiesce", seconds=wait)
    if as_json:
        print_object(answer)
        return
    count = len(_plugged(answer))
    say(f"the guest sees no device now; {count} {'is' if count == 1 else 'are'} kept for `usbvfiod resume`")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def resume(as_json: bool, connect: Connect) -> None:
    """Plug all devices in again for the guest, after `quiesce`."""
    with connect() as server:
        answer = server.request("resume")
    if as_json:
        print_object(answer)
        return
    for each in _plugged(answer):
        say(f"{each['name'] or each['spec']}: {each['product']} is plugged into port {each['port']}")


def _plugged(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in answer["attachments"] if each["state"] == "plugged"]
