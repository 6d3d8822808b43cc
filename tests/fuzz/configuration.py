"""What a user writes: the configuration file, device specifications and addresses. Whatever it is, it is taken or
refused by a ConfigError that says what is wrong."""

from __future__ import annotations

import tempfile
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import FindError, Watch
from usbvfiod_core import DeviceInfo, Speed
from usbvfiod_core.daemon import address_forms, escapes, matching
from usbvfiod_core.daemon.config import CommandLine, parse_device
from usbvfiod_core.daemon.config_file import load
from usbvfiod_core.errors import ConfigError, each_error
from usbvfiod_core.hooks.options import Declared
from usbvfiod_core.options import Schema
from usbvfiod_core.virtual import VirtualBackend

LINES = (
    "[server]",
    "[[device]]",
    "[plugins]",
    "[device]",
    "[plugins.mass-storage-quirks]",
    "[device.plugins.mass-storage-quirks]",
    'socket-path = "/tmp/s"',
    "fd = 3",
    "usb2-ports = 8",
    "spin = 50",
    'spec = "virtual:flash?image=/a"',
    'backend = "virtual"',
    'address = "keyboard"',
    "options = { readonly = true }",
    'disable = ["a"]',
    'enable = ["mass-storage-quirks"]',
    "readonly = true",
    "port = 9",
    'name = "a"',
    'mode = "manual"',
    "follow-port = true",
)
VALUES = ("1", "-1", "1e400", "nan", "true", '""', '"a"', "[]", "[1, 'a']", "{}", "{ a = 1 }", "1979-05-27", "07:32:00")
WORDS = (
    "virtual:",
    "usbfs:",
    "flash",
    "audio",
    "loopback",
    "serial",
    "?",
    "&",
    "=",
    "%",
    "%00",
    "%ff",
    "image=/a",
    "port=9",
    "port=",
    "name=a",
    "mode=required",
    "follow-port=true",
    "mass-storage-quirks.readonly=true",
    "isoc_interval=",
    "fault=stall@in:65536",
    "speed=full",
    "0x046d:0xc52b",
    "1d6b:0002",
    "[",
    "]",
    "*",
    "/dev/bus/usb/1/4",
    "/dev/null",
    "Bus 001 Device 004: ID 046d:c52b x",
    "hostbus=1,hostaddr=4",
    "vendorid=0x046d,productid=",
    "busid=1-1.4",
    "1-1.4",
    ",",
    ":",
    "9" * 5000,
    "٣",
    "\0",
)
DEVICES = (
    DeviceInfo("virtual", "/dev/bus/usb/001/004", 0x046D, 0xC52B, "Logi", "S[1]", Speed.HIGH, "1-1.4", "2-1"),
    DeviceInfo("virtual", "keyboard", 0x1D6B, 0x0104, "Keyboard", speed=Speed.FULL),
)


@cache
def _known() -> tuple[VirtualBackend, dict[str, Declared], Path]:
    """A backend, what plugins declare, and a file to write to."""
    from usbvfiod_mass_storage_quirks.options import DeviceOptions, ServerOptions

    assert any(each.name == "virtual" for each in entry_points(group="usbvfiod"))
    declared = {"mass-storage-quirks": Declared(Schema(DeviceOptions), Schema(ServerOptions)), "a": Declared()}
    directory = tempfile.TemporaryDirectory()
    _known.kept = directory  # type: ignore[attr-defined]
    return VirtualBackend(), declared, Path(directory.name) / "fuzz.toml"


def text(actions: Actions) -> str:
    """A specification or address, of words that occur in them."""
    parts = [
        actions.pick(WORDS) if actions.byte() < 200 else actions.some(8).decode(errors="surrogateescape")
        for _ in range(1 + actions.below(6))
    ]
    return "".join(parts)


def toml(actions: Actions) -> bytes:
    """A file, line by line, some of them bent."""
    lines = []
    for _ in range(actions.below(24)):
        line = actions.pick(LINES)
        how = actions.byte()
        if how >= 200 and "=" in line:
            line = f"{line.split('=')[0]}= {actions.pick(VALUES)}"
        lines.append(actions.some(20) if how >= 250 else line.encode())
    return b"\n".join(lines)


def one_line(error: ConfigError) -> None:
    """Each error is a line for a user."""
    for each in each_error(error):
        if not str(each) or "Traceback" in str(each):
            raise FindError(f"an error that says nothing: {each!r}")


def play(actions: Actions, watch: Watch) -> None:
    """One file or one address."""
    backend, declared, path = _known()
    how = actions.below(4)
    with watch.turn(how):
        try:
            if how < 2:
                path.write_bytes(actions.rest() if actions.rarely() else toml(actions))
                load(CommandLine(file=path), {"virtual": backend}, declared, "virtual")
            elif how < 3:
                parse_device(text(actions), {"virtual": backend}, "virtual", declared, "virtual")
            else:
                address = text(actions)
                if address_forms.canonical(address_forms.canonical(address)) != address_forms.canonical(address):
                    raise FindError(f"a form of {address!r} has another form")
                _ = address_forms.listed(address), address_forms.meant(address), matching.rank(address)
                escapes.unescaped_address(escapes.escaped(address))
                escapes.unescaped_option(escapes.escaped(address))
                for last in (None, *DEVICES):
                    matching.find_again(address, last, DEVICES)
                matching.missing(address)
        except ConfigError as error:
            one_line(error)
    watch.look()
