"""Devices that come, go, flap, fail and become others: what is attached is plugged in again, in virtual time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.unit.daemon.toys import Rig, ToyBackend, WatchedToys, cycle, rig_of
from usbvfiod_core import DeviceError, Loop, Speed
from usbvfiod_core.daemon.intents import RETRIES, Attachment, State
from usbvfiod_core.daemon.inventory import SCAN_PACE

NODE = "/dev/bus/usb/002"


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rig_of(WatchedToys()):
        rig.hub.at_once = True
        yield rig


def changes(rig: Rig) -> list[str]:
    """Every state that attachments come into from now on."""
    seen: list[str] = []

    def changed(attachment: Attachment) -> None:
        if not seen or seen[-1] != attachment.state.value:
            seen.append(attachment.state.value)

    rig.attachments.changed = changed
    return seen


# -- not there yet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0403:6001", "2-1", "0403:*", "name=toy*", "/dev/bus/usb/002/002", "0403:6001:"])
def test_a_device_that_comes_later_is_plugged_in(rig: Rig, address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    attachment = rig.attach(f"toys:{address}")
    assert (attachment.state, attachment.reason) == (State.WAITING, "it is not there")
    assert f"device toys:{address} is not there; it is plugged in when it comes" in caplog.text
    rig.backend._number = 50
    rig.backend.devices.append(replace(rig.backend.put_in("2-2", "1234:0001", serial="X"), name="Stick"))
    del rig.backend.devices[0]
    rig.loop.advance(100)
    assert rig.hub.ports == {}
    rig.backend._number = 1
    rig.backend.put_in("2-1")
    rig.loop.run_until(lambda: bool(rig.hub.ports), 0.1)
    assert (attachment.state.value, attachment.port_id, attachment.reason) == ("plugged", 1, "")


def test_without_events_a_device_is_looked_for_less_and_less_often() -> None:
    for rig in rig_of(ToyBackend()):
        rig.attach("toys:0403:6001")
        lists = rig.backend.lists
        rig.loop.advance(sum(RETRIES) + 0.1)
        assert rig.backend.lists - lists == len(RETRIES)
        rig.backend.put_in("2-1")
        rig.loop.advance(RETRIES[-1])
        assert list(rig.hub.ports) == [1]


def test_with_events_nothing_is_looked_for(rig: Rig) -> None:
    rig.attach("toys:0403:6001")
    lists = rig.backend.lists
    rig.loop.advance(10_000)
    assert rig.backend.lists == lists


def test_a_backend_of_which_nothing_is_wanted_is_listed_at_leisure(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    rig.attach("toys:2-1")
    lists = rig.backend.lists
    for _ in range(100):
        rig.backend._changed()
        rig.loop.advance(0.01)
    assert rig.backend.lists - lists <= 2
    rig.backend.pull_out("2-1")
    rig.backend.put_in("2-1")
    assert rig.loop.run_until(lambda: bool(rig.hub.ports), 0.3)


def test_a_required_device_is_missing_until_it_is_plugged_in(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    attachment = rig.attach("toys:0403:6001?mode=required")
    assert rig.attachments.missing == [attachment]
    assert "is not there; it is required, so nothing is served before it comes" in caplog.text
    rig.backend.put_in("2-1")
    rig.loop.advance(0.1)
    assert rig.attachments.missing == []


# -- lost and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0403:6001", "2-1", "/dev/bus/usb/002/002", "name=*6001"])
def test_a_device_that_is_replugged_has_its_port_again(rig: Rig, address: str) -> None:
    rig.backend.put_in("2-1")
    attachment = rig.attach(f"toys:{address}?port=3")
    other = rig.attach("toys:2-9")
    for _ in range(200):
        rig.backend.pull_out("2-1")
        assert attachment.state is State.WAITING
        rig.backend.put_in("2-9", "1234:0001")
        rig.loop.advance(0.5)
        assert list(rig.hub.ports) == [1]
        back = rig.loop.time()
        rig.backend.put_in("2-1")
        assert rig.loop.run_until(lambda: 3 in rig.hub.ports, 0.5)
        assert rig.loop.time() - back < 0.11
        rig.backend.pull_out("2-9")
        rig.loop.advance(0.5)
        assert other.state is State.WAITING
    assert attachment.plugs == 201
    assert {port for port, name in rig.hub.history if name.startswith(NODE)} >= {3}
    assert rig.seen.count(("Toy 0403:6001", 3, "unplugged")) == 200


def test_another_device_that_gets_the_number_of_a_lost_one_is_not_taken(rig: Rig) -> None:
    first = rig.backend.put_in("2-1")
    attachment = rig.attach(f"toys:{first.address}")
    rig.backend.pull_out("2-1")
    rig.backend._number -= 1
    assert rig.backend.put_in("2-2", "1234:0001").address == first.address
    rig.loop.advance(100)
    assert attachment.state is State.WAITING
    assert rig.hub.ports == {}


def test_a_device_that_comes_back_with_another_speed_finds_a_port(rig: Rig) -> None:
    rig.backend.put_in("2-1", speed=Speed.SUPER)
    attachment = rig.attach("toys:0403:6001?port=10")
    rig.backend.pull_out("2-1")
    rig.backend.put_in("1-1", speed=Speed.HIGH)
    rig.loop.advance(0.2)
    assert attachment.port_id == 1
    rig.backend.pull_out("1-1")
    rig.backend.put_in("2-1", speed=Speed.SUPER)
    rig.loop.advance(0.2)
    assert attachment.port_id == 10


def test_what_happens_is_told(rig: Rig) -> None:
    seen = changes(rig)
    rig.backend.put_in("2-1")
    rig.attach("toys:2-1")
    rig.backend.pull_out("2-1")
    rig.loop.run_ready()
    rig.backend.put_in("2-1")
    rig.loop.advance(0.2)
    assert seen == ["opening", "plugged", "leaving", "waiting", "opening", "plugged"]


def test_a_lost_device_is_never_said_to_be_plugged_in(rig: Rig) -> None:
    """The port is empty at once; the device is closed when its transfers are back, and only then opened again."""
    rig.hub.at_once = False
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1")
    rig.backend.pull_out("2-1")
    rig.backend.put_in("2-1")
    rig.loop.advance(10)
    assert (attachment.state, attachment.reason, attachment.plugs) == (State.LEAVING, "it is gone", 1)
    rig.hub.finish()
    rig.loop.advance(0.2)
    assert (attachment.state.value, attachment.plugs, rig.backend.toys[0].closed) == ("plugged", 2, 1)


TAKEN = "the host has taken interface 0 back for usb-storage"


def test_a_device_that_the_host_takes_back_is_taken_again_a_while_later(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    info = rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1?port=3")
    rig.backend.disconnect(info.address, TAKEN)
    assert rig.hub.ports == {}
    lost = rig.loop.time()
    rig.loop.advance(RETRIES[0] / 2)
    assert (attachment.state, attachment.reason) == (State.WAITING, TAKEN)
    assert attachment.next_try == pytest.approx(lost + RETRIES[0])
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, 1)
    assert (list(rig.hub.ports), attachment.reason, attachment.plugs) == ([3], "", 2)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{info.address} (toys:2-1?port=3) is gone from port 3: {TAKEN}"]


def test_a_device_that_the_host_does_not_give_waits_with_the_reason(rig: Rig) -> None:
    info = rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1")
    rig.backend.failures["2-1"] = DeviceError("/dev/sda1 is mounted at /srv")
    rig.backend.disconnect(info.address, TAKEN)
    rig.loop.advance(100)
    assert (rig.hub.ports, attachment.reason) == ({}, "/dev/sda1 is mounted at /srv")
    del rig.backend.failures["2-1"]
    rig.loop.advance(RETRIES[-1])
    assert (list(rig.hub.ports), attachment.reason) == ([1], "")


def test_a_device_that_is_pulled_out_is_just_gone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    info = rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1")
    rig.hub.at_once = False
    rig.backend.pull_out("2-1")
    assert attachment.reason == "it is gone"
    assert caplog.records[-1].getMessage() == f"{info.address} (toys:2-1) is gone from port 1: it has disconnected"
    rig.hub.at_once = True
    rig.hub.finish()


# -- follow-port ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["2-1", "0403:6001"])
def test_a_socket_is_followed_through_changes_of_identity_and_its_twin(rig: Rig, address: str) -> None:
    rig.backend.put_in("2-1", twin="3-1", speed=Speed.HIGH)
    attachment = rig.attach(f"toys:{address}?follow-port=true&port=4")
    steps = [
        ("2-1", "1234:0df0", "3-1", Speed.FULL, 4),  # its bootloader
        ("3-1", "0403:6001", "2-1", Speed.SUPER, 9),  # the USB 3 side of the socket
        ("2-1", "0403:6001", "3-1", Speed.HIGH, 4),
    ]
    last = "2-1"
    for port_path, identity, twin, speed, port_id in steps:
        rig.backend.pull_out(last)
        rig.loop.advance(1)
        rig.backend.put_in("5-1", "0403:6001")  # the same device elsewhere is another one
        rig.loop.advance(1)
        assert attachment.state is State.WAITING
        rig.backend.put_in(port_path, identity, twin=twin, speed=speed)
        rig.loop.advance(1)
        assert (attachment.info.port_path, attachment.port_id) == (port_path, port_id)
        rig.backend.pull_out("5-1")
        last = port_path


def test_the_twin_of_a_socket_that_was_never_used_is_followed(rig: Rig) -> None:
    attachment = rig.attach("toys:2-1?follow-port=true")
    rig.backend.put_in("3-4", twin="2-1", speed=Speed.SUPER)
    rig.loop.advance(1)
    assert attachment.port_id == 9
    assert rig.attachments.ports.owned(attachment) == {False: 1, True: 9}  # one of each kind is kept for it


# -- failures -------------------------------------------------------------------------------------------------------


def test_a_device_that_cannot_be_opened_is_tried_less_and_less_often(rig: Rig) -> None:
    attachment = rig.attach("toys:2-1")
    rig.backend.failures["2-1"] = DeviceError("it is busy")
    rig.backend.put_in("2-1")
    rig.loop.advance(0.2)
    assert (attachment.state, attachment.reason, len(rig.backend.opened)) == (State.RETRYING, "it is busy", 1)
    started = rig.loop.time()
    for delay in RETRIES:
        assert attachment.next_try is not None
        count = len(rig.backend.opened)
        assert rig.loop.run_until(lambda count=count: len(rig.backend.opened) > count, delay + 0.01)  # type: ignore[misc]
    assert sum(RETRIES) - 0.3 < rig.loop.time() - started <= sum(RETRIES)
    del rig.backend.failures["2-1"]
    rig.loop.advance(RETRIES[-1])
    assert (attachment.state.value, attachment.failures) == ("plugged", 0)


def test_a_right_that_comes_late_is_noticed(rig: Rig) -> None:
    attachment = rig.attach("toys:2-1")
    rig.backend.failures["2-1"] = DeviceError("no permission")
    rig.backend.put_in("2-1")
    rig.loop.advance(200)
    del rig.backend.failures["2-1"]
    rig.backend.note("2-1", "")
    rig.loop.advance(1.0)
    assert attachment.state is State.PLUGGED


def test_an_event_right_behind_a_try_is_not_forgotten(rig: Rig) -> None:
    attachment = rig.attach("toys:2-1")
    rig.backend.failures["2-1"] = DeviceError("no permission")
    rig.backend.put_in("2-1")
    rig.loop.advance(200)
    count = len(rig.backend.opened)
    assert rig.loop.run_until(lambda: len(rig.backend.opened) > count, RETRIES[-1])
    rig.loop.advance(0.1)
    del rig.backend.failures["2-1"]
    rig.backend._changed()
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, 1.0)


def test_other_devices_events_do_not_make_a_failing_one_a_burden(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.attach("toys:2-1")
    rig.backend.failures["2-1"] = DeviceError("it is busy")
    rig.backend.put_in("2-1")
    rig.loop.advance(60)
    count, scans = len(rig.backend.opened), rig.backend.lists
    for _ in range(1000):
        rig.backend._changed()
        rig.loop.advance(0.01)
    assert 9 <= len(rig.backend.opened) - count <= 11  # once a second
    assert rig.backend.lists - scans <= 10 / SCAN_PACE + 20
    assert [record.getMessage() for record in caplog.records] == ["device toys:2-1: it is busy"]


def test_a_device_that_flaps_is_tried_at_a_bounded_rate_and_holds_up_nobody(rig: Rig) -> None:
    flapping, steady = rig.attach("toys:2-1"), rig.attach("toys:2-2")
    rig.backend.put_in("2-1")
    for number in range(300):
        rig.loop.advance(0.02)
        rig.backend.pull_out("2-1")
        if number == 150:
            back = rig.loop.time()
            rig.backend.put_in("2-2")
            assert rig.loop.run_until(lambda: steady.state is State.PLUGGED, 0.5)
            assert rig.loop.time() - back <= 0.1
        rig.backend.put_in("2-1")
    assert flapping.plugs <= 300 * 0.02 / 0.1 + 2
    rig.loop.advance(0.5)
    assert flapping.state is State.PLUGGED
    assert steady.plugs == 1


def test_a_device_that_resets_itself_every_few_seconds_never_needs_a_hand(rig: Rig) -> None:
    rig.backend.put_in("2-1", "10c4:ea60")
    attachment = rig.attach("toys:10c4:ea60")
    for _ in range(200):
        rig.loop.advance(3.0)
        assert attachment.state.value == "plugged"
        cycle(rig, identity="10c4:ea60")
    assert attachment.plugs == 201


def test_a_device_that_disconnects_though_it_is_there_backs_off_and_is_forgiven(rig: Rig) -> None:
    info = rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1")
    waits = []
    for _ in range(4):
        rig.backend.disconnect(info.address)
        lost = rig.loop.time()
        assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, 60)
        waits.append(rig.loop.time() - lost)
    assert waits == pytest.approx(RETRIES[:4])
    rig.loop.advance(10)
    rig.backend.disconnect(info.address)
    lost = rig.loop.time()
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, 60)
    assert rig.loop.time() - lost == pytest.approx(RETRIES[0])


def test_a_device_that_goes_while_it_is_opened_is_waited_for(rig: Rig) -> None:
    attachment = rig.attach("toys:2-1")
    rig.attachments.changed = lambda attachment: rig.backend.devices.clear()
    rig.backend.put_in("2-1")
    rig.loop.advance(1)
    assert rig.backend.opened
    assert (attachment.state.value, attachment.reason) == ("waiting", "it is not there")


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        (lambda: 1 / 0, "division by zero"),
        (lambda: None, "list_devices returned None instead of a list"),
        (lambda: ["2-1"], "list_devices returned '2-1' instead of a DeviceInfo"),
    ],
)
def test_a_backend_that_cannot_list_is_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, lists: Callable[[], object], reason: str
) -> None:
    attachment = rig.attach("toys:2-1")
    told: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(rig.backend, "list_devices", lists)
        rig.backend._changed()
        rig.attachments.inventory.ask("toys", told.append)
        rig.loop.advance(5)
        assert attachment.state is State.RETRYING
        assert reason in attachment.reason
        assert [str(each) for each in told] == [reason], "whoever asked is answered"
    rig.backend.devices.clear()
    rig.backend.put_in("2-1")
    rig.loop.advance(30)
    assert attachment.state.value == "plugged"


@pytest.mark.faults("backend toys: the end of its watch raised")
def test_a_watch_that_does_not_want_to_end(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The server ends all the same."""
    watch, backend = rig.backend.watch, rig.backend

    def raising(loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        stop = watch(loop, changed)

        def end() -> None:
            stop()
            raise RuntimeError("oops")

        return end

    backend.watch = raising  # type: ignore[method-assign]
    rig.attach("toys:2-1")
    done: list[bool] = []
    rig.attachments.close(lambda: done.append(True))
    rig.loop.run_ready()
    assert done == [True]
    assert caplog.text.count("the end of its watch raised") == 1


def test_a_device_that_is_refused_when_it_is_back(rig: Rig) -> None:
    allowed = [True]
    rig.plugin("guard", usbvfiod_admit_device=lambda info: None if allowed[0] else "not today")
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1")
    allowed[0] = False
    cycle(rig)
    assert (attachment.state, attachment.reason) == (State.REFUSED, "not today (plugin guard)")
    opened = len(rig.backend.opened)
    rig.loop.advance(1000)
    rig.backend._changed()
    rig.loop.advance(1000)
    assert len(rig.backend.opened) == opened
    assert "not today" in str(rig.plug(attachment))
    allowed[0] = True
    cycle(rig)
    assert attachment.state.value == "plugged"
