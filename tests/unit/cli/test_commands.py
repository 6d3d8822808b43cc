"""The commands in this process: what they print, and how errors become exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from usbvfiod_core import (
    PLUGIN_API,
    Backend,
    ConfigError,
    Device,
    DeviceError,
    DeviceInfo,
    Loop,
    PluginError,
    Speed,
    UsbvfiodError,
    hookimpl,
)
from usbvfiod_core.cli import main
from usbvfiod_core.cli.command import SECTIONS, application
from usbvfiod_core.cli.ending import exit_code
from usbvfiod_core.cli.output import print_table
from usbvfiod_core.daemon.config import SocketError
from usbvfiod_core.daemon.opening import AttachmentRefused
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.hooks.settings import PluginSelection
from usbvfiod_core.testing.limits import PATIENCE


class Shelf(Backend):
    name = "shelf"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def list_devices(self) -> list[DeviceInfo]:
        if self.error is not None:
            raise self.error
        return [
            DeviceInfo(
                "shelf",
                "3-1",
                0x0BDA,
                0x8153,
                "Net\x1b[31mwork",
                serial="77",
                speed=Speed.SUPER,
                port_path="3-1",
                driver="r8152",
                note="no permission",
            )
        ]

    def open(self, address: str, options: object, loop: Loop) -> Device:
        raise DeviceError("stays on the shelf")


class ShelfPlugin:
    __name__ = "shelf"

    def __init__(self, error: Exception | None = None) -> None:
        self.backend = Shelf(error)

    @hookimpl
    def usbvfiod_register_backends(self, register: object) -> None:
        assert callable(register)
        register(self.backend)

    @hookimpl
    def usbvfiod_register_commands(self, group: object) -> None:
        import click

        assert isinstance(group, click.Group)

        @group.command("stack")
        def stack() -> None:
            """Put things on the shelf."""
            click.echo("stacked")


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> ShelfPlugin:
    """Only this plugin is installed."""
    plugin = ShelfPlugin()

    def discover(registry: Registry, selection: PluginSelection) -> None:
        registry.register(plugin, "shelf")

    monkeypatch.setattr(Registry, "discover", discover)
    return plugin


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"usbvfiod {version('usbvfiod')} (plugin API {PLUGIN_API}, Python 3.")


def test_capabilities_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-capabilities"]) == 0
    capabilities = json.loads(capsys.readouterr().out)
    assert capabilities["type"] == "usb"
    assert "virtual" in capabilities["backends"]
    assert {"socket-path", "fd"} <= set(capabilities["features"])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--socket-path", "--fd", "--device", "devices", "plugins", "demo", "Exit codes"):
        assert word in text


def test_help_has_commands_in_sections_and_cuts_nothing(shelf: ShelfPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n{title}:\n") for title in (*SECTIONS, "Commands of plugins", "Options")]
    assert places == sorted(places)
    assert text.index("\n  stack ") > places[-2], "the command of a plugin"
    assert "    usbvfiod attach 10c4:ea60 " in text, "examples are not wrapped"
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", text[: places[-1]], re.MULTILINE)
    assert listed == [*(name for names in SECTIONS.values() for name in names), "stack"]
    for command in ([], ["plugins"], ["config"]):
        assert main([*command, "--help"]) == 0
        assert "..." not in capsys.readouterr().out.partition("\n\n")[2].partition("Options:")[0]


def test_every_command_is_in_a_section() -> None:
    assert set(application(Registry()).commands) == {name for names in SECTIONS.values() for name in names}


def test_devices_as_a_table(shelf: ShelfPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["DEVICE", "ID", "NAME", "SERIAL", "SPEED", "PORT", "DRIVER", "NOTE"]
    assert line.split() == [
        "shelf:3-1",
        "0bda:8153",
        "Net\\x1b[31mwork",
        "77",
        "super",
        "3-1",
        "r8152",
        "no",
        "permission",
    ]


def test_devices_as_json(shelf: ShelfPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["version"] == 1
    assert listed["errors"] == []
    [device] = listed["devices"]
    assert device == {
        "device": "shelf:3-1",
        "backend": "shelf",
        "address": "3-1",
        "vendor_id": 0x0BDA,
        "product_id": 0x8153,
        "name": "Net\x1b[31mwork",
        "serial": "77",
        "speed": "super",
        "port_path": "3-1",
        "twin": "",
        "driver": "r8152",
        "note": "no permission",
        "in_use": "",
    }


@pytest.mark.parametrize("arguments", [["devices"], ["devices", "--json"]])
def test_a_backend_that_cannot_list(
    arguments: list[str], shelf: ShelfPlugin, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.backend.error = OSError("the shelf\nfell down")
    assert main(arguments) == 4
    captured = capsys.readouterr()
    assert captured.err == "usbvfiod: error: backend shelf cannot list its devices: the shelf fell down\n"
    if captured.out:
        assert json.loads(captured.out)["errors"]


def test_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["version"], listed["api"]) == (1, PLUGIN_API)
    [virtual] = [plugin for plugin in listed["plugins"] if plugin["name"] == "virtual"]
    assert virtual["module"] == "usbvfiod_core.virtual"
    assert (virtual["distribution"], virtual["version"]) == ("usbvfiod", version("usbvfiod"))
    assert virtual["hooks"] == ["usbvfiod_register_backends", "usbvfiod_register_needs"]
    assert virtual["error"] == ""
    assert Path(virtual["origin"]).is_file()
    assert main(["plugins"]) == 0
    assert "virtual" in capsys.readouterr().out


def test_a_plugins_command(shelf: ShelfPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stack"]) == 0
    assert capsys.readouterr().out == "stacked\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (SocketError("x"), 3),
        (DeviceError("x"), 4),
        (AttachmentRefused("x"), 4),
        (PluginError("x"), 5),
        (UsbvfiodError("x"), 1),
    ],
)
def test_exit_codes(error: UsbvfiodError, code: int) -> None:
    assert exit_code(error) == code


def test_a_device_that_does_not_open(shelf: ShelfPlugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket-path", str(tmp_path / "s"), "--device", "shelf:3-1", "--sandbox", "off"]) == 4
    assert capsys.readouterr().err == "usbvfiod: error: device shelf:3-1: stays on the shelf\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["config", "check", "--config", "x"], "(it goes before the command: usbvfiod --config ... config check)"),
        (
            ["config", "show", "--usb2-ports", "4"],
            "(it goes before the command: usbvfiod --usb2-ports ... config show)",
        ),
        (["list", "--no-plugin", "web"], "(it goes before the command: usbvfiod --no-plugin ... list)"),
        (["list", "--socket-path", "x"], "(try usbvfiod list --help)"),
        (["devices", "--device", "x"], "(try usbvfiod devices --help)"),
        (["--nothing"], "(try usbvfiod --help)"),
    ],
)
def test_an_option_behind_the_command(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(f" {hint}\n")


def test_an_internal_error_is_said_to_be_one(
    monkeypatch: pytest.MonkeyPatch, shelf: ShelfPlugin, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Registry, "backends", lambda registry: 1 / 0)
    assert main(["devices"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "usbvfiod: error: internal error, please report it with the lines above: ZeroDivisionError"


def test_tables_leave_empty_columns_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B", "C"), [("1", "", "x"), ("22", "", "")])
    assert capsys.readouterr().out == "A   C\n1   x\n22\n"
    print_table(("A",), [("a\tb\x1b\x7fü\n",)])
    assert capsys.readouterr().out == "A\na\\tb\\x1b\\x7fü\\n\n"


@pytest.mark.parametrize("variable", ["NO_COLOR", ""])
def test_colours_are_for_terminals(variable: str) -> None:
    """On a terminal titles are bold, unless NO_COLOR is set; in a pipe they never are."""
    environment = {**os.environ, **({variable: "1"} if variable else {}), "TERM": "xterm"}
    environment.pop("NO_COLOR", None) if not variable else None
    command = [sys.executable, "-m", "usbvfiod_core", "devices"]
    primary, secondary = os.openpty()
    process = subprocess.Popen(command, stdout=secondary, stdin=subprocess.DEVNULL, env=environment)
    os.close(secondary)
    text = b""
    while True:
        try:
            part = os.read(primary, 4096)
        except OSError:
            break
        if not part:
            break
        text += part
    os.close(primary)
    assert process.wait() == 0
    assert (b"\x1b[" in text) == (variable == "")
    assert b"\x1b[" not in subprocess.run(command, capture_output=True, env=environment, check=True).stdout


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} -m usbvfiod_core devices --json | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert result.stdout == "{"
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_python_m_is_the_same_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "usbvfiod_core", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("usbvfiod ")
