"""Commands that change a running server: attach, detach, move, send, reload, log-level."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from ..daemon.config import host_backend, parse_device
from ..daemon.log import LEVEL_NAMES
from ..daemon.matching import find
from ..errors import DeviceError, UsbvfiodError
from ..hooks.registry import Registry
from . import completing
from .control import Connect, control_options
from .numbers import WholeNumber
from .output import print_object, say
from .passing import files_of


@click.command()
@click.argument("spec", shell_complete=completing.attachable)
@click.option(
    "--open",
    "open_here",
    is_flag=True,
    help="Open the device's node here, with the caller's rights, and pass it to the server.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
@click.pass_obj
def attach(registry: Registry, spec: str, open_here: bool, as_json: bool, connect: Connect) -> None:
    """Plug a device into a running server's VM, and keep it plugged in.

    SPEC is a device specification as for --device, or the number or name of an attachment that is there. A device that
    is not there now is plugged in when it comes, with exit code 0 too. One of mode=ask is allowed. Files that SPEC
    names, such as an image, are opened here, with the caller's rights, and passed to the server.
    """
    with connect() as server:
        if not open_here:
            with files_of(registry, spec) as opened:
                try:
                    answer = server.request(
                        "attach",
                        device=opened.spec,
                        **({"files": list(opened.files)} if opened.files else {}),
                        fds=list(opened.files.values()),
                    )
                except UsbvfiodError as error:
                    more = opened.more(error)
                    if not more:
                        raise
                    raise type(error)(f"{error}{more}") from None
        else:
            node = _node(registry, spec, server.request("list")["attachments"])
            try:
                fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise DeviceError(f"{node} cannot be opened: {error.strerror}") from None
            try:
                answer = server.request("attach", device=spec, fd=True, fds=[fd])
            finally:
                os.close(fd)
    _show(answer["attachment"], as_json)


@click.command()
@click.argument("attachment", shell_complete=completing.attachments)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def detach(attachment: str, as_json: bool, connect: Connect) -> None:
    """Unplug a device from a running server's VM, and keep it out.

    ATTACHMENT is a number or name as `list` shows it, a specification, or an address of the device. One that is
    configured stays in the list and can be attached again by its name.
    """
    with connect() as server:
        found = server.request("detach", attachment=attachment)["attachment"]
    if as_json:
        print_object({"attachment": found})
        return
    again = found["spec"] if found["state"] == "gone" else found["name"] or str(found["number"])
    say(f"{_label(found)}: detached; `usbvfiod attach {shlex.quote(again)}` plugs it in again")


@click.command()
@click.argument("attachment", shell_complete=completing.attachments)
@click.argument("port", type=WholeNumber(1, 255), shell_complete=completing.ports)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def move(attachment: str, port: int, as_json: bool, connect: Connect) -> None:
    """Unplug a device and plug it into another port of the controller, which it keeps.

    Nothing happens if the port is taken or of the wrong kind.
    """
    with connect() as server:
        _show(server.request("move", attachment=attachment, port=port)["attachment"], as_json)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("attachment", shell_complete=completing.attachments)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def send(attachment: str, words: tuple[str, ...], as_json: bool, connect: Connect) -> None:
    """Say something to a plugged device: press a key, move a pointer.

    ATTACHMENT is as for `detach`. What WORDS a device understands is its own; it names them when it gets none.
    """
    with connect() as server:
        text = server.request("send", attachment=attachment, words=list(words))["text"]
    if as_json:
        print_object({"text": text})
    elif text:
        say(text)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def reload(as_json: bool, connect: Connect) -> None:
    """Read a running server's configuration file again, and attach and detach what has changed in it."""
    with connect() as server:
        answer = server.request("reload")
    if as_json:
        print_object(answer)
        return
    for change in ("added", "removed"):
        for text in answer[change]:
            say(f"{change} {text}")
    for text in answer["ignored"]:
        say(f"{text} is read only at start; restart the server to apply it", err=True)
    for error in answer["errors"]:
        say(error, err=True)
    if not answer["added"] and not answer["removed"]:
        say("no device has changed")


@click.command("log-level")
@click.argument("level", type=click.Choice(LEVEL_NAMES))
@control_options
def log_level(level: str, connect: Connect) -> None:
    """Set how much a running server logs: errors only, or every transfer (trace)."""
    with connect() as server:
        server.request("log-level", level=level)


def _node(registry: Registry, spec: str, attachments: list[dict[str, Any]]) -> str:
    """The node of the device that `spec` means."""
    known = (each["spec"] for each in attachments if spec in (str(each["number"]), each["name"], each["spec"]))
    backends = registry.backends()
    parsed = parse_device(next(known, spec), backends, host=host_backend(backends))
    info = find(parsed.address, backends[parsed.backend].list_devices())
    if info is None:
        raise DeviceError(f"device {spec} is not there; `usbvfiod devices` lists what there is")
    if not info.address.startswith("/"):
        raise DeviceError(f"device {spec} has no node that can be opened")
    return info.address


def _show(attachment: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_object({"attachment": attachment})
        return
    if attachment["state"] == "plugged":
        told = f"{attachment['product']} is plugged into port {attachment['port']}"
    else:
        told = attachment["state"] + (f": {attachment['reason']}" if attachment["reason"] else "")
    say(f"{_label(attachment)}: {told}")


def _label(attachment: dict[str, Any]) -> str:
    """What its user calls it."""
    return str(attachment["name"] or attachment["spec"])
