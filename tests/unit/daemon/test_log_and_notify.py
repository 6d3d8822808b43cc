"""What the daemon tells people, programs and the service manager."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from usbvfiod_core.daemon import log
from usbvfiod_core.daemon.notify import PAUSE, TRIES, ServiceManager, notify
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.xhci.journal import TRACE


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


PLUGINS = ["usbvfiod_core.virtual", "plug.inner:Plugin", ""]


@pytest.mark.parametrize(
    ("verbosity", "lines"),
    [
        (-1, ["warning: careful", "error: theirs too"]),
        (0, ["serving x", "warning: careful", "theirs", "error: theirs too"]),
        (
            1,
            [
                "debug: a detail",
                "serving x",
                "warning: careful",
                "debug: theirs: a detail",
                "theirs",
                "error: theirs too",
            ],
        ),
    ],
)
def test_plugins_follow(verbosity: int, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever their loggers are called: those of a package that is no plugin do not."""
    log.set_up(verbosity, "text", PLUGINS)

    def say_all() -> list[str]:
        logging.getLogger("other.plug").info("no plugin's")
        logging.getLogger("usbvfiod_core.daemon.somewhere").debug("a detail")
        logging.getLogger("usbvfiod_core").info("serving %s", "x")
        logging.getLogger("usbvfiod").warning("careful")
        logging.getLogger("plug.inner.device").debug("theirs: a detail")
        logging.getLogger("plug").info("theirs")
        logging.getLogger("plug").error("theirs too")
        return capsys.readouterr().err.splitlines()

    assert say_all() == [f"usbvfiod: {line}" for line in lines]
    log.set_level("error")
    assert say_all() == ["usbvfiod: error: theirs too"]
    log.set_level("trace")
    logging.getLogger("plug.transfers").log(TRACE, "bytes")
    assert capsys.readouterr().err == "usbvfiod: trace: bytes\n"


def test_what_devices_call_themselves_makes_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(0, "text")
    logging.getLogger("usbvfiod").info("%s is there", "drive\nusbvfiod: error: all is lost\x1b[2J\u2028")
    assert capsys.readouterr().err == ("usbvfiod: drive\\nusbvfiod: error: all is lost\\x1b[2J\\u2028 is there\n")


HOSTILE = "drive\nusbvfiod: error: all is lost\x1b[2J\x9b2J\x7f\u2028\u202edlog\u200b\udc80"


