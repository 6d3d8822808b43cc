"""Devices whose host is not there: attachments wait, try again by their back-off, and plugins see what they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.unit.daemon.toys import Rig, ToyBackend, rig_of
from usbvfiod_core import DeviceAway, DeviceInfo
from usbvfiod_core.daemon.config import Config, parse_device
from usbvfiod_core.daemon.confinement import Confinement
from usbvfiod_core.daemon.intents import AFTER_EVENT, PACE, RETRIES, State
from usbvfiod_core.daemon.opening import open_device
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.sandbox.needs import DNS

DOWN = "server:3240 does not answer"


class RemoteToys(ToyBackend):
    """What is at its addresses is not listed."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = []
        self.there: DeviceInfo | Exception | None = None

    def look_up(self, address: str, options: Any) -> DeviceInfo | None:
        if isinstance(self.there, Exception):
            raise self.there
        return self.there

    def connects(self, address: str, options: Any) -> Iterable[int]:
        return (3240,)


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rig_of(RemoteToys()):
        rig.hub.at_once = True
        yield rig


def test_an_attachment_waits_for_a_host_with_back_off(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.backend.failure = DeviceAway(DOWN)
    attachment = rig.attach("toys:server/1-2?port=4")
    assert (attachment.state, attachment.reason) == (State.WAITING, DOWN)
    rig.loop.advance(sum(RETRIES) + 1)
    assert len(rig.backend.opened) == len(RETRIES) + 1
    assert caplog.messages == [f"device toys:server/1-2?port=4: {DOWN}"], "it is said once"
    rig.backend.failure = None
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, RETRIES[-1] + 1)
    assert (attachment.port_id, attachment.reason, attachment.failures) == (4, "", 0)


def test_another_reason_is_no_new_beginning(rig: Rig) -> None:
    """A host that comes up has no route, then refuses, then does not export the device yet: it is asked no more often
    for that, and within the longest delay it is there."""
    reasons = itertools.cycle(["no route to host", "it refuses", "it exports nothing", "it does not answer"])

    def fail() -> None:
        rig.backend.failure = DeviceAway(next(reasons))

    fail()
    attachment = rig.attach("toys:server/1-2")
    for turn, delay in enumerate([*RETRIES, RETRIES[-1], RETRIES[-1]], 1):
        assert len(rig.backend.opened) == turn
        fail()
        assert attachment.next_try is not None
        assert attachment.next_try - rig.loop.time() == pytest.approx(delay)
        rig.loop.advance(delay)
    rig.backend.failure = None
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, RETRIES[-1])


def test_it_comes_back_to_its_port(rig: Rig) -> None:
    attachment = rig.attach("toys:server/1-2?port=4")
    rig.backend.failure = DeviceAway(DOWN)
    rig.backend.disconnect("server/1-2", "the connection was lost")
    rig.loop.advance(5)
    assert (attachment.state, attachment.reason, attachment.port_id) == (State.WAITING, DOWN, 0)
    rig.backend.failure = None
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, RETRIES[-1] + 1)
    assert attachment.port_id == 4


def test_a_device_that_is_lost_as_soon_as_it_is_there_is_tried_ever_more_seldom(rig: Rig) -> None:
    """The guest's port does not come and go as fast as its server can hang up."""
    assert isinstance(rig.backend, RemoteToys)
    rig.backend.there = DeviceInfo("toys", "server/1-2", 0x1234, 1, "Ball", serial="7")
    attachment = rig.attach("toys:server/1-2?port=4")
    waits = []
    for _ in RETRIES:
        rig.backend.disconnect("server/1-2", "it hangs up")
        lost = rig.loop.time()
        assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, RETRIES[-1] + 1)
        waits.append(rig.loop.time() - lost)
    assert waits == pytest.approx(RETRIES)


