"""A capture that goes on in another process: one file, in which nothing shows that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.capture.rig import Rig, opened, read, records
from tests.unit.capture.test_recorder import transfer
from usbvfiod_core.capture.recorder import Recorder
from usbvfiod_core.capture.state import RecorderState
from usbvfiod_core.state import StateError, pack, unpack
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.loop import StepLoop


def settled(rig: Rig) -> dict[str, object]:
    wait_until(rig.recorder.hurry, "it is not written")
    state: dict[str, object] = json.loads(json.dumps(pack(rig.recorder.saved_state())))
    return state


def taken_over(rig: Rig, state: dict[str, object]) -> Rig:
    """In the place of a rig, which forgets its recorder."""
    made = object.__new__(Rig)
    made.loop, made.ended = StepLoop(virtual_time=False), []
    made.recorder = Recorder.taken_over(
        made.loop,
        [os.dup(fd) for fd in rig.recorder.fds],
        unpack(RecorderState, state),
        "it",
        application="another one",
        on_ended=made.ended.append,
    )
    rig.recorder.forget()
    wait_until(lambda: not rig.recorder.writing, "its thread does not end")
    assert rig.ended == []
    rig.loop.close()
    made.recorder.go_on()
    return made


def test_one_section_with_all_of_it(tmp_path: Path) -> None:
    rig = Rig(opened(tmp_path / "it"))
    for turn in range(4):
        transfer(rig, b"abc", name="one", count=turn)
        transfer(rig, b"defgh", name="two")
        rig = taken_over(rig, settled(rig))
    transfer(rig, b"new", name="three")
    assert rig.finish() == ""
    assert (rig.recorder.packets, rig.recorder.dropped) == (22, 0)
    rig.loop.close()
    reader = read(tmp_path / "it")
    assert len(list(reader)) == 22
    assert (reader.cut, reader.skipped, reader.application) == ("", 0, "tests")
    assert [(each.name, each.received, each.dropped) for each in reader.interfaces] == [
        ("one", 12, 0),
        ("two", 8, 0),
        ("three", 2, 0),
    ]
    found = records(tmp_path / "it")
    assert [record.id for _, record in found[::2]] == list(range(1, 12))
    assert [packet.time for packet, _ in found] == sorted(packet.time for packet, _ in found)


def test_what_was_lost_before_is_counted_and_told_of_the_next_packet(tmp_path: Path) -> None:
    rig = Rig(opened(tmp_path / "it"))
    transfer(rig)
    state = settled(rig)
    interface = unpack(RecorderState, state).interfaces[0]
    interface.seen, interface.dropped, interface.missing = 7, 5, 3
    state["interfaces"] = [pack(interface)]
    rig = taken_over(rig, state)
    transfer(rig)
    assert rig.finish() == ""
    rig.loop.close()
    reader = read(tmp_path / "it")
    assert [packet.dropped for packet in reader] == [0, 0, 3, 0]
    assert [(each.received, each.dropped) for each in reader.interfaces] == [(9, 5)]


def test_files_are_filled_in_turn(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    rig = Rig(*map(opened, paths), limit=20000)
    for _ in range(60):
        transfer(rig, bytes(1000))
        if rig.recorder.transfers % 7 == 0:
            rig = taken_over(rig, settled(rig))
    assert rig.finish() == ""
    rig.loop.close()
    for path in paths:
        assert path.stat().st_size < 25000
        reader = read(path)
        assert list(reader)
        assert not reader.cut
        assert [each.name for each in reader.interfaces] == ["it"]


def test_a_file_that_was_removed_in_between_is_noticed(tmp_path: Path) -> None:
    rig = Rig(opened(tmp_path / "it"))
    transfer(rig)
    state = settled(rig)
    (tmp_path / "it").unlink()
    rig = taken_over(rig, state)
    transfer(rig)
    assert rig.wait() == "the file was removed"
    rig.loop.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"file": 1}, "it.file: of 1 files"), ({"named": [3]}, "it.named"), ({"snap_length": 9}, "it.snap_length: it is")],
)
def test_what_makes_no_sense(tmp_path: Path, change: dict[str, object], said: str) -> None:
    rig = Rig(opened(tmp_path / "it"))
    state = settled(rig)
    loop = StepLoop(virtual_time=False)
    with pytest.raises(StateError, match=said):
        Recorder.taken_over(
            loop, (7,), unpack(RecorderState, state | change), "it", application="", on_ended=lambda each: None
        )
    loop.close()
    rig.close()
