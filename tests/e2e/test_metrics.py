"""`usbvfiod metrics`: several servers, those that do not answer, and the file for node_exporter."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.exposed import samples, value
from usbvfiod_core.daemon.places import VARIABLE
from usbvfiod_core.testing.limits import wait_until


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "place"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv(VARIABLE, str(directory))
    return directory


def up(text: str) -> dict[str, float]:
    """Which servers answer."""
    return {dict(labels)["server"]: each for (name, labels), each in samples(text).items() if name == "usbvfiod_up"}


def test_all_servers_of_a_user(place: Path, serve: Serve, run: Run, tmp_path: Path) -> None:
    web = serve("--device", "virtual:keyboard?name=keys", socket_path=tmp_path / "web.sock")
    serve("--control-path", tmp_path / "c.sock", socket_path=tmp_path / "db.sock")
    done = run("metrics")
    assert (done.returncode, done.stderr, up(done.stdout)) == (0, "", {"db": 1, "web": 1})
    assert 'usbvfiod_attachment_plugged{server="web",attachment="1",device="keys"} 1\n' in done.stdout
    assert samples(run("metrics", "--openmetrics", "--vm", "web").stdout, openmetrics=True)
    assert up(run("metrics", "--control-path", tmp_path / "c.sock").stdout) == {"db": 1}

    file = tmp_path / "usbvfiod.prom"
    file.write_text("old")
    file.chmod(0o600)
    web.process.send_signal(signal.SIGSTOP)
    try:
        done = run("metrics", "-w", file, "--timeout", "0.5")
    finally:
        web.process.send_signal(signal.SIGCONT)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "web: it has not answered within 0.5 s\n"
    assert up(file.read_text()) == {"db": 1, "web": 0}
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [each.name for each in tmp_path.glob(".*")] == []

    assert web.terminate() == 0
    assert up(run("metrics").stdout) == {"db": 1}


def test_nobody_and_no_place_to_write(place: Path, run: Run, tmp_path: Path) -> None:
    done = run("metrics", "-w", tmp_path / "usbvfiod.prom")
    assert done.returncode == 0
    assert "no server of this user is found" in done.stderr
    assert (tmp_path / "usbvfiod.prom").read_text() == ""
    done = run("metrics", "-w", tmp_path / "none" / "usbvfiod.prom")
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    done = run("metrics", "--vm", "none")
    assert done.returncode == 8


def test_it_is_measured_while_somebody_looks(place: Path, serve: Serve, run: Run) -> None:
    serve()

    def measured() -> float:
        return value(samples(run("metrics").stdout), "loop_lateness_seconds_count")

    assert measured() == 0
    wait_until(lambda: measured() > 0, "it measures")
    assert os.listdir(place)