def test_after_a_long_time_a_device_is_back_soon_and_its_host_was_not_asked_often(rig: Rig) -> None:
    rig.backend.failure = DeviceAway(DOWN)
    attachment = rig.attach("toys:server/1-2")
    rig.loop.advance(600)
    asked = len(rig.backend.opened)
    rig.loop.advance(3600)
    assert len(rig.backend.opened) - asked <= 360
    asked = len(rig.backend.opened)
    assert rig.loop.run_until(lambda: len(rig.backend.opened) > asked, 60)
    rig.backend.failure = None  # right behind a try
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, 10.1)


def test_a_host_that_is_silent_is_waited_for_all_the_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that is under way hears of the host as soon as it is there; and people read what it waits for."""
    run, tries = rig.loop.run_blocking, 10

    def slow(call: Any, then: Callable[[Any], object]) -> None:
        rig.loop.call_later(RETRIES[-1] + 2 if getattr(call, "func", None) is open_device else 0, run, call, then)

    rig.backend.failure = DeviceAway(DOWN)
    attachment = rig.attach("toys:server/1-2")
    rig.loop.advance(600)
    monkeypatch.setattr(rig.loop, "run_blocking", slow)
    assert rig.loop.run_until(lambda: attachment.state is State.OPENING, RETRIES[-1])
    asked = len(rig.backend.opened)
    for _ in range(tries):
        rig.loop.advance(RETRIES[-1] + 2 + PACE)
        assert (attachment.state, attachment.reason) == (State.OPENING, DOWN)
    assert tries - 1 <= len(rig.backend.opened) - asked <= tries
    assert "takes long" not in caplog.text
    monkeypatch.undo()
    rig.loop.advance(RETRIES[-1] + 2)


def test_one_that_is_back_brings_the_others_back(rig: Rig) -> None:
    """They do not wait for their own turn, which comes up to the longest delay later."""
    rig.backend.failure = DeviceAway(DOWN)
    one, *others = (rig.attach(f"toys:server/1-{number}") for number in range(1, 6))
    rig.loop.advance(600)
    asked = len(rig.backend.opened)
    assert rig.loop.run_until(lambda: len(rig.backend.opened) == asked + 5, RETRIES[-1])
    rig.attachments.plug(one, lambda result: None)  # from now on out of step with the others
    rig.loop.advance(0.1)
    assert one.state is State.WAITING
    rig.backend.failure = None
    assert rig.loop.run_until(lambda: one.state is State.PLUGGED, 1)
    left = [each.next_try - rig.loop.time() for each in others if each.next_try]
    assert len(left) == 4
    assert min(left) > 2 * AFTER_EVENT, "the test is one of those who wait"
    assert rig.loop.run_until(lambda: all(each.state is State.PLUGGED for each in others), AFTER_EVENT)


def test_plugins_see_what_a_device_is_that_is_not_listed(rig: Rig) -> None:
    assert isinstance(rig.backend, RemoteToys)
    seen: list[tuple[int, str]] = []
    rig.plugin("rules", usbvfiod_admit_device=lambda info: seen.append((info.vendor_id, info.serial)))
    rig.backend.there = DeviceInfo("toys", "server/1-2", 0x1234, 1, "Ball", serial="7")
    attachment = rig.attach("toys:server/1-2")
    assert seen == [(0x1234, "7")]
    assert attachment.info == rig.backend.there, "and so do those that wrap and intercept it"
    rig.backend.there = DeviceAway(DOWN)
    waiting = rig.attach("toys:server/1-3")
    assert (waiting.state, waiting.reason, len(seen)) == (State.WAITING, DOWN, 1)


def test_the_sandbox_lets_configured_ports_be_connected(rig: Rig) -> None:
    backends = {"toys": rig.backend}
    spec = parse_device("toys:server/1-2", backends)
    config = Config(ServerSettings(), (spec,))
    needs = Confinement(config, rig.registry, backends).needs()
    assert needs.connect == {3240, DNS}
    assert needs.sockets == {"inet", "inet6"}
    without = Confinement(Config(ServerSettings()), rig.registry, backends).needs()
    assert not without.connect | without.sockets
