"""Captures into files that the configuration names."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.capture.rig import read
from tests.unit.daemon.control_rig import ControlRig, control_rig
from tests.unit.daemon.toys import TOYS
from usbvfiod_core import ConfigError
from usbvfiod_core.daemon.capture_files import CaptureFiles, names
from usbvfiod_core.daemon.captures import MAX_CAPTURES
from usbvfiod_core.daemon.config import Config, DeviceSpec, parse_device
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.errors import ConfigErrors
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.testing.loop import StepLoop


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ControlRig]:
    yield from control_rig(tmp_path, StepLoop(virtual_time=False))


def spec(text: str) -> DeviceSpec:
    return parse_device(text, TOYS, "toys")


def files(rig: ControlRig, *devices: str, **settings: object) -> CaptureFiles:
    config = Config(server=ServerSettings(**settings), devices=tuple(map(spec, devices)))  # type: ignore[arg-type]
    return CaptureFiles(rig.captures, config)


def interfaces(path: Path) -> list[str]:
    reader = read(path)
    list(reader)
    assert not reader.cut
    return [each.name for each in reader.interfaces]


def test_all_devices_and_one(rig: ControlRig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    every, one = tmp_path / "all.pcapng", tmp_path / "one.pcapng"
    every.write_text("old")
    texts = [f"toys:2-1?name=one&pcap={one}", "toys:2-2?name=two"]
    captures = files(rig, *texts, pcap_path=every)
    captures.open()
    assert [each.stat().st_mode & 0o777 for each in (one,)] == [0o600]
    with caplog.at_level(logging.INFO):
        captures.begin()
        for place, text in zip(("2-1", "2-2"), texts, strict=True):
            rig.backend.put_in(place)
            rig.attachments.attach(spec(text), lambda result: None, configured=True)
        assert rig.loop.run_until(lambda: len(rig.hub.ports) == 2, 5)
        rig.captures.finish()
        assert eventually(rig.captured)
    assert interfaces(every) == ["one", "two"]
    assert interfaces(one) == ["one"]
    assert f"captured to {one}: 0 packets, 0 dropped" in caplog.text


def test_a_disk_that_is_full(rig: ControlRig, caplog: pytest.LogCaptureFixture) -> None:
    captures = files(rig, pcap_path=Path("/dev/full"))
    captures.open()
    captures.begin()
    assert eventually(rig.captured)
    assert [each.message for each in caplog.records] == [
        "the capture to /dev/full has ended: No space left on device; 0 packets, 0 dropped"
    ]


def test_files_in_turn(rig: ControlRig, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    assert names(path, 3) == [path, tmp_path / "x.1.pcapng", tmp_path / "x.2.pcapng"]
    for each in names(path, 2):
        each.write_text("old")
    captures = files(rig, pcap_path=path, pcap_size=1, pcap_files=3)
    captures.open()
    assert [each.read_text() for each in names(path, 3)] == ["old", "old", ""], "not before there is a capture"
    captures.begin()
    assert eventually(lambda: names(path, 2)[1].read_text() == "")
    with pytest.raises(ConfigError, match="not a file, of which several could be filled in turn"):
        files(rig, pcap_path=Path("/dev/null"), pcap_size=1).open()


def test_what_cannot_be_opened(rig: ControlRig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    taken = os.open(tmp_path / "taken", os.O_WRONLY | os.O_CREAT)
    fcntl.flock(taken, fcntl.LOCK_EX)
    for name, reason in (
        ("pipe", "cannot be opened: nobody reads this pipe"),
        ("no/file", "cannot be opened: No such file or directory"),
        ("taken", "is written by another server"),
    ):
        with pytest.raises(ConfigError, match=reason):
            files(rig, pcap_path=tmp_path / name).open()
    os.close(taken)
    many = [f"toys:2-{number}?pcap={tmp_path / str(number)}" for number in range(MAX_CAPTURES + 1)]
    with pytest.raises(ConfigError, match=f"there are {MAX_CAPTURES + 1} files, and {MAX_CAPTURES} captures at most"):
        files(rig, *many).open()


def test_a_device_that_comes_later(rig: ControlRig, tmp_path: Path) -> None:
    """A file that was not opened at the start is none that the sandbox would let be opened."""
    captures = files(rig, f"toys:2-1?pcap={tmp_path / 'one'}")
    captures.check([spec(f"toys:2-3?pcap={tmp_path / 'one'}"), spec("toys:2-4")])
    with pytest.raises(ConfigError, match="the file of pcap is opened when the server starts"):
        captures.check([spec(f"toys:2-3?pcap={tmp_path / 'two'}")])


def test_settings() -> None:
    with pytest.raises(ConfigErrors) as caught:
        ServerSettings(pcap_size=-1, pcap_files=1)
    assert "pcap-size is a number of MiB from 0 up, not -1" in str(caught.value)
    assert "pcap-files is a number from 2 to 100, not 1" in str(caught.value)
    with pytest.raises(ConfigError, match="pcap is the name of a file, not ''"):
        spec("toys:2-1?pcap=")
