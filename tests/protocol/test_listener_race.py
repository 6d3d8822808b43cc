"""Of servers that start and end at one path at the same time, exactly one listens there."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from usbvfiod_core.daemon import places
from usbvfiod_core.vfio_user import listener
from usbvfiod_core.vfio_user.directory import alone_beside
from usbvfiod_core.vfio_user.listener import SocketPath

STARTER = """
import sys
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.vfio_user.listener import SocketPath
for line in sys.stdin:
    try:
        own = SocketPath(line[:-1])
    except ConfigError:
        own = None
    print("0" if own is None else "1", flush=True)
    ends = sys.stdin.readline()
    if own is not None and ends == "end\\n":
        own.close()
    elif own is not None:
        own.socket.close()
    print("gone", flush=True)
"""
"""A server as far as its socket goes: it starts at the path of a line, and ends in order, or as if it were killed."""


@pytest.fixture
def starters() -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
            for _ in range(3)
        ]


def tell(starters: list[subprocess.Popen[str]], lines: list[str]) -> list[str]:
    """Give each a line, all at the same time as far as that goes, and return what they answer."""
    for starter, line in zip(starters, lines, strict=True):
        assert starter.stdin is not None
        starter.stdin.write(f"{line}\n")
    answers = []
    for starter in starters:
        assert starter.stdout is not None
        answers.append(starter.stdout.readline().strip())
    return answers


def race(starters: list[subprocess.Popen[str]], tmp_path: Path, rounds: int) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "real")
    paths = [f"{tmp_path}/real/s", f"{tmp_path}/other/s", f"{tmp_path}/other/../real/s"]
    for turn in range(rounds):
        started = tell(starters, paths)
        assert sorted(started) == ["0", "0", "1"], f"in turn {turn}"
        # Each second socket is left stale; the others are removed while the next may already come.
        tell(starters, ["killed" if turn % 2 else "end"] * 3)
        assert os.path.lexists(paths[0]) == bool(turn % 2)


def test_one_of_many_listens(starters: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    race(starters, tmp_path, 300)


@pytest.mark.long
def test_one_of_many_listens_each_of_ten_thousand_times(starters: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    race(starters, tmp_path, 10_000)


def test_a_server_that_ends_leaves_its_successor_alone(path: str) -> None:
    """It was thought stale, and replaced, before it has come to removing its path."""
    first = SocketPath(path)
    os.unlink(path)
    second = SocketPath(path)
    first.close()
    assert os.path.exists(path)
    second.close()
    assert not os.path.exists(path)


def test_nothing_is_left_beside_the_socket(path: str) -> None:
    SocketPath(path).close()
    assert os.listdir(os.path.dirname(path)) == []


def test_whoever_keeps_the_directory_locked_only_delays(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "_PATIENCE", 0.01)
    monkeypatch.setattr(listener, "_LAST_PATIENCE", 0.01)
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        own = SocketPath(path)
        assert "locked" in caplog.text
        own.close()
        assert not os.path.exists(path)
    finally:
        os.close(fd)


def test_a_directory_that_cannot_be_read_is_used_without_a_lock(path: str) -> None:
    with alone_beside("/nonexistent/s", 0.0) as alone:
        assert not alone


def test_stale_control_sockets_are_removed_by_one_at_a_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server may just be replacing what was found stale."""
    place = Path(path).parent
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place / "stale.sock"))
    held: list[bool] = []

    def probe(name: str) -> int:
        fd = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(False)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(fd)
        return listener.probe(name)

    monkeypatch.setattr(places, "probe", probe)
    places.prepare(place)
    assert held == [True]
    assert not (place / "stale.sock").exists()
