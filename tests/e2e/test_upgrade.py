"""`usbvfiod upgrade` as users have it: another process takes the place of the server, and the guest works on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.failing_heir import PHASES, WAYS
from tests.e2e.upgrade_rig import GuestAtWork, Upgradable, heir, patient, usages
from usbvfiod_core.cli import main, upgrade
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.limits import PATIENCE, scaled, wait_until

FROZEN = ("freeze", "state", "accept", "go")
"""The phases in which the guest waits for what comes of it."""

PLUGIN = """
from usbvfiod_core import hookimpl
from usbvfiod_core.virtual import VirtualBackend


class Toys(VirtualBackend):
    name = "toy"


@hookimpl
def usbvfiod_register_backends(register):
    register(Toys())
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Upgradable]:
    with Upgradable(tmp_path) as rig:
        yield rig


class Typist:
    """Types letters at the server's keyboard, and upgrades the server, while the guest works in the test's thread."""

    def __init__(self, rig: Upgradable, times: int) -> None:
        self._rig = rig
        self._times = times
        self.typed = ""
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def at_work(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(PATIENCE)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            for number in range(self._times):
                text = "abcdefghij"[: 3 + number % 7]
                self._rig.type(text)
                self.typed += text
                self._rig.upgrade()
        except BaseException as error:
            self.failure = error


def work(rig: Upgradable, times: int) -> None:
    with closing(GuestAtWork(rig)) as guest:
        guest.step()
        typist = Typist(rig, times)
        while typist.at_work:
            guest.step()
        typist.join()
        guest.wait_typed(len(typist.typed))
        assert guest.keys == usages(typist.typed)
        guest.step()
        guest.check()
    assert "not replaced" not in rig.server.log


def test_the_guest_works_on_while_its_server_is_replaced(rig: Upgradable) -> None:
    work(rig, 2)
    assert rig.serving() == rig.pid


@pytest.mark.long
@pytest.mark.timeout(600)
def test_twenty_upgrades_under_load(rig: Upgradable) -> None:
    work(rig, 20)


def test_the_socket_and_the_control_socket_stay_and_go_with_the_last_server(rig: Upgradable) -> None:
    inodes = [os.lstat(path).st_ino for path in (rig.server.socket_path, rig.control)]
    rig.upgrade()
    assert [os.lstat(path).st_ino for path in (rig.server.socket_path, rig.control)] == inodes
    with closing(GuestAtWork(rig)) as guest:
        guest.step()
    os.kill(rig.pid, signal.SIGTERM)
    wait_until(lambda: not rig.control.exists() and not rig.server.socket_path.exists(), "its sockets stay")


def test_sigusr2_replaces_it_with_its_own_command_line(rig: Upgradable) -> None:
    with closing(GuestAtWork(rig)) as guest:
        guest.step()
        os.kill(rig.pid, signal.SIGUSR2)
        rig.follow()
        guest.step()
        guest.check()


@pytest.mark.long
@pytest.mark.parametrize("sandbox", ["off", "on"])
def test_with_and_without_a_sandbox(tmp_path: Path, sandbox: str) -> None:
    with Upgradable(tmp_path, ["--sandbox", sandbox]) as rig, closing(GuestAtWork(rig)) as guest:
        guest.step()
        rig.upgrade()
        guest.step()
        os.kill(rig.pid, signal.SIGUSR2)
        rig.follow()
        guest.step()
        guest.check()


def test_somebody_who_watches_is_handed_over_as_well(rig: Upgradable) -> None:
    with ControlConnection(rig.control) as client:
        events = client.events()
        assert len(next(events)["attachments"]) == 3
        rig.upgrade()
        rig.ask("detach", "keys")
        found = next(each for each in events if each.get("event") == "attachment")
        assert found["attachment"]["name"] == "keys"


def failing(
    rig: Upgradable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], phase: str, way: str
) -> float:
    """Try to replace it by a program that fails; how long that took."""
    before = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "COMMAND", heir(phase, way))
        patience = scaled(8.0 if phase in FROZEN else 2.0) if way == "hang" else 10 * PATIENCE
        patch.setattr(upgrade, "PATIENCE", patience)
        assert main(["upgrade", "--control-path", str(rig.control)]) != 0
    capsys.readouterr()
    return time.monotonic() - before


def goes_on(
    rig: Upgradable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], phase: str, way: str
) -> None:
    """The guest works while that happens; the old server goes on, and can be replaced later."""
    with closing(GuestAtWork(rig)) as guest:
        guest.step()
        survive(rig, guest, lambda: failing(rig, monkeypatch, capsys, phase, way))
        guest.check()
        assert "this server was not replaced, and goes on: " in rig.server.log
        rig.upgrade()
        guest.step()


def survive(rig: Upgradable, guest: GuestAtWork, attempt: Callable[[], object]) -> None:
    """The guest works while an attempt fails, and afterwards with the same server."""
    with ThreadPoolExecutor(1) as executor:
        trying = executor.submit(attempt)
        while not trying.done():
            guest.step()
        trying.result()
    for _ in range(3):
        guest.step()
    typed = [*guest.keys, *usages("usb")]
    rig.type("usb")
    guest.wait_typed(len(typed))
    assert guest.keys == typed
    assert rig.serving() == rig.pid == rig.server.process.pid


@pytest.mark.parametrize("way", [way for way in WAYS if way != "hang"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.long
def test_the_old_one_goes_on_when_the_new_one_fails(
    rig: Upgradable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], phase: str, way: str
) -> None:
    goes_on(rig, monkeypatch, capsys, phase, way)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.long
def test_the_old_one_goes_on_when_the_new_one_hangs(
    rig: Upgradable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], phase: str
) -> None:
    goes_on(rig, monkeypatch, capsys, phase, "hang")


@pytest.mark.parametrize(("phase", "way"), [("state", "crash"), ("go", "refuse")])
def test_the_old_one_goes_on(
    rig: Upgradable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], phase: str, way: str
) -> None:
    goes_on(rig, monkeypatch, capsys, phase, way)


def test_whoever_has_taken_the_place_is_not_ended(
    rig: Upgradable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is up before it has told that it serves; then the old one has gone already."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(upgrade, "COMMAND", heir("gone", str(fifo)))
    said, popen = upgrade._said, subprocess.Popen
    waited: list[float] = []
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[0]

    def late(told: io.FileIO, patience: float) -> bytes | None:
        waited.append(patience)
        if len(waited) == 1:
            wait_until(lambda: rig.server.process.poll() is not None, lambda: rig.server.log, 4 * PATIENCE)
            return None
        if len(waited) == 3:
            going.write(b".")
        return said(told, patience)

    monkeypatch.setattr(upgrade, "_said", late)
    with fifo.open("r+b", buffering=0) as going, closing(GuestAtWork(rig)) as guest:
        guest.step()
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", start)
            assert main(["upgrade", "--wait", str(10 * PATIENCE), "--control-path", str(rig.control)]) == 0
        rig.follow()
        assert waited == [10 * PATIENCE, 0.0, 10 * PATIENCE]
        guest.step()
        guest.check()
    started[0].terminate()
    assert started[0].wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("way", "reason"),
    [("other", "format: this version reads 2, and the state has 1"), ("lacking", "unknown field 'upgrades'")],
)
@pytest.mark.long
def test_a_state_that_the_new_one_cannot_read(
    rig: Upgradable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str, reason: str
) -> None:
    goes_on(rig, monkeypatch, capsys, "format", way)
    assert reason in rig.server.log


@pytest.mark.long
def test_a_state_of_a_version_that_lacks_a_field(rig: Upgradable) -> None:
    with closing(GuestAtWork(rig)) as guest:
        guest.step()
        done = patient(rig.control, command=heir("format", "newer"))
        assert done.returncode == 0, done.stderr
        rig.follow()
        guest.step()
        guest.check()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Upgradable]:
    """A server with a device of a plugin."""
    plugin = tmp_path / "toy.py"
    plugin.write_text(PLUGIN)
    plugin.chmod(0o644)
    options: list[str | Path] = ["--plugin-files", "--plugin", plugin, "--device", "toy:tablet?name=toy"]
    with Upgradable(tmp_path, options) as rig:
        yield rig


def lacking_the_plugin(rig: Upgradable) -> None:
    done = patient(rig.control, "--", "--socket-path", str(rig.server.socket_path), "--control-path", str(rig.control))
    assert done.returncode == 5
    assert "device toy:tablet?name=toy is plugged in, and there is no backend toy here" in done.stderr


def test_a_plugin_that_the_new_one_lacks(toy: Upgradable) -> None:
    with closing(GuestAtWork(toy)) as guest:
        guest.step()
        survive(toy, guest, lambda: lacking_the_plugin(toy))
        guest.check()


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", [0, 25, 50, 75])
def test_a_hundred_failures(
    toy: Upgradable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], first: int
) -> None:
    """Of every phase in every way, three times each and more; one server goes on after 25 of them, and is replaced
    then."""
    ways = [(phase, way) for way in WAYS for phase in PHASES] + [("format", "other"), ("format", "lacking")]
    attempts: list[Callable[[], object]] = [lambda: lacking_the_plugin(toy)]
    attempts += [partial(failing, toy, monkeypatch, capsys, *each) for each in ways]
    with closing(GuestAtWork(toy)) as guest:
        guest.step()
        for number in range(first, first + 25):
            survive(toy, guest, attempts[number % len(attempts)])
        guest.check()
        assert toy.server.log.count("this server was not replaced, and goes on: ") == 25
        assert patient(toy.control).returncode == 0
        toy.follow()
        guest.step()
        guest.check()


GUARD = """
from usbvfiod_core import Interceptor, hookimpl


@hookimpl
def usbvfiod_intercept_device(info):
    return Interceptor() if "Tablet" in info.name else None
"""
"""Keeps what it knows to itself."""


def test_what_cannot_be_handed_over_is_plugged_in_again_if_that_is_wanted(tmp_path: Path) -> None:
    plugin = tmp_path / "guard.py"
    plugin.write_text(GUARD)
    plugin.chmod(0o644)
    options: list[str | Path] = ["--plugin-files", "--plugin", plugin, "--device", "virtual:tablet?name=tablet"]
    with Upgradable(tmp_path, options) as rig:
        moved = rig.ask("move", "tablet", "5")
        assert moved.returncode == 0, moved.stderr
        with closing(GuestAtWork(rig)) as guest:
            guest.step()
            done = rig.ask("upgrade")
            assert done.returncode == 4
            assert "device virtual:tablet?name=tablet: plugin guard: Interceptor does not say" in done.stderr
            assert "--replug unplugs what cannot be handed over" in done.stderr
            assert rig.serving() == rig.server.process.pid
            plugged = "Tablet (virtual:tablet?name=tablet) is plugged into port"
            # Where it had been moved to: if the other process fails, and if it does not.
            assert patient(rig.control, "--replug", command=heir("state", "refuse")).returncode != 0
            wait_until(lambda: rig.server.log.count(f"{plugged} 5 ") == 2, lambda: rig.server.log)
            rig.upgrade("--replug")
            wait_until(lambda: rig.server.log.count(f"{plugged} 5 ") == 3, lambda: rig.server.log)
            guest.step()
            with ControlConnection(rig.control, PATIENCE) as control:
                numbers = {each["name"]: each["number"] for each in control.request("list")["attachments"]}
            assert numbers == {"bot": 1, "uas": 2, "keys": 3, "tablet": 6}, "none is used again"
        assert rig.server.log.count(" goes on at port ") == 3  # the drives and the keyboard


def test_what_the_guest_sees_of_the_settings_stays(rig: Upgradable) -> None:
    done = rig.ask("upgrade", "--", "--socket-path", str(rig.server.socket_path), "--control-path", str(rig.control),
                   "--usb2-ports", "4")  # fmt: skip
    assert done.returncode == 2
    assert "usb2-ports is 8 while the guest runs, and would be 4; restart the server to change it" in done.stderr
    assert rig.serving() == rig.pid


def test_a_changed_configuration_is_carried_out(rig: Upgradable) -> None:
    bot, uas = rig.images
    with closing(GuestAtWork(rig)) as guest:
        guest.step()
        rig.upgrade(
            *("--", "--socket-path", str(rig.server.socket_path), "--control-path", str(rig.control)),
            *("--device", f"virtual:flash?image={bot}&transport=bot&name=bot&mass-storage-quirks.quirks=kw"),
            *("--device", f"virtual:flash?image={uas}&transport=uas&name=uas&mass-storage-quirks.quirks=kw"),
            *("--device", "virtual:keyboard?name=keys"),
            *("--device", "virtual:tablet?name=tablet"),
        )
        guest.step()
    wait_until(lambda: "tablet" in rig.ask("list").stdout, "no tablet")
