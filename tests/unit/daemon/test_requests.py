"""What people ask of attachments: modes, attach, detach, move, and descriptors that are passed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.unit.daemon.toys import (
    Rig,
    ToyOptions,
    WatchedToys,
    cycle,
    descriptor,
    none_left_open,
    open_descriptors,
    rig_of,
)
from usbvfiod_core import ConfigError, DeviceError
from usbvfiod_core.daemon.config import DeviceSpec
from usbvfiod_core.daemon.intents import Attachment, State


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rig_of(WatchedToys()):
        rig.hub.at_once = True
        yield rig


# -- modes and requests ---------------------------------------------------------------------------------------------


def test_a_manual_attachment_waits_for_a_request_and_is_then_kept(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1?mode=manual")
    rig.backend._changed()
    rig.loop.advance(100)
    assert (attachment.state, rig.backend.opened) == (State.HELD, [])
    assert rig.plug(attachment) is attachment
    cycle(rig)
    assert (attachment.state.value, attachment.plugs) == ("plugged", 2)
    rig.detach(attachment)
    cycle(rig)
    assert attachment.state is State.HELD


def test_ask_is_asked_each_time(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    attachment = rig.attach("toys:2-1?mode=ask&name=stick")
    assert attachment.state is State.WAITING
    rig.backend.put_in("2-1")
    rig.loop.advance(1)
    assert attachment.state.value == "asking"
    assert "Toy 0403:6001 (stick) is there; attach it to allow it" in caplog.text
    for _ in range(2):
        assert rig.plug(attachment) is attachment
        assert attachment.state.value == "plugged"
        cycle(rig)
        assert attachment.state.value == "asking"
    rig.backend.pull_out("2-1")
    rig.loop.advance(1)
    assert attachment.state is State.WAITING


def test_a_request_for_a_device_that_is_not_there_is_kept_in_mind(rig: Rig) -> None:
    attachment = rig.attach("toys:2-1?mode=ask")
    assert rig.plug(attachment) is attachment
    assert attachment.state is State.WAITING
    rig.backend.put_in("2-1")
    rig.loop.advance(1)
    assert attachment.state.value == "plugged"


def test_a_detached_device_keeps_its_port_and_gives_up_the_device(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    one = rig.attach("toys:2-1?name=one")
    rig.detach(one)
    two = rig.attach("toys:0403:6001?name=two")
    assert two.port_id == 2
    assert "is taken by two" in str(rig.plug(one))
    rig.detach(two, forget=True)
    assert rig.plug(one) is one
    assert one.port_id == 1


def test_a_device_can_be_moved_to_another_port(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1")
    other = rig.attach("toys:2-2?port=5")
    results: list[object] = []
    rig.attachments.move(attachment, 3, results.append)
    rig.loop.run_ready()
    assert results == [attachment]
    assert list(rig.hub.ports) == [3]
    for port_id, message in ((5, "reserved for toys:2-2"), (9, "use 1 to 8"), (16, "does not exist"), (0, "not exist")):
        with pytest.raises(ConfigError, match=message):
            rig.attachments.move(attachment, port_id, results.append)
    assert (attachment.port_id, attachment.plugs) == (3, 2)
    cycle(rig)
    assert attachment.port_id == 3
    rig.attachments.move(other, 1, results.append)
    rig.backend.put_in("2-2")
    rig.loop.advance(1)
    assert other.port_id == 1


def test_a_move_is_no_reason_to_ask_again(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1?mode=ask")
    assert rig.plug(attachment) is attachment
    rig.attachments.move(attachment, 3, lambda result: None)
    rig.loop.run_ready()
    assert (attachment.state, attachment.port_id) == (State.PLUGGED, 3)


def test_requests_at_the_wrong_time_change_nothing(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1")
    assert str(rig.plug(attachment)) == "device toys:2-1: it is already plugged in"
    assert attachment.plugs == 1


# -- descriptors ----------------------------------------------------------------------------------------------------


def test_a_device_is_attached_by_a_descriptor(rig: Rig) -> None:
    info = rig.backend.put_in("2-1")
    rig.backend.put_in("2-2")
    before = open_descriptors()
    attachment = rig.try_to_attach(f"toys:{info.address}?port=2&size=1", descriptor(rig, info.address))
    assert isinstance(attachment, Attachment)
    assert (attachment.state, attachment.port_id, attachment.info) == (State.PLUGGED, 2, info)
    assert rig.backend.opened == [(f"fd of {info.address}", ToyOptions(size=1))]
    assert none_left_open(before)
    rig.backend.failures["2-1"] = DeviceError("no permission")
    cycle(rig)
    assert (attachment.state.value, attachment.reason) == ("retrying", "no permission")
    del rig.backend.failures["2-1"]
    assert rig.plug(attachment, descriptor(rig, attachment.info.address)) is attachment
    assert rig.backend.opened[-1][0] == f"fd of {attachment.info.address}"


@pytest.mark.parametrize("plugged", [False, True])
def test_a_descriptor_that_is_not_wanted_is_closed(rig: Rig, plugged: bool) -> None:
    info, other = rig.backend.put_in("2-1"), rig.backend.put_in("2-2", "1234:0001")
    if plugged:
        attachment = rig.attach("toys:2-1")
    before = open_descriptors()
    error = rig.try_to_attach("toys:2-1", descriptor(rig, other.address))
    assert f"the descriptor is of another device, {other.address} port 2-2" in str(error)
    assert "the descriptor is of no toy" in str(rig.try_to_attach("toys:2-1", descriptor(rig, "nothing")))
    assert "no backend" in str(_attach_elsewhere(rig, descriptor(rig, info.address)))
    rig.plugin("guard", usbvfiod_admit_device=lambda info: "never")
    assert "never" in str(rig.try_to_attach("toys:2-2", descriptor(rig, other.address)))
    if plugged:
        assert "already plugged in" in str(rig.plug(attachment, descriptor(rig, info.address)))
    assert none_left_open(before)


def _attach_elsewhere(rig: Rig, fd: int) -> object:
    results: list[object] = []
    rig.attachments.attach(DeviceSpec("games:x", "games", "x"), results.append, fd=fd)
    rig.loop.run_ready()
    return results[0]
