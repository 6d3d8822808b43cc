"""Devices that take long to open, what is asked for meanwhile, and the order in which a start plugs them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.unit.daemon.toys import (
    TOYS,
    Rig,
    Toy,
    WatchedToys,
    close_and_raise,
    descriptor,
    none_left_open,
    open_descriptors,
    rig_of,
)
from usbvfiod_core import DeviceError
from usbvfiod_core.daemon.config import parse_device
from usbvfiod_core.daemon.intents import Attachment, State
from usbvfiod_core.daemon.opening import OPEN_NOTICE, SLOW, open_device


class Threads:
    """Devices that are being opened, until a test lets one go on; whatever else may block is done at once."""

    def __init__(self, rig: Rig) -> None:
        self.opening: dict[str, Callable[[], object]] = {}
        self.rig = rig
        self.run = rig.loop.run_blocking

    def run_blocking(self, call: Any, then: Callable[[Any], object]) -> None:
        if getattr(call, "func", None) is open_device:
            self.opening[call.args[3].port_path] = partial(self.run, call, then)
        else:
            self.run(call, then)

    def finish(self, *port_paths: str) -> None:
        for port_path in port_paths:
            self.opening.pop(port_path)()
        self.rig.loop.run_ready()


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rig_of(WatchedToys()):
        rig.hub.at_once = True
        for port_path in ("2-1", "2-2", "2-3"):
            rig.backend.put_in(port_path)
        yield rig


@pytest.fixture
def threads(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    threads = Threads(rig)
    with monkeypatch.context() as patch:
        patch.setattr(rig.loop, "run_blocking", threads.run_blocking)
        yield threads
        threads.finish(*threads.opening)


def start(rig: Rig, *addresses: str) -> list[Attachment]:
    """Attach these as a server does at start; who was answered."""
    answered: list[Attachment] = []
    for address in addresses:
        spec = parse_device(f"toys:{address}", TOYS)
        rig.attachments.attach(spec, answered.append, configured=True)  # type: ignore[arg-type]
    rig.loop.run_ready()
    return answered


def ports(rig: Rig) -> dict[str, int]:
    return {attachment.spec.address: attachment.port_id for attachment in rig.attachments}


def test_whoever_opens_first_the_ports_are_the_same(rig: Rig, threads: Threads) -> None:
    answered = start(rig, "2-1", "2-2", "2-3")
    threads.finish("2-3", "2-2")
    assert (answered, rig.hub.ports) == ([], {})
    threads.finish("2-1")
    assert ports(rig) == {"2-1": 1, "2-2": 2, "2-3": 3}
    assert [attachment.spec.address for attachment in answered] == ["2-1", "2-2", "2-3"]


def test_a_device_that_hangs_holds_the_others_up_for_two_seconds(
    rig: Rig, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    answered = start(rig, "2-1", "2-2")
    threads.finish("2-2")
    rig.loop.advance(OPEN_NOTICE - 0.01)
    assert answered == []
    rig.loop.advance(0.02)
    assert "device toys:2-1 takes long to open" in caplog.text
    assert [attachment.state for attachment in answered] == [State.OPENING, State.PLUGGED]
    assert ports(rig) == {"2-1": 0, "2-2": 1}
    threads.finish("2-1")
    assert ports(rig) == {"2-1": 2, "2-2": 1}


@pytest.mark.parametrize("address", ["2-1", "0403:0001", "name=Toy 0403:0001"])
def test_a_device_that_comes_again_while_the_one_before_opens(rig: Rig, threads: Threads, address: str) -> None:
    """As a stick that resets itself does on a busy host. Nobody says again that it is there."""
    rig.backend.pull_out("2-1")
    rig.backend.put_in("2-1", "0403:0001")
    start(rig, address)
    [attachment] = rig.attachments
    rig.loop.advance(OPEN_NOTICE)
    for _ in range(3):
        rig.backend.pull_out("2-1")
        rig.backend.put_in("2-1", "0403:0001")
        rig.loop.advance(10)
        threads.finish("2-1")
        rig.loop.advance(1)
        assert (attachment.state, list(threads.opening)) == (State.OPENING, ["2-1"])
    threads.finish("2-1")
    assert (attachment.state, ports(rig)) == (State.PLUGGED, {address: 1})
    assert attachment.failures == 0


def test_a_device_that_goes_while_it_opens_is_waited_for(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    [attachment] = rig.attachments
    rig.backend.pull_out("2-1")
    rig.loop.advance(10)
    threads.finish("2-1")
    rig.loop.advance(1)
    assert (attachment.state, attachment.reason) == (State.WAITING, "it is not there")
    lists = rig.backend.lists
    rig.loop.advance(1000)
    assert rig.backend.lists == lists


def test_a_device_that_is_detached_while_it_opens_is_closed(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    [attachment] = rig.attachments
    results: list[object] = []
    rig.attachments.detach(attachment, results.append)
    rig.loop.run_ready()
    assert results == []
    threads.finish("2-1")
    assert results == [attachment]
    assert (attachment.state, rig.hub.ports, rig.backend.toys[0].closed) == (State.HELD, {}, 1)


def test_a_device_that_hangs_says_so_and_can_be_given_up(
    rig: Rig, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    start(rig, "2-1", "2-2")
    hanging, other = rig.attachments
    rig.loop.advance(OPEN_NOTICE)
    threads.finish("2-2")
    assert (hanging.state, hanging.reason, other.reason) == (State.OPENING, SLOW, "")
    results: list[object] = []
    rig.attachments.detach(hanging, results.append)
    rig.loop.advance(OPEN_NOTICE - 0.01)
    assert results == []
    rig.loop.advance(0.02)
    assert (results, hanging.state) == ([hanging], State.HELD)
    assert "device toys:2-1 does not open and is given up; it is closed if it opens" in caplog.text
    threads.finish("2-1")
    assert (hanging.state, rig.backend.toys[-1].closed) == (State.HELD, 1)
    assert rig.hub.ports.keys() == {other.port_id}
    assert "was opened after it had been given up" not in caplog.text or caplog.text.count("given up") == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_device_that_was_given_up_and_is_wanted_again_is_not_opened_twice(
    rig: Rig, threads: Threads, fails: bool
) -> None:
    start(rig, "2-1")
    [attachment] = rig.attachments
    rig.attachments.detach(attachment)
    rig.loop.advance(OPEN_NOTICE)
    assert attachment.state is State.HELD
    asked = rig.ask(attachment)
    assert (asked, attachment.state) == ([], State.OPENING)
    if fails:
        rig.backend.failures["2-1"] = DeviceError("broken")
    threads.finish("2-1")
    assert (attachment.state, attachment.plugs) == ((State.RETRYING, 0) if fails else (State.PLUGGED, 1))
    assert len(rig.backend.opened) <= 1


def test_one_that_is_given_up_for_good_is_closed_when_it_opens(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    [attachment] = rig.attachments
    results: list[object] = []
    rig.attachments.detach(attachment, results.append, forget=True)
    rig.loop.advance(OPEN_NOTICE)
    assert (results, attachment.state, tuple(rig.attachments)) == ([attachment], State.GONE, ())
    threads.finish("2-1")
    assert rig.backend.toys[0].closed == 1


@pytest.mark.faults("close raised")
@pytest.mark.parametrize("held", [False, True])
def test_one_that_is_given_up_and_cannot_be_closed_is_out_all_the_same(
    rig: Rig, threads: Threads, held: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`held`: it has opened, and waits for what becomes of a hand-over."""
    monkeypatch.setattr(Toy, "close", close_and_raise)
    start(rig, "2-1")
    [attachment] = rig.attachments
    if held:
        rig.attachments.openings.held = True
        threads.finish("2-1")
    results: list[object] = []
    rig.attachments.detach(attachment, results.append)
    rig.loop.advance(OPEN_NOTICE)
    assert (results, attachment.state) == ([attachment], State.HELD)
    threads.finish(*threads.opening)
    rig.attachments.openings.held = False
    assert rig.backend.toys[0].closed == 1
    assert caplog.text.count("close raised (plugin tests)") == 1


