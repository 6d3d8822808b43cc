"""What shells offer, with a server that runs, and in real shells."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.process import COMMAND
from usbvfiod_core.testing.limits import PATIENCE

PROGRAM = Path(sys.executable).parent / "usbvfiod"
PATH = f"{PROGRAM.parent}:{os.environ['PATH']}"


needs_shell = {
    shell: pytest.mark.skipif(
        not shutil.which(shell) or not PROGRAM.exists(), reason=f"{shell}, and usbvfiod as it is installed"
    )
    for shell in ("bash", "zsh", "fish")
}


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
    assert offered("usbvfiod why --vm web ke", environment) == ["keys"]
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


def test_options_are_offered_for_every_specification() -> None:
    assert offered("usbvfiod --device 'virtual:flash?image=x&im") == [], "it is given"
    assert offered("usbvfiod why virtual:mouse?spe") == ["virtual:mouse?speed="]


@needs_shell["bash"]
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("usbvfiod attach virtual:key", "usbvfiod attach virtual:keyboard "),
        ("usbvfiod attach 'virtual:key", "usbvfiod attach 'virtual:keyboard' "),
        ("usbvfiod attach virtual:flash?read", "usbvfiod attach virtual:flash?readonly="),
        ("usbvfiod detac", "usbvfiod detach "),
    ],
)
def test_in_bash(typed: str, completed: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Bash takes a colon for the end of a word."""
    variables = {"HISTFILE": "", "PS1": "> ", **environment}
    with terminal("bash", "--norc", "--noprofile", "-i", **variables) as fd:
        os.write(fd, f"bind 'set enable-bracketed-paste off'; . {script('bash', tmp_path)}; echo rea''dy\n".encode())
        read_to(fd, "ready\r\n> ")
        os.write(fd, typed.encode() + b"\t")
        assert completed in read_to(fd, completed)


@needs_shell["zsh"]
@pytest.mark.parametrize(
    ("typed", "got"),
    [
        ("attach virtual:key\t", "attach|virtual:keyboard|"),
        ("attach virtual:flash?read\ttrue", "attach|virtual:flash?readonly=true|"),
        ("detac\t", "detach|"),
    ],
)
def test_in_zsh(typed: str, got: str, environment: dict[str, str], tmp_path: Path) -> None:
    """What it completes is what the command gets: how zsh draws its line is its own affair."""
    with terminal("zsh", "-f", "-i", ZDOTDIR=str(tmp_path), **environment) as fd:
        lines = ("autoload -U compinit", "compinit -u -D", f". {script('zsh', tmp_path)}")
        os.write(fd, "; ".join([*lines, "usbvfiod() { print -rn 'go''t:'; printf '%s|' \"$@\"; print; }"]).encode())
        os.write(fd, b"; print rea''dy\n")
        read_to(fd, "ready\r\n")
        os.write(fd, f"usbvfiod {typed}\n".encode())
        assert f"got:{got}\r\n" in read_to(fd, f"got:{got}\r\n")


@needs_shell["fish"]
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("usbvfiod attach virtual:key", ["virtual:keyboard\tusbvfiod Keyboard"]),
        ("usbvfiod attach virtual:flash\\?read", ["virtual:flash?readonly=\tOpens the image read-only; "]),
        ("usbvfiod attach 'virtual:mouse?speed=", ["virtual:mouse?speed=full", "virtual:mouse?speed=high"]),
        ("usbvfiod detac", ["detach\tUnplug "]),
    ],
)
def test_in_fish(typed: str, completed: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    command = f"source {script('fish', tmp_path)}; complete --do-complete {quoted(typed)}"
    variables = {**os.environ, **environment, "PATH": PATH, "HOME": str(tmp_path)}
    result = subprocess.run(
        ["fish", "--no-config", "-c", command], env=variables, capture_output=True, text=True, timeout=PATIENCE
    )
    lines = result.stdout.splitlines()
    assert len(lines) == len(completed), result
    assert all(line.startswith(wanted) for line, wanted in zip(lines, completed, strict=True)), lines


def quoted(text: str) -> str:
    """As fish reads it: a backslash stays one between single quotes, unless a quote or another follows."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def script(shell: str, directory: Path) -> Path:
    """The file with a shell's script."""
    path = directory / f"usbvfiod.{shell}"
    path.write_text(subprocess.check_output([*COMMAND, "completion", shell], text=True))
    return path


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[int]:
    """A shell at a terminal."""
    child, fd = pty.fork()
    if not child:
        os.execvpe(command[0], command, {**os.environ, "PATH": PATH, "TERM": "dumb", **environment})
    try:
        yield fd
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(fd)


def read_to(fd: int, end: str) -> str:
    """What the terminal shows, until `end` is in it."""
    text, deadline = "", time.monotonic() + PATIENCE
    while end not in text and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            text += os.read(fd, 4096).decode()
    return text
