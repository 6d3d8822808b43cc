"""What the daemon tells people, programs and the service manager."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbvfiod_core.daemon import log
from usbvfiod_core.daemon.notify import notify


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("usbvfiod_core")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def say() -> None:
    ours = logging.getLogger("usbvfiod_core.daemon.somewhere")
    ours.debug("a detail")
    ours.info("serving %s", "x")
    ours.warning("careful")
    logging.getLogger("plug").info("theirs")
    logging.getLogger("plug").error("theirs too")


@pytest.mark.parametrize(
    ("verbosity", "lines"),
    [
        (-1, ["warning: careful", "error: theirs too"]),
        (0, ["serving x", "warning: careful", "error: theirs too"]),
        (1, ["debug: a detail", "serving x", "warning: careful", "error: theirs too"]),
        (5, ["debug: a detail", "serving x", "warning: careful", "theirs", "error: theirs too"]),
    ],
)
def test_text(verbosity: int, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(verbosity, "text")
    say()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [f"usbvfiod: {line}" for line in lines]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(0, "json")
    say()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("usbvfiod_core").exception("it failed")
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [entry["message"] for entry in entries] == ["serving x", "careful", "theirs too", "it failed"]
    assert entries[0]["level"] == "info"
    assert entries[0]["logger"] == "usbvfiod_core.daemon.somewhere"
    assert entries[0]["time"].endswith("+00:00")
    assert "ValueError: two\nlines" in entries[3]["exception"]


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{path}" if abstract else path)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "relative-and-missing", "x" * 300])
def test_a_service_manager_that_does_not_listen_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_logging_goes_to_the_stderr_of_the_moment() -> None:
    log.set_up(0, "text")
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr
