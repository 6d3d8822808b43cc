"""Files of devices that are taken: who has one, what the next server makes of one that was left over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core.host import node, taken
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.host.taken import Taken, give_back_left_over

from .fake_host import FakeHost

SETTINGS = {1: {0: "usbhid", 1: ""}, 2: {0: "usb-storage"}}
HOLDER = """
import sys
from pathlib import Path
from usbvfiod_core.host import sysfs
from usbvfiod_core.host.taken import Taken
device = sysfs.read(Path(sys.argv[1]))
kept = Taken(device, where=lambda: Path(sys.argv[2]))
print("taken", flush=True)
sys.stdin.read()
"""


class Place:
    """A host with one device, a directory for the files, and servers."""

    def __init__(self, root: Path) -> None:
        self.host = FakeHost(root / "devices", SETTINGS).show(1)
        self.files = root / "run" / "usbvfiod"
        self.file = self.files / "taken-1-2.json"
        self.servers: list[subprocess.Popen[bytes]] = []

    def take(self, **more: bool) -> Taken:
        return Taken(self.host.device(), where=lambda: self.files, **more)

    def server(self) -> subprocess.Popen[bytes]:
        """Another process that takes the device."""
        words = [sys.executable, "-c", HOLDER, str(self.host.directory), str(self.files)]
        server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.servers.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == b"taken\n"
        return server

    def kill_a_server(self, configuration: int = 2) -> None:
        """Another process takes the device, its guest sets a configuration, and it is killed."""
        server = self.server()
        server.kill()
        server.wait()
        self.host.show(configuration, {})

    def start(self) -> None:
        """Another server starts, without the device."""
        give_back_left_over(lambda: self.files, self.host.root)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path)
    host = place.host

    def hands(call: Callable[..., int]) -> Callable[..., int]:
        return lambda fd, *arguments: call(*arguments)

    monkeypatch.setattr(node, "configure", hands(host.configure))
    monkeypatch.setattr(node, "connect", hands(host.connect))
    monkeypatch.setattr(node, "disconnect", hands(host.disconnect))
    opened = tmp_path / "node"
    opened.touch()
    monkeypatch.setattr(SysfsDevice, "node", opened)
    yield place
    for server in place.servers:
        server.kill()
        server.communicate()


def test_a_device_that_is_given_back_leaves_nothing(place: Place) -> None:
    kept = place.take()
    assert place.file.exists()
    assert place.file.stat().st_mode & 0o777 == 0o600
    place.host.show(2, {})
    kept.give_back(place.host, configuration=2, released=[0])
    kept.end()
    kept.end()
    assert place.host.state == (1, {0: "usbhid"})
    assert list(place.files.iterdir()) == []


def test_the_next_server_with_the_device_goes_on_with_what_was_found(place: Place) -> None:
    place.kill_a_server()
    kept = place.take()
    assert (kept.found.configuration, kept.found.drivers) == (1, {0: "usbhid"})
    assert place.host.calls == [], "the guest gets it as it is"
    kept.give_back(place.host, configuration=2, released=[0])
    kept.end()
    assert place.host.state == (1, {0: "usbhid"})
    assert not place.file.exists()


def test_a_server_that_is_killed_after_one_that_was_killed(place: Place) -> None:
    for _ in range(3):
        place.kill_a_server()
    place.start()
    assert place.host.state == (1, {0: "usbhid"})


def test_the_next_server_without_the_device_gives_it_back(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    place.kill_a_server()
    place.start()
    assert place.host.state == (1, {0: "usbhid"})
    assert not place.file.exists()
    assert "is given back to the host, which a killed server had taken" in caplog.text
    place.host.calls.clear()
    place.start()
    assert place.host.calls == []


def test_a_device_of_a_server_that_lives_is_left_alone(place: Place) -> None:
    server = place.server()
    other = place.take()
    assert other.found.configuration == 1
    other.not_taken()
    place.start()
    assert place.host.calls == []
    assert place.file.exists()
    server.communicate()


def test_what_could_not_be_taken_stays_noted_if_it_was(place: Place) -> None:
    kept = place.take()
    kept.not_taken()
    assert not place.file.exists()
    place.kill_a_server()
    place.take().not_taken()
    assert place.file.exists()
    place.start()
    assert place.host.state == (1, {0: "usbhid"})


def test_a_device_that_stays_as_the_guest_leaves_it(place: Place) -> None:
    place.kill_a_server()
    place.take(notes=False).end()
    assert not place.file.exists()
    place.start()
    assert place.host.state == (2, {})


def test_a_device_that_was_plugged_in_anew_is_not_the_one(place: Place) -> None:
    place.kill_a_server()
    place.host.directory.rename(place.host.root / "old")
    fresh = FakeHost(place.host.root, SETTINGS).show(2, {})
    kept = Taken(fresh.device(), where=lambda: place.files)
    assert kept.found.configuration == 2
    kept.end()
    place.start()
    assert place.host.calls == []


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"boot": ""}', '{"configuration": "x"}', "\0"])
def test_a_file_that_says_nothing_is_none(place: Place, text: str) -> None:
    place.files.mkdir(parents=True)
    place.file.write_text(text)
    kept = place.take()
    assert kept.found.configuration == 1
    kept.end()
    place.file.write_text(text)
    place.start()
    assert place.host.calls == []


def test_a_device_that_another_program_has_stays_noted(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.kill_a_server()
    place.host.show(2, {0: "usbfs"})
    place.start()
    assert "another program has" in caplog.text
    assert place.file.exists()


@pytest.mark.parametrize("with_it", [False, True])
def test_what_the_host_has_done_since_the_kill_stays(place: Place, with_it: bool) -> None:
    place.kill_a_server()
    place.host.show(2)
    if with_it:
        kept = place.take()
        kept.give_back(place.host.show(2, {}), configuration=2)
        kept.end()
    else:
        place.start()
    assert place.host.state == (2, {0: "usb-storage"})
    assert not place.file.exists()


def test_what_the_host_has_configured_late_is_what_was_found(place: Place) -> None:
    place.host.show(None)
    kept = place.take()
    assert kept.found.configuration is None
    place.host.show(1, {})
    kept.host_has(place.host.device())
    kept.give_back(place.host.show(2, {}), configuration=2)
    kept.end()
    assert place.host.state == (1, {}), "and somebody had unbound its driver"


def test_without_a_directory_nothing_is_noted(place: Place) -> None:
    no_directory = place.host.directory / "busnum"
    for where in (lambda: None, lambda: no_directory):
        kept = Taken(place.host.device(), where=where)
        kept.give_back(place.host, configuration=1, released=[0])
        kept.end()
        give_back_left_over(where, place.host.root)
    assert place.host.state == (1, {0: "usbhid"})


@pytest.mark.parametrize(
    ("variables", "user", "expected"),
    [
        (
            {"RUNTIME_DIRECTORY": "/run/usbvfiod/web:/run/more", "XDG_RUNTIME_DIR": "/run/user/7"},
            7,
            "/run/usbvfiod/web",
        ),
        ({"STATE_DIRECTORY": "/var/lib/x", "RUNTIME_DIRECTORY": "/run/x"}, 7, "/var/lib/x"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/usbvfiod"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/usbvfiod"),
        ({}, 0, "/run/usbvfiod"),
        ({}, 7, None),
    ],
)
def test_where_the_files_are(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], user: int, expected: str | None
) -> None:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert taken.directory() == (None if expected is None else Path(expected))
