"""Captures that clients of the control socket ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.capture.rig import opened, read
from tests.unit.daemon.control_rig import ControlRig, Talker, control_rig
from usbvfiod_core.daemon.captures import MAX_CAPTURES
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.testing.loop import StepLoop


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ControlRig]:
    for rig in control_rig(tmp_path, StepLoop(virtual_time=False)):
        for place, name in (("2-1", "one"), ("2-2", "two")):
            rig.backend.put_in(place)
            assert rig.talk().ask("attach", device=f"toys:{place}?name={name}")["ok"]
        yield rig


def begin(talker: Talker, fd: int, **arguments: object) -> dict[str, object]:
    answer = talker.ask("capture", (fd,), fd=True, **arguments)
    os.close(fd)
    return answer


def names(path: Path) -> list[str]:
    reader = read(path)
    assert list(reader) == []
    assert not reader.cut
    return [each.name for each in reader.interfaces]


def test_all_devices_and_those_that_come(rig: ControlRig, tmp_path: Path) -> None:
    talker = rig.talk()
    answer = begin(talker, opened(tmp_path / "it"))
    assert answer["interfaces"] == [
        {"name": "one", "description": "/dev/bus/usb/002/002, port 1"},
        {"name": "two", "description": "/dev/bus/usb/002/003, port 2"},
    ]
    rig.backend.put_in("2-3")
    talker.ask("attach", device="toys:2-3")
    result = talker.ask("capture-end", capture=answer["capture"])
    assert result == {"ok": True, "capture": 1, "packets": 0, "dropped": 0, "reason": ""}
    assert names(tmp_path / "it") == ["one", "two", "toys-3"]


def test_one_of_them_also_when_it_comes_back(rig: ControlRig, tmp_path: Path) -> None:
    talker = rig.talk()
    number = begin(talker, opened(tmp_path / "it"), attachments=["two"])["capture"]
    taps = dict(rig.hub.taps)
    rig.backend.pull_out("2-2")
    rig.loop.run_ready()
    assert rig.hub.ports.keys() == {1}
    rig.backend.put_in("2-2")
    assert rig.loop.run_until(lambda: 2 in rig.hub.ports, PATIENCE)
    assert rig.hub.taps[2] is not taps[2]
    assert rig.hub.taps[1] is taps[1]
    talker.ask("capture-end", capture=number)
    assert set(names(tmp_path / "it")) == {"two"}


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_in_the_file(rig: ControlRig, tmp_path: Path, replace: bool) -> None:
    """It goes if that is wanted, when the capture is accepted; else the capture begins where the file stands."""
    path, talker = tmp_path / "it", rig.talk()
    path.write_bytes(b"old" * 1000)
    for attachments, ok in ((["nobody"], False), (["one"], True)):
        fd = os.open(path, os.O_WRONLY)
        os.lseek(fd, 0, os.SEEK_END)
        answer = begin(talker, fd, attachments=attachments, replace=replace)
        assert answer["ok"] is ok
        assert ok or path.read_bytes() == b"old" * 1000
    talker.ask("capture-end", capture=answer["capture"])
    if not replace:
        assert path.read_bytes()[:3000] == b"old" * 1000
        path.write_bytes(path.read_bytes()[3000:])
    assert names(path) == ["one"]


def test_it_ends_with_its_client(rig: ControlRig, tmp_path: Path) -> None:
    talker = rig.talk()
    begin(talker, opened(tmp_path / "it"))
    assert rig.captures.writing
    talker.close()
    assert eventually(rig.captured)
    assert names(tmp_path / "it") == ["one", "two"]


def test_a_client_is_told_that_it_has_ended_by_itself(rig: ControlRig) -> None:
    source, sink = os.pipe()
    os.close(source)
    talker = rig.talk()
    number = begin(talker, sink)["capture"]
    event = talker.line()
    assert (event["event"], event["capture"], event["reason"]) == ("capture", number, "Broken pipe")
    assert not rig.captures.writing
    answer = talker.ask("capture-end", capture=number)
    assert answer["error"]["message"] == f"this client has no capture {number}, or it is over"


def test_nobody_else_ends_it(rig: ControlRig, tmp_path: Path) -> None:
    number = begin(rig.talk(), opened(tmp_path / "it"))["capture"]
    assert rig.talk().ask("capture-end", capture=number)["error"]["kind"] == "device"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"attachments": ["nobody"]}, "not-attached", "there is no attachment nobody"),
        ({"endpoints": ["0x1234"]}, "config", "0x1234 is not an endpoint's address, such as 0x81"),
        ({"snap_length": 63}, "config", "snap_length is from 64 to 262144, not 63"),
    ],
)
def test_what_is_refused(
    rig: ControlRig, tmp_path: Path, arguments: dict[str, object], kind: str, message: str
) -> None:
    error = begin(rig.talk(), opened(tmp_path / "it"), **arguments)["error"]
    assert isinstance(error, dict)
    assert error["kind"] == kind
    assert message in error["message"]
    assert not rig.captures.writing


def test_a_file_that_is_not_there_or_cannot_be_written(rig: ControlRig, tmp_path: Path) -> None:
    talker = rig.talk()
    talker.send(b'{"request": "capture"}\n')
    assert "send a file that is open for writing" in talker.answer()["error"]["message"]
    answer = begin(talker, os.open("/dev/null", os.O_RDONLY))
    assert "send a file that is open for writing" in str(answer["error"])


def test_as_many_as_there_may_be(rig: ControlRig) -> None:
    talker = rig.talk()
    for _ in range(MAX_CAPTURES):
        assert begin(talker, os.open("/dev/null", os.O_WRONLY))["ok"]
    answer = begin(talker, os.open("/dev/null", os.O_WRONLY))
    assert f"there are {MAX_CAPTURES} captures already" in str(answer["error"])
    talker.ask("capture-end", capture=1)
    assert begin(talker, os.open("/dev/null", os.O_WRONLY))["ok"]
