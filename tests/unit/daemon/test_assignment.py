"""Which of several devices an attachment gets, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.daemon.toys import Rig, WatchedToys, rig_of
from usbvfiod_core import ConfigError, DeviceError
from usbvfiod_core.daemon.intents import State

NODE = "/dev/bus/usb/002"


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rig_of(WatchedToys()):
        rig.hub.at_once = True
        yield rig


def test_two_devices_alike_are_refused_with_what_differs(rig: Rig) -> None:
    rig.backend.put_in("2-1", serial="A")
    rig.backend.put_in("2-2", serial="B")
    error = rig.try_to_attach("toys:0403:6001")
    assert isinstance(error, ConfigError)
    assert str(error) == (
        f"device toys:0403:6001: 0403:6001 is ambiguous, give one of these addresses: "
        f"{NODE}/002 serial A port 2-1; {NODE}/003 serial B port 2-2"
    )
    assert tuple(rig.attachments) == ()


def test_identical_devices_are_told_apart_by_their_ports(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    one = rig.attach("toys:0403:6001")
    rig.backend.put_in("2-2")
    two = rig.attach("toys:2-2")
    for _ in range(3):
        rig.backend.pull_out("2-1")
        rig.backend.pull_out("2-2")
        rig.loop.advance(1)
        rig.backend.put_in("2-2")
        rig.backend.put_in("2-1")
        rig.loop.advance(1)
        assert (one.info.port_path, one.port_id) == ("2-1", 1)
        assert (two.info.port_path, two.port_id) == ("2-2", 2)


@pytest.mark.parametrize("addresses", [("0403:6001", "0403:6001"), ("0403:6001", "name=toy*"), ("0403:*", "0403:6001")])
def test_identical_devices_behind_a_hub_that_is_switched_off_and_on_are_not_mixed_up(
    rig: Rig, addresses: tuple[str, str]
) -> None:
    """Without serial numbers, given by what they are: whichever is enumerated first is whose it was."""
    rig.backend.put_in("2-1.1")
    one = rig.attach(f"toys:{addresses[0]}")
    rig.backend.put_in("2-1.2")
    two = rig.attach(f"toys:{addresses[1]}")
    for order in (("2-1.2", "2-1.1"), ("2-1.1", "2-1.2")):
        rig.backend.pull_out("2-1.1")
        rig.backend.pull_out("2-1.2")
        rig.loop.advance(1)
        for port_path in order:
            rig.backend.put_in(port_path)
            rig.loop.advance(1)
        assert (one.info.port_path, one.port_id) == ("2-1.1", 1)
        assert (two.info.port_path, two.port_id) == ("2-1.2", 2)
        assert (one.state, two.state) == (State.PLUGGED, State.PLUGGED)


def test_who_says_which_device_it_wants_comes_before_who_had_it(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    exact = rig.attach("toys:2-1")
    rig.attachments.detach(exact)
    rig.loop.advance(1)
    broad = rig.attach("toys:0403:6001")
    rig.attachments.plug(exact, lambda result: None)
    rig.loop.advance(1)
    assert (broad.state, exact.state) == (State.PLUGGED, State.WAITING)
    rig.backend.pull_out("2-1")
    rig.backend.put_in("2-1")
    rig.loop.advance(1)
    assert (broad.state, exact.state) == (State.WAITING, State.PLUGGED)


def test_a_second_device_that_would_fit_disturbs_nothing(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:0403:*")
    rig.backend.put_in("2-2", "0403:6010")
    rig.loop.advance(100)
    assert (attachment.plugs, attachment.info.port_path) == (1, "2-1")
    rig.backend.pull_out("2-1")
    rig.loop.advance(1)
    assert attachment.info.port_path == "2-2"


def test_an_attachment_that_becomes_ambiguous_waits_until_it_is_not(rig: Rig) -> None:
    attachment = rig.attach("toys:0403:6001")
    with_event, rig.backend._changed = rig.backend._changed, lambda: None
    rig.backend.put_in("2-1")
    rig.backend._changed = with_event
    rig.backend.put_in("2-2")
    rig.loop.advance(1)
    assert attachment.state is State.WAITING
    assert "is ambiguous" in attachment.reason
    rig.backend.pull_out("2-1")
    rig.loop.advance(1)
    assert attachment.info.port_path == "2-2"


def test_who_knows_more_about_a_device_gets_it(rig: Rig) -> None:
    broad, exact = rig.attach("toys:0403:*"), rig.attach("toys:2-1")
    rig.backend.put_in("2-1")
    rig.loop.advance(1)
    assert (broad.state, exact.state) == (State.WAITING, State.PLUGGED)
    assert broad.reason == f"{NODE}/002 is taken by toys:2-1"
    rig.backend.put_in("2-2")
    rig.loop.advance(1)
    assert broad.info.port_path == "2-2"


def test_a_device_that_is_plugged_in_cannot_be_attached_again(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    rig.attach("toys:2-1?name=zigbee")
    error = rig.try_to_attach("toys:0403:6001")
    assert isinstance(error, DeviceError)
    assert str(error) == f"device toys:0403:6001: {NODE}/002 is taken by zigbee"


def test_a_missing_serial_is_no_error(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    attachment = rig.attach("toys:0403:6001:A9")
    assert attachment.state is State.WAITING
    rig.backend.put_in("2-2", serial="A9")
    rig.loop.advance(1)
    assert attachment.info.port_path == "2-2"