def test_a_descriptor_that_cannot_be_identified_now_is_closed_when_that_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Callable[[], object]] = []
    run = rig.loop.run_blocking
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(rig.loop, "run_blocking", lambda call, then: calls.append(partial(run, call, then)))
        answered: list[object] = []
        spec = parse_device("toys:2-1", TOYS)
        rig.attachments.attach(spec, answered.append, fd=descriptor(rig, "2-1"))
        [attachment] = rig.attachments
        rig.attachments.detach(attachment, forget=True)
        rig.loop.advance(OPEN_NOTICE)
        assert attachment.state is State.GONE
    for call in calls:
        call()
    rig.loop.run_ready()
    assert (rig.backend.opened, none_left_open(before)) == ([], True)


def test_the_end_does_not_wait_for_one_that_hangs(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    ended: list[int] = []
    rig.attachments.close(lambda: ended.append(1))
    rig.loop.advance(OPEN_NOTICE)
    assert ended == [1]


def test_nobody_else_gets_a_device_that_is_being_opened(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    error = rig.try_to_attach("toys:2-1?name=other")
    assert str(error).endswith("is taken by toys:2-1")


# -- asked for while it is on its way -------------------------------------------------------------------------------


def test_whoever_asks_for_a_device_that_is_being_opened_is_told_how_that_ends(rig: Rig, threads: Threads) -> None:
    answered = start(rig, "2-1")
    [attachment] = rig.attachments
    before = open_descriptors()
    asked = rig.ask(attachment), rig.ask(attachment, descriptor(rig, attachment.info.address))
    assert (answered, asked) == ([], ([], []))
    threads.finish("2-1")
    assert (answered, asked) == ([attachment], ([attachment], [attachment]))
    assert (attachment.state, attachment.plugs, len(rig.backend.opened)) == (State.PLUGGED, 1, 1)
    assert none_left_open(before)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_descriptor_is_there_for_a_try_that_fails(rig: Rig, threads: Threads, fresh: bool) -> None:
    """A server without rights tries by itself in the moment in which it is passed the device."""
    rig.backend.failures["2-1"] = DeviceError("no permission")
    answered = start(rig, "2-1")
    [attachment] = rig.attachments
    if not fresh:
        rig.loop.advance(OPEN_NOTICE)
    before = open_descriptors()
    useless = rig.ask(attachment, descriptor(rig, "nothing"))
    asked = rig.ask(attachment, descriptor(rig, attachment.info.address))
    threads.finish("2-1")
    del rig.backend.failures["2-1"]
    assert (useless, asked) == ([], [])
    threads.finish("2-1")
    assert answered == useless == asked == [attachment]
    assert attachment.state is State.PLUGGED
    assert [how for how, _ in rig.backend.opened] == [attachment.info.address, f"fd of {attachment.info.address}"]
    assert none_left_open(before)


def test_a_try_behind_a_descriptor_may_fail_as_well(rig: Rig, threads: Threads) -> None:
    rig.backend.failures["2-1"] = DeviceError("no permission")
    start(rig, "2-1")
    [attachment] = rig.attachments
    before = open_descriptors()
    asked = rig.ask(attachment, descriptor(rig, attachment.info.address))
    threads.finish("2-1")
    threads.finish("2-1")
    assert [str(result) for result in asked] == ["device toys:2-1: no permission"]
    assert list(rig.attachments) == []
    assert none_left_open(before)


def test_a_device_that_went_while_it_was_opened_may_be_back_behind_a_descriptor(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    [attachment] = rig.attachments
    rig.backend.pull_out("2-1")
    rig.backend.failure = DeviceError("it is gone")
    info = rig.backend.put_in("2-1")
    asked = rig.ask(attachment, descriptor(rig, info.address))
    threads.finish("2-1")
    assert (asked, attachment.info) == ([], info)
    threads.finish("2-1")
    assert asked == [attachment]
    assert (attachment.state, rig.backend.opened[-1][0]) == (State.PLUGGED, f"fd of {info.address}")


@pytest.mark.parametrize("mode", ["auto", "ask"])
def test_a_device_that_is_leaving_is_plugged_in_after_that(rig: Rig, mode: str) -> None:
    attachment = rig.attach(f"toys:2-1?mode={mode}")
    if mode == "ask":
        rig.ask(attachment)
    rig.hub.at_once = False
    rig.backend.pull_out("2-1")
    info = rig.backend.put_in("2-1")
    assert attachment.state.value == "leaving"
    before = open_descriptors()
    asked = rig.ask(attachment), rig.ask(attachment, descriptor(rig, info.address))
    assert asked == ([], [])
    rig.hub.finish()
    rig.loop.run_ready()
    assert asked == ([attachment], [attachment])
    assert (attachment.state, rig.backend.opened[-1][0]) == (State.PLUGGED, f"fd of {info.address}")
    assert none_left_open(before)


def test_a_device_that_is_being_detached_is_not_taken_back(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    [attachment] = rig.attachments
    before = open_descriptors()
    asked = rig.ask(attachment, descriptor(rig, attachment.info.address))
    detached: list[object] = []
    rig.attachments.detach(attachment, detached.append)
    late = rig.ask(attachment, descriptor(rig, attachment.info.address))
    assert [str(result) for result in asked + late] == ["device toys:2-1: it was detached"] * 2
    assert none_left_open(before)
    threads.finish("2-1")
    assert (detached, attachment.state) == ([attachment], State.HELD)
