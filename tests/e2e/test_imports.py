"""What is not imported: a server has the modules of the devices that it has, and a command those of its own.

A module more is easily imported and hardly noticed. Each costs time at every start, and memory as long as the server
runs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from usbvfiod_core.testing.limits import PATIENCE

PROGRAM = """
import sys, types
from usbvfiod_core.__main__ import main
code = main()
for name, module in sorted(sys.modules.items()):
    if type(module) is types.ModuleType or not isinstance(module, types.ModuleType):  # or it waits to be used
        print("imported", name)
sys.exit(code)
"""
"""The program, which says at its end what it has imported."""

COMMAND = (sys.executable, "-c", PROGRAM)

NEVER = (
    "ssl",
    "_ssl",
    "_hashlib",
    "email",
    "http",
    "zipfile",
    "tempfile",
    "random",
    "importlib.metadata",
    "unittest",
    "pdb",
    "multiprocessing",
    "concurrent.futures.thread",
    "click",
    "datetime",
    "difflib",
    "platform",
    "tomllib",
    "usbvfiod_core.embedding",
    "usbvfiod_core.testing",
    "usbvfiod_core.xhci.coverage",
    "usbvfiod_core.host.device",
    "usbvfiod_core.host.enumerated",
    "usbvfiod_usbip.asking",
    "usbvfiod_usbip.session",
    "usbvfiod_usbredir.messages",
    "usbvfiod_usbredir.peer",
    "usbvfiod_usbredir.pool",
    "usbvfiod_core.virtual.faulty",
    "usbvfiod_core.daemon.hotplug_socket",
    "usbvfiod_core.daemon.metrics_socket",
    "usbvfiod_core.daemon.exposition",
    "h11",
    "prometheus_client",
    *(
        f"usbvfiod_core.cli.{command}"
        for command in (
            "command",
            "completion",
            "config",
            "control",
            "demo",
            "devices",
            "doctor",
            "look",
            "man",
            "plugins",
            "why",
        )
    ),
)
"""What no server with a device of the kinds below needs, whatever plugins of ours are installed."""

KINDS = ("flash", "uas", "keyboard", "pointer", "loopback", "audio", "serial", "network")


def imported(text: str) -> set[str]:
    return {line.partition(" ")[2] for line in text.splitlines() if line.startswith("imported ")}


def run(*arguments: str) -> set[str]:
    """What the program imports to do this."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return imported(done.stdout)


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        ("flash", "flash?image={image}&readonly=true&transport=bot"),
        ("keyboard", "keyboard"),
        ("audio", "audio"),
        ("serial", "serial"),
    ],
)
def test_a_server_imports_what_its_devices_need(kind: str, device: str, serve: Serve, image: Path) -> None:
    server = serve(*["--device", f"virtual:{device.format(image=image)}"] * 3, command=COMMAND)
    assert server.terminate() == 0
    found = imported(server.log)
    assert {"asyncio", "usbvfiod_core.xhci.controller", f"usbvfiod_core.virtual.{kind}"} <= found
    assert sorted(found & set(NEVER)) == []
    assert [each for each in KINDS if f"usbvfiod_core.virtual.{each}" in found] == [kind]


def test_the_version_takes_neither_plugins_nor_libraries() -> None:
    found = run("--version")
    assert "usbvfiod_core.version" in found
    unwanted = ("pluggy", "asyncio", "logging", "dataclasses", "pathlib", "usbvfiod_core.cli")
    assert sorted(found & {*NEVER, *unwanted}) == []


def test_a_command_imports_no_other() -> None:
    found = run("plugins")
    assert "usbvfiod_core.cli.plugins" in found
    others = [f"usbvfiod_core.cli.{each}" for each in ("demo", "doctor", "look", "man", "changes", "why")]
    assert sorted(found & {"asyncio", "usbvfiod_core.daemon.server", *others}) == []