@pytest.mark.faults(r"drive[\s\S]* fails")
@pytest.mark.parametrize("form", ["text", "json"])
def test_neither_do_exceptions_and_nothing_acts_on_a_terminal(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(0, form)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("usbvfiod").exception("%s fails", HOSTILE)
    text = capsys.readouterr().err
    assert text.replace("\n", "").isprintable()
    if form == "json":
        [line] = text.splitlines()
        assert json.loads(line)["message"] == f"{HOSTILE} fails"
        assert json.loads(line)["exception"].endswith(HOSTILE)
    else:
        first, *others = text.splitlines()
        assert first.startswith("usbvfiod: error: drive\\nusbvfiod: error: all is lost\\x1b[2J\\x9b2J")
        assert all(line.startswith("    ") for line in others)
        assert "\\u202edlog\\u200b\\udc80" in others[-1]


@pytest.mark.faults("yyyyy")
def test_messages_and_tracebacks_have_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(0, "text")

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise ValueError("x" * 100_000)

    try:
        deep(200)
    except ValueError:
        logging.getLogger("usbvfiod").exception("%s", "y" * 10_000)
    text = capsys.readouterr().err
    assert "yyy ... (8000 characters more)" in text
    assert len(text.splitlines()) <= log.TRACEBACK_MAX + 2
    assert len(text) < 20_000


@pytest.mark.faults("it failed")
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
    assert "ValueError: two\nlines" in entries[3]["exception"]


@pytest.mark.parametrize(
    ("created", "told"),
    [(0.0, "1970-01-01T00:00:00.000+00:00"), (1_234_567_890.0625, "2009-02-13T23:31:30.062+00:00")],
)
def test_times_are_of_rfc_3339(created: float, told: str) -> None:
    record = logging.makeLogRecord({"msg": "x", "levelname": "INFO", "created": created})
    assert json.loads(log.JsonFormatter().format(record))["time"] == told


@contextmanager
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Logging goes into a pipe; the reader's end."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log.set_up(0, "text")
        logging.getLogger().handlers[0].filters.clear()
        monkeypatch.setattr(log, "MESSAGE_MAX", 1 << 21)
        yield reader
    os.close(reader)


def read_to(reader: int, last: bytes) -> list[str]:
    """Lines up to one that ends so."""
    text = b""
    while not text.endswith(last + b"\n"):
        assert select.select([reader], [], [], 10)[0]
        text += os.read(reader, 65536)
    return text.decode().splitlines()


def test_nobody_waits_for_a_reader_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = logging.getLogger("usbvfiod_core")
    with pipe(monkeypatch) as reader:
        with log.never_waiting() as begin:
            begin()
            ours.info("%s", "x" * (1 << 20))  # more than a pipe holds
            assert select.select([reader], [], [], 10)[0]
            for number in range(log.KEPT + 10):
                ours.info("message %d", number)
            lines = read_to(reader, b"message %d" % (log.KEPT - 1))
            assert lines[1] == "usbvfiod: message 0"
            assert lines[2] == "usbvfiod: warning: 10 messages were lost because nobody read them in time"
            assert len(lines) == log.KEPT + 2
            ours.info("last words")
        assert read_to(reader, b"last words") == ["usbvfiod: last words"]
        ours.info("alone")
        assert read_to(reader, b"alone") == ["usbvfiod: alone"]


def test_what_is_said_before_there_may_be_threads_is_written_then_or_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = logging.getLogger("usbvfiod_core")
    with pipe(monkeypatch) as reader:
        for begun in (True, False):
            with log.never_waiting() as begin:
                ours.info("early")
                assert not [thread for thread in threading.enumerate() if thread.name == "usbvfiod-log"]
                if begun:
                    begin()
                    assert read_to(reader, b"early") == ["usbvfiod: early"]
        assert read_to(reader, b"early") == ["usbvfiod: early"]


def test_a_message_that_cannot_be_formatted_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe(monkeypatch) as reader:
        with log.never_waiting() as begin:
            begin()
            logging.getLogger("usbvfiod_core").info("%d", "no number")
            logging.getLogger("usbvfiod_core").info("the next")
        text = "\n".join(read_to(reader, b"the next"))
    assert "--- Logging error ---" in text


def test_the_end_does_not_wait_for_a_reader_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_LAST_WORDS", 0.05)
    with pipe(monkeypatch) as reader:
        with log.never_waiting() as begin:
            begin()
            for _ in range(log.KEPT + 10):
                logging.getLogger("usbvfiod_core").info("%s", "x" * 1000)
        os.set_blocking(reader, False)
        deadline = time.monotonic() + PATIENCE
        while any(thread.name == "usbvfiod-log" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 1 << 20)  # lets the thread go on


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{path}" if abstract else path)
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_a_service_manager_that_does_not_read_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        sent = 0
        while notify(f"STATUS={sent}"):
            sent += 1
            assert sent < 100_000
        assert not notify("READY=1")
        manager.recv(100)
        assert notify("READY=1")


def test_somebody_waits_until_the_service_manager_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    loop = StepLoop()
    manager = ServiceManager(loop)
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        manager.tell("MAINPID=1", then=lambda: told.append("at once"))
        assert told == ["at once"]
        while notify("STATUS=full"):
            pass
        manager.tell("MAINPID=2", then=lambda: told.append("later"))
        loop.advance(PAUSE * 10)
        assert told == ["at once"]
        while listener.recv(100) != b"MAINPID=1":
            pass
        listener.recv(100)
        loop.advance(PAUSE)
        assert told == ["at once", "later"]
        while (said := listener.recv(100)) == b"STATUS=full":
            pass
        assert said == b"MAINPID=2"
        while notify("STATUS=full"):
            pass
        manager.tell("MAINPID=3", then=lambda: told.append("never"))
        loop.advance(PAUSE * (TRIES + 1))
        assert told == ["at once", "later", "never"]
    loop.close()


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "relative-and-missing", "x" * 300])
def test_a_service_manager_that_does_not_listen_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_logging_goes_to_the_stderr_of_the_moment() -> None:
    log.set_up(0, "text")
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr
