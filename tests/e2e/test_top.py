"""`usbvfiod top`: on a terminal, where keys are pressed and servers come and go, and for programs."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.e2e.process import COMMAND
from tests.terminal import Terminal
from usbvfiod_core.cli.ending import UNREACHABLE
from usbvfiod_core.daemon.places import VARIABLE
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "place"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv(VARIABLE, str(directory))
    return directory


def order(text: str, *names: str) -> list[str]:
    """The names in the order in which lines begin with them."""
    return [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in names]


def test_on_a_terminal(serve: Serve, tmp_path: Path, image: Path) -> None:
    web = serve("--device", f"virtual:flash?image={image}&name=stick", socket_path=tmp_path / "web.sock")
    with Terminal([*COMMAND, "top", "--interval", "0.2"], 110, 20) as top:
        with web.guest() as driver:
            disk = MassStorage(driver.enumerate())

            def reads(text: str) -> bool:
                disk.read(0, 8)
                return re.search(r"stick +[0-9.]+ KiB/s +[1-9]", text) is not None

            top.wait_for(reads, "its rate is seen")
        assert "1 server, 1 of 1 devices plugged in" in top.text

        serve("--device", "virtual:keyboard?name=keys", socket_path=tmp_path / "db.sock")
        top.wait_for(lambda text: "keys" in text and "2 servers" in text, "a server comes")
        top.type("n")
        top.wait_for(lambda text: order(text, "web", "db") == ["db", "web"], "sorted by name")
        top.type("r")
        top.wait_for(lambda text: order(text, "web", "db") == ["web", "db"], "the other way round")
        top.type("\t")
        text = top.wait_for(lambda text: " 81 " in text and "TYPE" in text, "endpoints")
        assert re.search(r"stick +00 ", text)
        assert re.search(r"stick +81 ", text)
        top.type("v")
        text = top.wait_for(lambda text: "DEVICES" in text and " VM " in text, "servers")
        assert re.search(r"web +\S.* +1/1 ", text)

        web.process.send_signal(signal.SIGSTOP)
        try:
            top.wait_for(lambda text: "web: it does not answer" in text, "a server hangs")
        finally:
            web.process.send_signal(signal.SIGCONT)
        top.wait_for(lambda text: "does not answer" not in text, "it goes on")

        for columns, lines in ((30, 4), (3, 1), (1, 1), (200, 50), (110, 20)):
            top.resize(columns, lines)
            top.wait_for(lambda text: text.strip() != "", f"{columns} x {lines}")
        top.wait_for(lambda text: "web" in text and "q quit" in text, "it is whole again")

        assert web.terminate() == 0
        top.wait_for(lambda text: "1 server," in text and not order(text, "web"), "a server goes")
        top.interrupt()
        assert top.ends() == 0


def test_nobody_is_there(tmp_path: Path) -> None:
    with Terminal([*COMMAND, "top"], environment={"NO_COLOR": "1"}) as top:
        top.wait_for(lambda text: "no server of this user is found" in text, "it says so")
        top.type("jk\x1b[6~\x1b[Bx?")
        top.type("q")
        assert top.ends() == 0


def test_a_terminal_that_is_closed() -> None:
    with Terminal([*COMMAND, "top"]) as top:
        top.wait_for(lambda text: "q quit" in text, "it runs")
        top.hang_up()
        assert top.ends() == -signal.SIGHUP


def test_a_terminal_that_is_not_fit() -> None:
    with Terminal([*COMMAND, "top"], environment={"TERM": "dumb"}) as top:
        assert top.ends() == 2
        assert "the terminal (TERM='dumb') is not fit for a screen; --once prints one table" in " ".join(top.lines)


def test_for_programs(serve: Serve, run: Run, tmp_path: Path) -> None:
    for json_or_text in ([], ["--json"]):
        done = run("top", "--once", *json_or_text)
        assert (done.returncode, done.stdout) == (UNREACHABLE, "")
        assert "no server of this user is found" in done.stderr
    serve("--device", "virtual:keyboard?name=keys", socket_path=tmp_path / "web.sock")
    done = run("top", "--once", "--interval", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^SERVER +DEVICE +RATE.*\nweb +keys +0 B/s", done.stdout)
    found = json.loads(run("top", "--once", "--json", "--view", "servers", "--interval", "0.1").stdout)
    [row] = found["rows"]
    assert (found["view"], row["server"], row["devices"], row["rate"]) == ("servers", "web", "1/1", 0)
    done = run("top", "--once", "--sort", "cpu")
    assert (done.returncode, "--view devices has no cpu" in done.stderr) == (2, True)
    command = [*COMMAND, "top", "--json", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        for _ in range(2):
            assert select.select([top.stdout], [], [], PATIENCE)[0]
            assert json.loads(top.stdout.readline())["rows"]
        top.send_signal(signal.SIGINT)
        assert top.wait(PATIENCE) == 0
