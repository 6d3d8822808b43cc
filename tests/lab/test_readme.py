"""README's "Real devices", typed word for word: its serial adapter is the kernel's gadget, as README says itself.

Times, device numbers and the host's ports are others than README's; everything else has to be as it is shown.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.gadgets import Gadget, acm
from usbvfiod_core.testing.limits import PATIENCE, wait_until

README = Path(__file__).resolve().parents[2] / "README.md"
SECTION = README.read_text().partition("\n## Real devices\n")[2].partition("\n## ")[0]
SERVE, ATTACH, WATCHED, CAPTURE, ASK = (
    block for _, block in re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
)


SLOW = re.compile("^usbvfiod: warning: plugin .* to load$|it takes long to open")
"""What is told on a busy machine, too."""


def alike(text: str) -> list[str]:
    """The lines, without what is another one each time."""
    for changing, name in (
        (r"\b\d\d:\d\d:\d\d\b", "TIME"),
        (r"/dev/bus/usb/\d+/\d+", "NODE"),
        (r"\b\d+-\d[\d.]*\b", "PLACE"),
        (r" +", " "),
    ):
        text = re.sub(changing, name, text)
    return text.splitlines()


@pytest.fixture(autouse=True)
def typing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to be in, with the command `usbvfiod` on the path."""
    program = tmp_path / "bin" / "usbvfiod"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m usbvfiod_core "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def running(line: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on until Ctrl+C, as a terminal of its own would have it; what it prints is in `output`."""
    with output.open("wb") as stream:
        process = subprocess.Popen(["bash", "-c", f"exec {line}"], stdout=stream, stderr=stream)
    try:
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


def typed(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=4 * PATIENCE, check=False)


def test_the_serial_adapter_of_readme(typing: Path) -> None:
    log, events = typing / "server.log", typing / "watch.log"
    (serve,) = SERVE.splitlines()
    with Gadget([acm()], identity="10c4:ea60") as gadget:
        gadget.bind()
        with running(serve, log):
            wait_until(lambda: "serving on" in log.read_text(), log.read_text)
            _attached_and_listed()
            with running("usbvfiod watch", events):
                wait_until(lambda: "plugged in port 1" in events.read_text(), events.read_text)
                gadget.unbind()
                wait_until(lambda: "it is not there" in events.read_text(), events.read_text)
                gadget.bind()
                wait_until(lambda: _ends_plugged(events), events.read_text)
            printed = [each for each in alike(events.read_text()) if not SLOW.search(each)]
            assert set(printed) <= set(alike(WATCHED))
            assert [each for each in printed if "device " in each] == [
                each for each in alike(WATCHED) if "device " in each
            ]
            _captured()
            why, doctor = ASK.splitlines()
            answer = typed(why)
            assert answer.returncode == 0, answer.stdout + answer.stderr
            assert "plugged" in answer.stdout
            found = typed(doctor)
            assert found.returncode in (0, 1), found.stdout + found.stderr
            assert "Traceback" not in found.stderr


def _attached_and_listed() -> None:
    prompts = [each.partition("\n") for each in ATTACH.split("$ ")[1:]]
    assert [line.split()[1] for line, _, _ in prompts] == ["attach", "list"]
    for line, _, shown in prompts:
        answer = typed(line)
        assert answer.returncode == 0, answer.stderr
        assert alike(answer.stdout) == alike(shown)


def _ends_plugged(events: Path) -> bool:
    lines = events.read_text().splitlines()
    return any("device added" in each for each in lines) and "plugged in port 1" in lines[-1]


def _captured() -> None:
    capture, wireshark = CAPTURE.splitlines()
    file = Path("stick.pcapng")
    assert wireshark.split() == ["wireshark", file.name]
    with running(capture, Path("capture.log")):
        wait_until(lambda: file.exists() and file.stat().st_size > 0, Path("capture.log").read_text)
    assert file.read_bytes()[:4] == b"\n\r\r\n"  # a Section Header Block
