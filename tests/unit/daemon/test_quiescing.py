"""Requests `quiesce` and `resume`: when they are answered, and what everybody sees meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.daemon.control_rig import ControlRig, control_rig
from usbvfiod_core.daemon.report import WITHHELD


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ControlRig]:
    yield from control_rig(tmp_path)


def test_devices_are_kept_and_given_back(rig: ControlRig) -> None:
    rig.backend.put_in("2-1")
    talker, watcher = rig.talk(), rig.talk()
    talker.ask("attach", device="toys:2-1?name=keys")
    talker.ask("attach", device="toys:2-2")
    assert watcher.ask("watch")["ok"]
    assert talker.ask("status")["server"]["quiesced"] is None
    answer = talker.ask("quiesce", seconds=0)
    assert rig.hub.withholding
    keys, away = answer["attachments"]
    assert (keys["state"], keys["port"], keys["note"]) == ("plugged", 1, WITHHELD)
    assert (away["state"], away["note"]) == ("waiting", "")
    rig.loop.advance(2.0)
    assert talker.ask("status")["server"]["quiesced"] == pytest.approx(2.0, abs=0.5)
    assert talker.ask("quiesce")["ok"], "once more does nothing"
    assert talker.ask("resume")["attachments"][0]["note"] == ""
    assert not rig.hub.withholding
    assert talker.ask("status")["server"]["quiesced"] is None
    assert talker.ask("resume")["ok"], "once more does nothing"
    watcher.ask("list")
    assert [each["attachment"]["note"] for each in watcher.events if each["attachment"]["name"] == "keys"] == [
        WITHHELD,
        "",
    ]


def test_it_is_answered_when_the_guest_has_let_go(rig: ControlRig) -> None:
    talker, other = rig.talk(), rig.talk()
    rig.hub.unreleased = [1, 9]
    talker.send(json.dumps({"request": "quiesce", "seconds": 60}).encode() + b"\n")
    rig.loop.advance(30.0)
    rig.hub.unreleased.remove(1)
    assert other.ask("status")["server"]["quiesced"] is not None
    rig.loop.advance(20.0)
    assert talker.input == b""
    rig.hub.unreleased.remove(9)
    assert talker.answer()["ok"]


def test_a_guest_that_does_not_let_go_is_named_by_its_ports(rig: ControlRig) -> None:
    talker = rig.talk()
    rig.hub.unreleased = [1, 9]
    talker.send(json.dumps({"request": "quiesce", "seconds": 3}).encode() + b"\n")
    rig.loop.advance(2.9)
    assert talker.input == b""
    rig.loop.advance(0.2)
    error = talker.answer()["error"]
    assert error["kind"] == "device"
    assert error["message"].startswith("the guest has not let go of what was in port 1, 9 within 3 s")
    assert rig.hub.withholding, "nothing is undone"
    rig.hub.unreleased = []
    assert talker.ask("quiesce", seconds=3)["ok"]


def test_resume_ends_the_wait(rig: ControlRig) -> None:
    talker, other = rig.talk(), rig.talk()
    rig.hub.unreleased = [4]
    talker.send(b'{"request": "quiesce"}\n')
    rig.loop.advance(0.1)
    assert other.ask("resume")["ok"]
    rig.loop.advance(0.1)
    assert "plugged in again" in talker.answer()["error"]["message"]


@pytest.mark.parametrize("seconds", [-1, 3601])
def test_nobody_waits_for_ever(rig: ControlRig, seconds: int) -> None:
    talker = rig.talk()
    talker.send(json.dumps({"request": "quiesce", "seconds": seconds}).encode() + b"\n")
    assert talker.answer()["error"] == {"kind": "request", "message": "quiesce: seconds is 0 to 3600"}
    assert not rig.hub.withholding
