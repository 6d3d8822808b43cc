"""`usbvfiod metrics`: several servers, those that do not answer, and the file for node_exporter; and `--metrics`."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.exposed import Samples, samples, value
from usbvfiod_core.daemon.places import VARIABLE
from usbvfiod_core.testing.limits import PATIENCE, wait_until


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


class UnixConnection(HTTPConnection):
    """HTTP at a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


def scraped(connection: HTTPConnection) -> Samples:
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.status == 200
    return samples(response.read().decode())


def test_a_unix_socket(place: Path, serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    configuration = tmp_path / "web.toml"
    configuration.write_text(
        f'[server]\nmetrics = "{path}"\nmetrics-mode = "0666"\n[[device]]\nspec = "virtual:serial"\n'
    )
    server = serve("--config", configuration, socket_path=tmp_path / "web.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert f"every user of this host may connect to {path}" in server.log
    connection = UnixConnection(path)
    found = scraped(connection)
    assert value(found, "attachment_plugged", server="web", device="virtual:serial") == 1
    assert value(found, "client_connected") == 0
    connection.close()
    assert server.terminate() == 0
    assert not path.exists()


def test_a_port(place: Path, serve: Serve) -> None:
    """Nothing else can be listened at: the sandbox is closed by then."""
    server = serve("--metrics", "[::1]:0" if socket.has_ipv6 and not os.environ.get("NO_IPV6") else "127.0.0.1:0")
    match = re.search(r"metrics are at http://(\S+):(\d+)/metrics", server.log)
    assert match is not None
    connection = HTTPConnection(match[1].strip("[]"), int(match[2]), timeout=PATIENCE)
    first = scraped(connection)
    again = scraped(connection)
    assert value(again, "cpu_seconds_total") >= value(first, "cpu_seconds_total") > 0
    connection.close()
    assert server.terminate() == 0


def test_where_metrics_cannot_be(run: Run, tmp_path: Path) -> None:
    started = ("--socket-path", tmp_path / "usb.sock", "--metrics")
    done = run(*started, "0.0.0.0:9742")
    assert (done.returncode, "let other hosts in by a proxy" in done.stderr) == (2, True)
    done = run(*started, "/nowhere/m.sock")
    assert (done.returncode, "the directory /nowhere does not exist" in done.stderr) == (3, True)
    assert "the directory /nowhere does not exist" in run(*started, "/nowhere/m.sock", "config", "check").stderr


def test_without_the_library(run: Run, tmp_path: Path) -> None:
    """As a user has it who has not asked for it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['h11'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run("--socket-path", tmp_path / "usb.sock", "--metrics", "127.0.0.1:0", environment=environment)
    assert done.returncode == 3
    assert re.search("metrics needs the library h11: .* install .*h11", done.stderr)
