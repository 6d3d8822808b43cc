"""The program that Wireshark finds in its extcap folder (doc/extcap.adoc there): it lists each attachment of each
server of this user as an interface, and captures one.

Wireshark takes anything on the standard error for an error, and asks often: this says nothing unless a capture fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..capture.recorder import MAX_SNAP_LENGTH, MIN_SNAP_LENGTH, SNAP_LENGTH
from ..capture.usbmon import LINK_TYPE
from ..daemon import places
from ..errors import ConfigError, DeviceError, UsbvfiodError
from ..installed import version
from .capture import BROKEN_PIPE
from .capturing import captured
from .control import ControlConnection
from .output import say

PATIENCE: Final = 1.0
"""Seconds that a server has to say what it has, before it is left out of the list."""
_ASKS: Final = ("extcap-interfaces", "extcap-dlts", "extcap-config", "capture")


class Found(NamedTuple):
    """An attachment that can be captured. `value` is what Wireshark calls it by."""

    value: str
    display: str
    path: Path
    attachment: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what Wireshark asks; the exit code."""
    given = parsed(sys.argv[1:] if arguments is None else arguments)
    asked = next((ask for ask in _ASKS if ask in given), "")
    try:
        if asked == "extcap-interfaces":
            _print("extcap", version=version("usbvfiod"), display="usbvfiod")
            for each in interfaces():
                _print("interface", value=each.value, display=each.display)
        elif asked == "extcap-dlts":
            _print("dlt", number=LINK_TYPE, name="USB_LINUX_MMAPPED", display="USB with padded Linux header")
        elif asked == "extcap-config":
            _config()
        elif asked == "capture":
            _capture(given)
        sys.stdout.flush()
    except (UsbvfiodError, OSError) as error:
        say(f"usbvfiod: {error}", err=True)
        return 1
    return 0


def parsed(arguments: Sequence[str]) -> dict[str, str]:
    """Options and their values, `--option=value` or `--option value`; whatever else Wireshark may come to say is left
    alone."""
    given: dict[str, str] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals and left and not left[0].startswith("--"):
            value = left.pop(0)
        given[name] = value
    return given


def interfaces() -> Iterator[Found]:
    """What can be captured now; a server that does not answer, or does not let this user, is left out."""
    for name, path in servers().items():
        try:
            with ControlConnection(path, PATIENCE) as server:
                found = [_found(name, path, each) for each in server.request("list")["attachments"]]
        except UsbvfiodError:
            continue
        yield from found


def servers() -> dict[str, Path]:
    """The control sockets of this user's servers, and those of the system that he may use, by name."""
    named = os.environ.get(places.VARIABLE, "")
    if named and not os.path.isdir(named):
        return {"server": Path(named)}
    place = places.directory(os.environ)
    found = places.servers(place)
    if place != places.SYSTEM and not named:
        found = {**places.servers(places.SYSTEM), **found}
    return found


def _found(name: str, path: Path, attachment: Mapping[str, Any]) -> Found:
    called = attachment["name"] or str(attachment["number"])
    where = f", port {attachment['port']}" if attachment["port"] else f", {attachment['state']}"
    product = attachment["product"] or attachment["spec"]
    return Found(interface(name, called), f"USB of {name}: {product}{where}", path, str(attachment["number"]))


def interface(server: str, attachment: str) -> str:
    """What Wireshark calls an attachment: `usbvfiod-web-stick`, but `usbvfiod-web-1:stick` where a hyphen would leave
    open which of the two it belongs to. No attachment's name has a colon."""
    plain = not {"-", ":"} & {*server, *attachment}
    return f"usbvfiod-{server}{'-' if plain else ':'}{attachment}"


def _config() -> None:
    _print(
        "arg",
        number=0,
        call="--snaplen",
        display="Bytes of a packet",
        tooltip="What is longer is cut, header included",
        type="unsigned",
        range=f"{MIN_SNAP_LENGTH},{MAX_SNAP_LENGTH}",
        default=SNAP_LENGTH,
    )
    _print(
        "arg",
        number=1,
        call="--endpoint",
        display="Endpoints",
        tooltip="Only these, such as 0x81 or 0,0x81",
        type="string",
        required="false",
    )


def _capture(given: Mapping[str, str]) -> None:
    """Capture until Wireshark closes the fifo or sends a signal. Raises UsbvfiodError and OSError."""
    value, fifo = given.get("extcap-interface", ""), given.get("fifo", "")
    if not fifo:
        raise ConfigError("there is no --fifo to capture to")
    snap_length = given.get("snaplen") or str(SNAP_LENGTH)
    if not snap_length.isdecimal():
        raise ConfigError(f"--snaplen is a number, not {snap_length}")
    found = next((each for each in interfaces() if each.value == value), None)
    if found is None:
        raise DeviceError(f"{value} is not there any more; refresh the list of interfaces")
    with ControlConnection(found.path) as server:
        fd = os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)
        result = captured(
            server,
            fd,
            lambda interfaces: os.close(fd),
            attachments=[found.attachment],
            endpoints=[each for each in given.get("endpoint", "").replace(",", " ").split() if each],
            snap_length=int(snap_length),
        )
    if result["reason"] not in ("", BROKEN_PIPE):
        raise DeviceError(f"the capture has ended: {result['reason']}")


def _print(what: str, **fields: object) -> None:
    """One sentence of Wireshark's language. Braces would end a field."""
    told = (f"{{{key}={str(value).translate(_BRACES)}}}" for key, value in fields.items())
    say(f"{what} {''.join(told)}")


_BRACES: Final = str.maketrans("{}", "()")

if __name__ == "__main__":
    sys.exit(main())
