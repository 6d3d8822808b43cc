"""Devices that are there and that the host does not give: attachments wait, say why, and go on by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.daemon.toys import Rig, WatchedToys, descriptor, rig_of
from usbvfiod_core import DeviceError, DeviceWithheld
from usbvfiod_core.daemon.intents import WITHHELD_PACE, Attachment, State

MOUNTED = "it is in use on this host: sda1 is mounted at /mnt"


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rig_of(WatchedToys()):
        rig.hub.at_once = True
        yield rig


def mount(rig: Rig, port_path: str = "2-1") -> None:
    """The host begins to use a device; no event says so."""
    rig.backend.failures[port_path] = DeviceWithheld(MOUNTED)
    rig.backend.devices = [replace(info, in_use="sda1 is mounted at /mnt") for info in rig.backend.devices]


def unmount(rig: Rig) -> None:
    rig.backend.failures.clear()
    rig.backend.devices = [replace(info, in_use="") for info in rig.backend.devices]


def changes(rig: Rig) -> list[str]:
    seen: list[str] = []
    rig.attachments.changed = lambda attachment: seen.append(attachment.state.value)
    return seen


def test_an_attachment_waits_for_the_host(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.backend.put_in("2-1")
    mount(rig)
    attachment = rig.attach("toys:2-1?port=4")
    assert (attachment.state, attachment.reason, attachment.failures) == (State.WAITING, MOUNTED, 0)
    assert caplog.messages == [f"device toys:2-1?port=4: {MOUNTED}"]
    seen, tries, since = changes(rig), len(rig.backend.opened), attachment.since
    rig.loop.advance(1000)
    assert len(rig.backend.opened) <= tries + 1, "what is listed with the same reason is not tried again"
    assert (seen, attachment.since, len(caplog.messages)) == ([], since, 1)
    unmount(rig)
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, WITHHELD_PACE + 0.1)
    assert (attachment.port_id, attachment.reason) == (4, "")


def test_an_event_is_not_waited_for_but_heeded(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    mount(rig)
    attachment = rig.attach("toys:2-1")
    rig.loop.advance(5)
    unmount(rig)
    rig.backend._changed()
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, 0.5)


def test_a_host_that_lists_no_reason_is_asked_again(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    rig.backend.failures["2-1"] = DeviceWithheld("not today")
    attachment = rig.attach("toys:2-1")
    rig.loop.advance(10 * WITHHELD_PACE)
    assert 9 <= len(rig.backend.opened) <= 12
    assert attachment.failures == 0
    rig.backend.failures.clear()
    assert rig.loop.run_until(lambda: attachment.state is State.PLUGGED, WITHHELD_PACE + 0.1)


def test_a_required_device_is_missing_meanwhile(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    mount(rig)
    attachment = rig.attach("toys:2-1?mode=required")
    assert rig.attachments.missing == [attachment]
    unmount(rig)
    rig.loop.advance(2 * WITHHELD_PACE)
    assert rig.attachments.missing == []


def test_a_device_that_the_host_has_taken_back(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    info = rig.backend.put_in("2-1")
    attachment = rig.attach("toys:2-1?port=2")
    assert attachment.state is State.PLUGGED
    mount(rig)
    rig.backend.disconnect(info.address)
    rig.loop.advance(60)
    assert (attachment.state, attachment.reason) == (State.WAITING, MOUNTED)
    unmount(rig)
    rig.loop.advance(2 * WITHHELD_PACE)
    assert (attachment.state, attachment.port_id) == (State.PLUGGED, 2)


def test_whoever_asks_gets_the_reason_and_another_try(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    mount(rig)
    attachment = rig.attach("toys:2-1")
    rig.loop.advance(3 * WITHHELD_PACE)
    tries = len(rig.backend.opened)
    assert rig.plug(attachment) is attachment
    assert (attachment.state, attachment.reason) == (State.WAITING, MOUNTED)
    assert len(rig.backend.opened) == tries + 1
    rig.detach(attachment)
    unmount(rig)
    rig.loop.advance(100)
    assert attachment.state is State.HELD


def test_a_device_that_is_pulled_out_meanwhile(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    mount(rig)
    attachment = rig.attach("toys:2-1")
    rig.backend.pull_out("2-1")
    rig.loop.advance(1)
    assert (attachment.state, attachment.reason) == (State.WAITING, "it is not there")
    unmount(rig)
    rig.backend.put_in("2-1")
    rig.loop.advance(1)
    assert attachment.state is State.PLUGGED


def test_a_descriptor_of_a_device_that_is_withheld(rig: Rig) -> None:
    info = rig.backend.put_in("2-1")
    mount(rig)
    result = rig.try_to_attach("toys:2-1", descriptor(rig, info.address))
    assert isinstance(result, Attachment)
    assert (result.state, result.reason) == (State.WAITING, MOUNTED)


def test_other_failures_are_as_before(rig: Rig) -> None:
    rig.backend.put_in("2-1")
    rig.backend.failures["2-1"] = DeviceError("broken")
    assert "broken" in str(rig.refused("toys:2-1"))


# -- a device that was tried by a path of the host ------------------------------------------------------------------


def test_a_path_that_went_while_its_device_was_tried(rig: Rig, tmp_path: Path) -> None:
    """It is the same device all the same; while the path is there, it decides."""
    first = rig.backend.put_in("2-1")
    rig.backend.put_in("2-2", "1234:0001")
    link = tmp_path / "stick"
    link.symlink_to(first.address)
    mount(rig)
    attachment = rig.attach(f"toys:{link}")
    assert (attachment.state, attachment.info.port_path) == (State.WAITING, "2-1")
    link.unlink()
    rig.loop.advance(2 * WITHHELD_PACE)
    assert (attachment.state, attachment.reason, attachment.known) == (State.WAITING, MOUNTED, attachment.info)
    unmount(rig)
    rig.loop.advance(2 * WITHHELD_PACE)
    assert (attachment.state, attachment.info.port_path) == (State.PLUGGED, "2-1")


def test_a_path_that_leads_to_another_device_before_the_first_was_had(rig: Rig, tmp_path: Path) -> None:
    first, second = rig.backend.put_in("2-1"), rig.backend.put_in("2-2", "1234:0001")
    link = tmp_path / "stick"
    link.symlink_to(first.address)
    mount(rig)
    attachment = rig.attach(f"toys:{link}")
    link.unlink()
    link.symlink_to(second.address)
    rig.loop.advance(2 * WITHHELD_PACE)
    assert (attachment.state, attachment.info.port_path) == (State.PLUGGED, "2-2")
