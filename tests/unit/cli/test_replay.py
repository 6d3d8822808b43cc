"""`usbvfiod replay check`: what is said of a recording, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.cli import main
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket

DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100, 1, 2, 3)
CONFIGURATION = Configuration((Interface(0, 0xFF, endpoints=(Endpoint(0x82, 2, 512), Endpoint(0x02, 2, 512))),))


def talk() -> Conversation:
    talk = Conversation()
    talk.enumerate(DEVICE, CONFIGURATION, {1: "Maker", 2: "Pro\x1bduct"})
    talk.read(0x82, b"x" * 600, asked=1024)
    talk.write(0x02, b"hello")
    return talk


def test_it_says_what_a_recording_is_good_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = talk().write_to(tmp_path / "a.pcapng")
    assert main(["replay", "check", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 18 records, written by a test",
        "",
        "DEVICE  IDENTITY   NAME               SPEED  REPLAY",
        "3.7     1209:00ab  Maker Pro\\x1bduct  high   yes",
        "3.7: transfers by endpoint: 00 control 7 (93 bytes), 02 bulk 1 (5 bytes), 82 bulk 1 (600 bytes)",
    ]


def test_and_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = Conversation(device=1)
    hub.enumerate(DeviceDescriptor(0x0200, 9, 0, 0, 64, 0x1D6B, 2, 1), CONFIGURATION)
    root = Conversation(device=2)
    root.request(SetupPacket(0xA3, 0, 0, 1, 4), bytes(4))
    late = Conversation(device=9)
    late.read(0x81, b"late")
    both = talk()
    both.records += hub.records + root.records + late.records
    path = tmp_path / "a.pcapng"
    path.write_bytes(both.file(snap_length=64 + 100, dropped=2)[:-1])
    assert main(["replay", "check", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dropped"] == 2
    assert any("2 packets were lost" in each for each in told["remarks"])
    assert any("the file ends inside a block" in each for each in told["remarks"])
    found = {each["device"]: each for each in told["devices"]}
    assert {name: each["usable"] for name, each in found.items()} == {
        "3.1": False,
        "3.2": False,
        "3.7": True,
        "3.9": False,
    }
    assert found["3.7"]["remarks"] == ["1 transfers of endpoint 82 were cut; zeros take the place of what is missing"]
    assert found["3.1"]["problems"] == found["3.2"]["problems"] == ["a hub is not replayed"]
    assert "its device descriptor was not recorded" in found["3.9"]["problems"][0]
    assert found["3.7"]["endpoints"][2] == {"endpoint": "82", "type": "bulk", "transfers": 1, "bytes": 600}
    assert main(["replay", "check", str(path)]) == 0
    assert "3.9: its device descriptor was not recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"text", "cannot be used: this is neither a pcapng nor a pcap file"),
        (Conversation().file(), "cannot be used: there is no packet in it"),
    ],
)
def test_what_is_no_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    path = tmp_path / "a.pcapng"
    if content is not None:
        path.write_bytes(content)
    assert main(["replay", "check", str(path)]) == 1
    assert capsys.readouterr().err == f"usbvfiod: error: {path} {said}\n"


def test_a_recording_in_which_nothing_can_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = Conversation()
    late.read(0x81, b"late")
    path = late.write_to(tmp_path / "a.pcapng")
    assert main(["replay", "check", str(path)]) == 1
    assert capsys.readouterr().err == f"usbvfiod: error: no device in {path} can be replayed\n"


def test_it_wants_to_know_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay"]) == 2
    assert "say what to do with a recording: check" in capsys.readouterr().err
