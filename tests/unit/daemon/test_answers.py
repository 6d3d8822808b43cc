"""What a control socket says is checked by whoever asks there."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from usbvfiod_core.cli.activity import VIEWS, Activity
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.cli.extcap_program import interfaces
from usbvfiod_core.cli.servers import Servers
from usbvfiod_core.cli.unreached import ServerTimeout, ServerUnreachable
from usbvfiod_core.daemon.answers import understood
from usbvfiod_core.testing.limits import PATIENCE

GREETING = {"control": 1, "name": "x"}
GOOD = {
    "number": 1,
    "name": "mouse",
    "spec": "virtual:mouse",
    "product": "Mouse",
    "port": 3,
    "state": "plugged",
    "plugs": 1,
    "endpoints": [],
}
WHOLE: dict[str, Any] = {
    "attachments": [GOOD],
    "server": {"name": "good", "started": 1.0, "seconds": 1.0, "cpu_seconds": 1.0, "lateness": {"latency": [1]}},
    "client": None,
}


@contextmanager
def saying(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[Path]:
    """Somebody at a control socket who greets, and does this when asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock, suppress(OSError):
                    sock.sendall(json.dumps(GREETING).encode() + b"\n")
                    while sock.recv(4096):
                        answer(sock)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE)


def line(**fields: object) -> Callable[[socket.socket], object]:
    """Answer with these."""
    return lambda sock: sock.sendall(json.dumps({"ok": True, **fields}).encode() + b"\n")


class Wrong(Exception):
    pass


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"nonsense", "does not answer with JSON objects"),
        (b"[]", "does not answer with JSON objects"),
        (b"[" * 100_000, "does not answer with JSON objects"),
        (b'{"attachments": {}}', "says 'attachments' of a kind that is wrong"),
        (b'{"attachments": [1]}', "says 'attachments' with what does not belong there"),
        (b'{"a": [{"number": "1"}]}', "says 'number' of a kind that is wrong"),
        (b'{"errors": {"stall": "x"}}', "says 'errors' with what does not belong there"),
        (b'{"endpoints": [{"errors": ["x"]}]}', "says 'endpoints' with what does not belong there"),
        (b'{"memory": {"shared": "1\\nusbvfiod_up 1"}}', "says 'shared' of a kind that is wrong"),
        (b'{"seconds": 1e999}', "says a number without end"),
        (b'{"seconds": NaN}', "says a number without end"),
        (b'{"error": [1]}', "says 'error' of a kind that is wrong"),
    ],
)
def test_what_is_wrong_is_refused(said: bytes, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        understood(said, Wrong)


def test_what_is_missing_is_refused_where_it_is_needed() -> None:
    answer = understood(b'{"attachments": [{"number": 1}], "more": 1}', Wrong)
    assert answer.get("device") is None
    with pytest.raises(Wrong, match="does not say its 'name'"):
        answer["attachments"][0]["name"]


@pytest.mark.parametrize("fields", [{}, {"ok": False}, {"ok": False, "error": [1]}, {"attachments": 7}])
def test_a_command_says_so(tmp_path: Path, fields: dict[str, object]) -> None:
    with (
        saying(tmp_path / "a.sock", line(**fields)) as path,
        ControlConnection(path, PATIENCE) as connection,
        pytest.raises(ServerUnreachable, match="what answers at"),
    ):
        connection.request("list")["attachments"]


def test_events_without_end_are_no_answer(tmp_path: Path) -> None:
    def without_end(sock: socket.socket) -> None:
        while True:
            sock.sendall(b'{"event": "device"}\n' * 1000)

    with saying(tmp_path / "a.sock", without_end) as path, ControlConnection(path, PATIENCE) as connection:
        connection.timeout = 0.2
        with pytest.raises(ServerTimeout):
            connection.request("list")


def test_one_who_makes_no_sense_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Wireshark's list, and in `top`."""
    monkeypatch.setenv("USBVFIOD_CONTROL", str(tmp_path))
    paths = {name: tmp_path / f"{name}.sock" for name in ("bad", "good")}
    bad: dict[str, Any] = {"attachments": [{"number": 1}], "server": {"lateness": {}}, "client": None}
    with saying(paths["bad"], line(**bad)), saying(paths["good"], line(**WHOLE)):
        assert [each.value for each in interfaces()] == ["usbvfiod-good-mouse"]
        activity = Activity()
        with Servers(lambda: paths) as servers:
            servers.ask()
            servers.wait(time.monotonic() + PATIENCE)
            activity.take(servers.known)
        rows = {view: [row["server"] for row in activity.rows(view)] for view in VIEWS}
        assert rows == {"devices": ["good"], "endpoints": [], "servers": ["bad", "good"]}
        assert "does not say its" in activity.errors["bad"]
