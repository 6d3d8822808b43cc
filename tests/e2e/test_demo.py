"""`usbvfiod demo` shows what it promises, and ends with commands that work as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbvfiod_core.testing.limits import PATIENCE, scaled, wait_until

PROGRAM = Path(sys.executable).parent / "usbvfiod"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it prints in a directory from which the program is not found by a relative path."""
    command = [str(PROGRAM), "demo", "--size", "4"]
    place = tmp_path_factory.mktemp("demo")
    result = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=scaled(120))
    assert result.returncode == 0, result.stderr
    return result.stdout


def commands(output: str, terminal: str) -> list[str]:
    """The commands for one terminal, with what is on continued lines."""
    section = output.partition(f"\n  {terminal}")[2].partition("\n  In ")[0].partition("\n\n")[0]
    return re.findall(r"^  \$ ((?:.*\\\n)*.*)", section, re.M)


def elsewhere(lines: list[str], place: Path) -> str:
    """A script of these commands with other paths: there is one /tmp for all tests, and the program may be below it."""
    kept = "\n".join(["set -e", *lines]).replace(str(PROGRAM), "\0")
    return kept.replace("/tmp/", f"{place}/").replace("\0", str(PROGRAM))


def test_it_shows_a_drive_a_keyboard_and_the_plugins(output: str) -> None:
    for words in (
        "1209:0011 usbvfiod Flash Drive",
        "what was read back, and the image file, are what was written",
        "$ usbvfiod attach 'virtual:keyboard?name=keys'",
        "the guest reads: Hello, guest!",
        "keys: detached",
        "$ usbvfiod plugins",
        "docs/tutorial.md",
    ):
        assert words in output
    assert re.search(r"^  virtual +usbvfiod .* used ", output, re.M)


@pytest.fixture
def server(output: str, tmp_path: Path) -> Iterator[None]:
    """The first terminal."""
    script = elsewhere(commands(output, "In one terminal:"), tmp_path)
    lines = script.replace(str(PROGRAM), f"exec {PROGRAM}").replace("\nusbvfiod ", "\nexec usbvfiod ")
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(["bash", "-c", lines], cwd=tmp_path, stderr=file)
    try:
        wait_until(lambda: (tmp_path / "control.sock").is_socket() or process.poll() is not None, "no server", PATIENCE)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()


def test_its_commands_work(output: str, server: None, tmp_path: Path) -> None:
    script = elsewhere(commands(output, "In a third, while it runs:"), tmp_path)
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=scaled(60))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("keys: usbvfiod Keyboard is plugged into port ")
    assert {line.split()[0] for line in result.stdout.splitlines()[2:]} == {"1", "2"}


def test_qemu_takes_its_options(output: str) -> None:
    """As far as that can be seen without QEMU: shared memory, and the socket of the server."""
    (command,) = commands(output, "In another, with QEMU")
    assert "share=on" in command
    (server,) = commands(output, "In one terminal:")[1:]
    path = re.search(r"--socket-path (\S+)", server)
    assert path is not None
    assert f'"path":"{path[1]}"' in command
