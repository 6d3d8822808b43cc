"""Where servers have their control sockets, and who finds them there."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.daemon import places
from usbvfiod_core.daemon.attachments import Attachments
from usbvfiod_core.daemon.peers import Policy
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.daemon.steering import Steering
from usbvfiod_core.testing.loop import StepLoop


class Sockets:
    """Listening and stale sockets."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def listen(self, path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(str(path))
        sock.listen()
        sock.setblocking(False)
        self.last = sock
        return path

    def stale(self, path: Path) -> Path:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        return path


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with ExitStack() as stack:
        yield Sockets(stack)


@pytest.mark.parametrize(
    ("uid", "environment", "found"),
    [
        (0, {}, Path("/run/usbvfiod")),
        (0, {"XDG_RUNTIME_DIR": "/tmp"}, Path("/run/usbvfiod")),
        (1000, {"XDG_RUNTIME_DIR": "/tmp"}, Path("/tmp/usbvfiod")),
        (1000, {"XDG_RUNTIME_DIR": "tmp"}, None),
        (1000, {"XDG_RUNTIME_DIR": "/no/such/place"}, None),
        (987654321, {}, None),
        (1000, {"USBVFIOD_CONTROL": "/tmp", "XDG_RUNTIME_DIR": "/usr"}, Path("/tmp")),
        (1000, {"USBVFIOD_CONTROL": "/tmp/no/socket", "XDG_RUNTIME_DIR": "/tmp"}, Path("/tmp/usbvfiod")),
    ],
)
def test_the_place(uid: int, environment: dict[str, str], found: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert places.directory(environment) == found


def test_who_listens_is_found_and_does_not_notice(tmp_path: Path, sockets: Sockets) -> None:
    elsewhere = tmp_path / "elsewhere"
    place = tmp_path / "place"
    place.mkdir()
    web = sockets.listen(place / "web.sock")
    unit = sockets.listen(place / "db" / "control.sock")
    (place / "linked.sock").symlink_to(sockets.listen(elsewhere / "x"))
    (place / "dangling.sock").symlink_to(elsewhere / "gone")
    sockets.stale(place / "killed.sock")
    (place / "file.sock").touch()
    (place / "no-server").mkdir()
    assert places.servers(place) == {"db": unit, "linked": place / "linked.sock", "web": web}
    with pytest.raises(BlockingIOError):
        sockets.last.accept()
    assert places.servers(tmp_path / "nowhere") == places.servers(None) == {}


def test_what_killed_servers_have_left_is_removed_and_nothing_else(tmp_path: Path, sockets: Sockets) -> None:
    place = tmp_path / "place"
    places.prepare(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    sockets.listen(place / "web.sock")
    sockets.stale(place / "killed.sock")
    sockets.stale(place / "other")
    (place / "dangling.sock").symlink_to(tmp_path / "gone")
    (place / "file.sock").touch()
    places.prepare(place)
    assert sorted(path.name for path in place.iterdir()) == ["file.sock", "other", "web.sock"]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_server_without_a_place_says_what_it_needs(wanted: bool, caplog: pytest.LogCaptureFixture) -> None:
    loop = StepLoop()
    settings = ServerSettings(no_control=not wanted)
    steering = Steering(loop, settings, Policy(), control_fd=None, place=None)
    with caplog.at_level(logging.INFO):
        steering.start(_nobody, cast(Attachments, None), {}, None)
        assert caplog.text == "", "it may not come to serve"
        steering.tell()
    assert ("needs --control-path PATH" in caplog.text) is wanted
    steering.close()
    loop.close()


def _nobody(*request: object) -> None:
    raise AssertionError("nobody can ask for anything")


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_place_where_others_may_write_is_none(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(ConfigError, match="somebody else may write there"):
        places.prepare(place)


def test_a_place_of_somebody_else_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(ConfigError, match="somebody else may write there"):
        places.prepare(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        places.prepare(tmp_path / "no" / "place")


@pytest.mark.parametrize(
    ("socket_path", "names"),
    [
        (Path("/tmp/web.sock"), ["web", f"web-{os.getpid()}", str(os.getpid())]),
        (Path("usb"), ["usb", f"usb-{os.getpid()}", str(os.getpid())]),
        (Path("/tmp/.."), [str(os.getpid())]),
        (Path("/tmp/a b.sock"), [str(os.getpid())]),
        (Path("/tmp") / ("x" * 65), [str(os.getpid())]),
        (None, [str(os.getpid())]),
    ],
)
def test_names(socket_path: Path | None, names: list[str]) -> None:
    assert list(places.names(socket_path)) == names


def test_a_link_to_a_socket_elsewhere(tmp_path: Path, sockets: Sockets) -> None:
    place, usb = tmp_path / "place", Path("/tmp/web.sock")
    place.mkdir()
    target = sockets.listen(tmp_path / "control.sock")
    first = places.link(place, usb, target)
    second = places.link(place, usb, target.with_name("another"))
    assert (first, second) == (place / "web.sock", place / f"web-{os.getpid()}.sock")
    assert places.servers(place) == {"web": place / "web.sock"}
    assert places.link(place, usb, target) == first  # of a server that was killed, and has the same socket now
    own = sockets.listen(place / "own.sock")
    unit = sockets.listen(place / "db" / "control.sock")
    assert places.link(place, usb, own) is places.link(place, usb, unit) is None
    assert places.link(place, usb, tmp_path / "third") == place / f"{os.getpid()}.sock"
    with pytest.raises(ConfigError, match="every name is taken"):
        places.link(place, usb, tmp_path / "one more")
