"""What shells offer, with a server that runs, and in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.process import COMMAND
from usbvfiod_core.testing.limits import PATIENCE

PROGRAM = Path(sys.executable).parent / "usbvfiod"


def offered(line: str, environment: dict[str, str] | None = None) -> list[str]:
    """What is offered behind `line`."""
    variables = {"_USBVFIOD_COMPLETE": "bash_complete", "COMP_WORDS": line}
    result = subprocess.run(
        COMMAND,
        env={**os.environ, **(environment or {}), **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.stderr == ""
    return [each.partition(",")[2] for each in result.stdout.splitlines() if each]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    place = tmp_path / "place"
    place.mkdir(0o700)
    return {"USBVFIOD_CONTROL": str(place)}


def test_attachments_ports_and_servers_are_offered(serve: Serve, environment: dict[str, str], tmp_path: Path) -> None:
    devices = ("virtual:keyboard?name=keys", "virtual:loopback", "virtual:mouse?name=pointer&mode=manual&port=3")
    options = [word for device in devices for word in ("--device", device)]
    serve(
        *options, "--usb2-ports", "4", "--usb3-ports", "2", environment=environment, socket_path=tmp_path / "web.sock"
    )
    assert offered("usbvfiod detach ", environment) == ["keys", "2", "pointer"]
    assert offered("usbvfiod attach poi", environment) == ["pointer"]
    assert offered("usbvfiod attach ke", environment) == [], "it is plugged in"
    assert offered("usbvfiod move keys ", environment) == ["2", "4"]
    assert offered("usbvfiod move 2 ", environment) == ["6"]
    assert offered("usbvfiod list --vm ", environment) == ["web"]
    assert offered("usbvfiod send --vm web k", environment) == ["keys"]
    assert offered("usbvfiod send --vm db k", environment) == []


def test_devices_and_names_are_offered(environment: dict[str, str]) -> None:
    assert "virtual:tablet" in offered("usbvfiod attach ", environment)
    assert offered("usbvfiod --device virtual:k", environment) == ["virtual:keyboard"]
    assert offered("usbvfiod attach 'virtual:k", environment) == ["virtual:keyboard"]
    assert "virtual" in offered("usbvfiod --backend ")
    assert offered("usbvfiod --no-plugin virt") == ["virtual"]
    assert offered("usbvfiod man det") == ["detach"]
    assert offered("usbvfiod detach ", environment) == [], "no server runs"


@pytest.mark.skipif(not shutil.which("bash") or not PROGRAM.exists(), reason="bash, and usbvfiod as it is installed")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("usbvfiod attach virtual:key", "usbvfiod attach virtual:keyboard "),
        ("usbvfiod attach 'virtual:key", "usbvfiod attach 'virtual:keyboard' "),
        ("usbvfiod detac", "usbvfiod detach "),
    ],
)
def test_in_bash(typed: str, completed: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Bash takes a colon for the end of a word."""
    script = tmp_path / "usbvfiod.bash"
    script.write_text(subprocess.check_output([*COMMAND, "completion", "bash"], text=True))
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    child, terminal = pty.fork()
    if not child:
        variables = {**os.environ, **environment, "PATH": path, "TERM": "dumb", "HISTFILE": "", "PS1": "> "}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], variables)
    try:
        os.write(terminal, f"bind 'set enable-bracketed-paste off'; . {script}; echo rea''dy\n".encode())
        read_to(terminal, "ready\r\n> ")
        os.write(terminal, typed.encode() + b"\t")
        assert read_to(terminal, completed).endswith(completed)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def read_to(terminal: int, end: str) -> str:
    """What the terminal shows, up to `end`."""
    text, deadline = "", time.monotonic() + PATIENCE
    while not text.endswith(end) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            text += os.read(terminal, 4096).decode()
    return text
