"""The control socket: what each request does, and what is answered to those that are none."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.daemon.control_rig import SCHEMA, ControlRig, check, control_rig
from tests.unit.daemon.toys import TOYS, ToyOptions
from usbvfiod_core import ConfigError, DeviceError
from usbvfiod_core.daemon import peers
from usbvfiod_core.daemon.control import MAX_CLIENTS, MAX_OF_USER, MAX_OTHERS, ControlSocket
from usbvfiod_core.daemon.control_requests import MAX_ATTACHMENTS
from usbvfiod_core.daemon.lookup import REMEMBERED
from usbvfiod_core.daemon.peers import Peer, Policy, Rule
from usbvfiod_core.vfio_user.listener import listening
from usbvfiod_core.xhci.statistics import EndpointStatistics


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ControlRig]:
    yield from control_rig(tmp_path)


def test_a_client_is_told_the_version(rig: ControlRig) -> None:
    assert rig.talk().greeting["control"] == 1
    assert stat.S_IMODE(rig.path.stat().st_mode) == 0o600


def test_attach_list_detach(rig: ControlRig) -> None:
    talker = rig.talk()
    assert talker.ask("list") == {"ok": True, "attachments": []}
    info = rig.backend.put_in("2-1", serial="A9")
    answer = talker.ask("attach", device="toys:0403:6001?name=zigbee", id=7)
    assert (answer["id"], answer["ok"]) == (7, True)
    entry = answer["attachment"]
    assert (entry["state"], entry["port"], entry["name"], entry["configured"]) == ("plugged", 1, "zigbee", False)
    assert (entry["device"]["address"], entry["device"]["serial"]) == (info.address, "A9")
    assert [each["number"] for each in talker.ask("list")["attachments"]] == [1]
    for who in ("1", "zigbee", "toys:0403:6001?name=zigbee", "2-1", "toys:2-1", "0403:*", "name=toy*", info.address):
        answer = talker.ask("detach", attachment=who)
        assert answer["attachment"]["state"] == "gone"
        assert rig.hub.ports == {}
        assert talker.ask("attach", device="0403:6001?name=zigbee")["ok"]
        rig.attachments.numbers = 0
        talker.ask("detach", attachment="zigbee")
        assert talker.ask("attach", device="toys:0403:6001?name=zigbee")["attachment"]["number"] == 1


def test_a_configured_attachment_is_held_and_attached_by_name(rig: ControlRig) -> None:
    rig.backend.put_in("2-1")
    results: list[object] = []
    from usbvfiod_core.daemon.config import parse_device

    rig.attachments.attach(parse_device("toys:2-1?name=x&port=3", TOYS), results.append, configured=True)
    talker = rig.talk()
    assert talker.ask("detach", attachment="x")["attachment"]["state"] == "held"
    assert talker.ask("detach", attachment="x")["attachment"]["ports"] == [3]
    assert talker.ask("attach", device="x")["attachment"]["state"] == "plugged"
    error = talker.ask("attach", device="x")["error"]
    assert error == {"kind": "device", "message": "device x: it is already plugged in"}


def test_a_device_that_is_not_there(rig: ControlRig) -> None:
    talker = rig.talk()
    answer = talker.ask("attach", device="toys:2-1")
    assert (answer["attachment"]["state"], answer["attachment"]["device"]) == ("waiting", None)


def test_move(rig: ControlRig) -> None:
    rig.backend.put_in("2-1")
    talker = rig.talk()
    talker.ask("attach", device="toys:2-1")
    assert talker.ask("move", attachment="2-1", port=5)["attachment"]["port"] == 5
    assert list(rig.hub.ports) == [5]
    assert talker.ask("move", attachment="2-1", port=9)["error"]["kind"] == "config"
    assert talker.ask("move", attachment="2-2", port=1)["error"]["kind"] == "not-attached"


def test_who_is_meant(rig: ControlRig) -> None:
    rig.backend.put_in("2-1")
    rig.backend.put_in("2-2")
    talker = rig.talk()
    talker.ask("attach", device="toys:2-1")
    talker.ask("attach", device="toys:2-2?name=two")
    message = talker.ask("detach", attachment="0403:6001")["error"]["message"]
    assert message.startswith("0403:6001 is more than one attachment, give a number: 1 (toys:2-1, /dev/bus/usb/002/002")
    assert "2 (two, /dev/bus/usb/002/003 port 2-2)" in message
    assert talker.ask("attach", device="toys:2-3?name=two")["error"]["kind"] == "config"
    there_is_not = "there is no attachment tow (did you mean 'two'?)"
    assert talker.ask("detach", attachment="tow")["error"]["message"].startswith(there_is_not)


def test_the_name_of_one_that_was_detached(rig: ControlRig) -> None:
    rig.backend.put_in("2-1")
    rig.default_backend = None
    talker = rig.talk()
    again = "there is no attachment zig any more; `usbvfiod attach 'toys:2-1?name=zig'` plugs it in again"

    def attaching() -> str:
        return str(talker.ask("attach", device="zig")["error"]["message"])

    assert "any more" not in attaching()
    talker.ask("attach", device="toys:2-1?name=zig")
    talker.ask("detach", attachment="zig")
    assert attaching() == again
    assert talker.ask("detach", attachment="zig")["error"]["message"].startswith(again)
    assert talker.ask("attach", device="toys:2-1?name=zig")["ok"]
    talker.ask("detach", attachment="zig", hold=True)
    assert talker.ask("attach", device="zig")["ok"], "it is kept, and has its name"
    talker.ask("detach", attachment="zig")
    for number in range(REMEMBERED):
        talker.ask("attach", device=f"toys:2-1?name=n{number}")
        talker.ask("detach", attachment=f"n{number}")
    assert "any more" not in attaching()


def test_failures_say_whose_they_are(rig: ControlRig) -> None:
    talker = rig.talk()
    rig.backend.put_in("2-1")
    rig.backend.failures["2-1"] = DeviceError("it is busy")
    assert talker.ask("attach", device="toys:2-1")["error"] == {
        "kind": "device",
        "message": "device toys:2-1: it is busy",
    }
    rig.plugin("guard", usbvfiod_admit_device=lambda info: "no")
    assert talker.ask("attach", device="toys:2-1")["error"]["kind"] == "refused"
    assert talker.ask("attach", device="games:2-1")["error"]["kind"] == "config"
    assert talker.ask("reload")["error"]["kind"] == "config"
    assert list(rig.attachments) == []


def test_devices(rig: ControlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.backend.put_in("2-1")
    talker = rig.talk()
    answer = talker.ask("devices")
    assert ([device["port_path"] for device in answer["devices"]], answer["errors"]) == (["2-1"], [])
    monkeypatch.setattr(rig.backend, "list_devices", lambda: 1 / 0)
    answer = talker.ask("devices")
    assert answer["errors"] == ["backend toys cannot list its devices: division by zero"]


def test_status_has_what_endpoints_do(rig: ControlRig) -> None:
    rig.backend.put_in("2-1")
    talker = rig.talk()
    talker.ask("attach", device="toys:2-1")
    rig.statistics = [
        EndpointStatistics(1, 2, 0x81, "bulk", "Running", 10, 5120, {"Stall": 2}, 0, 4, [0, 0, 0, 10], 50),
        EndpointStatistics(2, 3, 0x00, "control", "Running", 1, 18),
    ]
    answer = talker.ask("status")
    [endpoint] = answer["attachments"][0]["endpoints"]
    assert endpoint == {
        "slot_id": 2,
        "address": 0x81,
        "type": "bulk",
        "state": "Running",
        "transfers": 10,
        "bytes": 5120,
        "errors": {"Stall": 2},
        "missed": 0,
        "queued": 4,
        "latency": [0, 0, 0, 10],
        "nanoseconds": 50,
        "p50": 0.006,
        "p90": 0.0076,
        "p99": pytest.approx(0.00796),
    }


def test_watch(rig: ControlRig) -> None:
    watcher, other, talker = rig.talk(), rig.talk(), rig.talk()
    rig.attachments.inventory.changed = lambda change, info: rig.control.publish(
        {"event": "device", "change": change, "device": control_device(info)}
    )
    assert watcher.ask("watch", devices=True) == {"ok": True, "attachments": []}
    assert other.ask("watch")["ok"]
    rig.loop.advance(0.1)
    talker.ask("attach", device="toys:2-1")
    rig.backend.put_in("2-1")
    rig.loop.advance(0.2)
    rig.backend.pull_out("2-1")
    rig.loop.advance(0.2)
    talker.ask("detach", attachment="toys:2-1")
    watcher.ask("list")
    other.ask("list")
    states = [event["attachment"]["state"] for event in other.events]
    assert states == ["waiting", "opening", "plugged", "leaving", "waiting", "waiting", "gone"]
    assert [event for event in watcher.events if event["event"] == "attachment"] == other.events
    changes = [
        (event["change"], event["device"]["port_path"]) for event in watcher.events if event["event"] == "device"
    ]
    assert changes == [("added", "2-1"), ("removed", "2-1")]
    assert talker.events == []


def control_device(info: object) -> dict[str, object]:
    from usbvfiod_core.daemon.report import device_entry
    from usbvfiod_core.usb.backend import DeviceInfo

    assert isinstance(info, DeviceInfo)
    return device_entry(info)


def test_log_level(rig: ControlRig) -> None:
    logger = logging.getLogger("usbvfiod_core")
    before = logger.level
    talker = rig.talk()
    assert talker.ask("log-level", level="debug") == {"ok": True}
    assert logger.level == logging.DEBUG
    talker.send(b'{"request": "log-level", "level": "loud"}\n')
    assert "there is no level 'loud'" in talker.answer()["error"]["message"]
    logger.setLevel(before)


def test_every_request_is_in_the_schema(rig: ControlRig) -> None:
    written = [each["properties"]["request"] for each in SCHEMA["$defs"]["request"]["oneOf"]]
    assert {name for each in written for name in each.get("enum", [each.get("const")])} == set(rig.requests.names)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"hello", "a line is not JSON"),
        (b"[]", "a request is a JSON object"),
        (b"{}", 'a request has "request": one of attach, capture, capture-end, detach'),
        (b'{"request": 1}', 'a request has "request"'),
        (b'{"request": "atach"}', "there is no request 'atach'; did you mean 'attach'?"),
        (b'{"request": "attach"}', "attach: device is missing"),
        (b'{"request": "attach", "device": 1}', "attach: device is a text"),
        (b'{"request": "attach", "device": "toys:x", "prot": 1}', "attach: there is no argument 'prot'"),
        (b'{"request": "attach", "device": "toys:x", "fd": 1}', "attach: fd is true or false"),
        (b'{"request": "attach", "device": "toys:x", "fd": true}', "no file descriptor came with the request"),
        (b'{"request": "move", "attachment": "1", "port": true}', "move: port is a number"),
        (b'{"request": "move", "attachment": "1", "port": "1"}', "move: port is a number"),
        (b'{"request": "list", "id": [1]}', "an id is a number or a text"),
        (b'{"request": "list", "id": NaN}', "an id is a number or a text"),
        (b'{"request": "\xff"}', "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b"9" * 60_000, "not JSON"),
    ],
)
def test_what_is_no_request(rig: ControlRig, line: bytes, message: str) -> None:
    talker = rig.talk()
    talker.send(line + b"\n")
    error = talker.answer()["error"]
    assert message in error["message"]
    assert error["kind"] == "request"
    assert talker.ask("list")["ok"]


def test_empty_lines_and_several_requests_at_once(rig: ControlRig) -> None:
    talker = rig.talk()
    talker.send(b'\n  \n\r\n{"request": "list", "id": 1}\n{"request": "list", "id": "b"}\r\n{"request":')
    assert [talker.answer()["id"], talker.answer()["id"]] == [1, "b"]
    talker.send(b' "list", "id": 3}\n')
    assert talker.answer()["id"] == 3


def test_answers_come_though_the_client_has_said_all(rig: ControlRig) -> None:
    talker = rig.talk()
    talker.send(b'{"request": "devices", "id": 1}\n')
    talker.socket.shutdown(socket.SHUT_WR)
    assert talker.answer()["id"] == 1
    assert talker.line() is None


def test_there_are_only_so_many_attachments(rig: ControlRig) -> None:
    talker = rig.talk()
    for number in range(MAX_ATTACHMENTS):
        assert talker.ask("attach", device=f"toys:1-{number}")["ok"]
    assert "detach one first" in talker.ask("attach", device="toys:2-1")["error"]["message"]


def test_a_descriptor_comes_with_a_request(rig: ControlRig) -> None:
    info = rig.backend.put_in("2-1")
    reading, writing = os.pipe()
    rig.backend.descriptors[os.fstat(reading).st_ino] = info.address
    talker = rig.talk()
    before = len(os.listdir("/proc/self/fd"))
    entry = talker.ask("attach", (reading,), device="toys:2-1?port=4", fd=True)["attachment"]
    assert (entry["state"], entry["port"]) == ("plugged", 4)
    assert rig.backend.opened == [(f"fd of {info.address}", ToyOptions())]
    talker.ask("detach", attachment="1")
    error = talker.ask("attach", (writing,), device="toys:2-2", fd=True)["error"]
    assert error["message"] == f"device toys:2-2: the descriptor is of another device, {info.address} port 2-1"
    error = talker.ask("attach", (talker.socket.fileno(),), device="toys:2-2", fd=True)["error"]
    assert "the descriptor is of no toy" in error["message"]
    assert talker.ask("list", (reading,))["ok"]
    assert "there is no backend" in talker.ask("attach", (reading,), device="x:y", fd=True)["error"]["message"]
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reading)
    os.close(writing)


def test_other_users_are_turned_away(rig: ControlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.os, "geteuid", lambda: 4711)  # type: ignore[attr-defined]
    monkeypatch.setattr(peers.Peer, "of", lambda sock: peers.Peer(4712, frozenset()))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(rig.path))
        rig.loop.run_ready()
        refusal = json.loads(stranger.recv(1000))
        check("failure", refusal)
        assert refusal["error"]["message"] == (
            "only root, 4711 may control this server, and you are user 4712; "
            "[control.allow] in its configuration lets others in"
        )
        assert stranger.recv(100) == b""
    assert rig.control.clients == 0


def test_a_newcomer_takes_the_place_of_whoever_was_idle_longest(rig: ControlRig) -> None:
    watcher = rig.talk()
    watcher.ask("watch")
    idle = []
    for _ in range(MAX_CLIENTS - 1):
        rig.loop.advance(0.01)
        idle.append(rig.talk())
    rig.loop.advance(0.01)
    idle[0].ask("list")
    late = rig.talk()
    assert late.ask("list")["ok"]
    assert rig.control.clients == MAX_CLIENTS
    assert idle[1].line() is None
    assert idle[0].ask("list")["ok"]
    assert watcher.ask("list")["ok"]


def readable(connection: socket.socket) -> bool:
    """Whether there is something to receive, or the end."""
    return bool(select.select([connection], [], [], 0)[0])


def test_there_are_only_so_many_watchers(rig: ControlRig) -> None:
    for _ in range(MAX_CLIENTS):
        rig.talk().ask("watch")
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(str(rig.path))
        assert rig.loop.run_until(lambda: readable(late), 10.0)  # it may be busy with the others for its share of time
        assert json.loads(late.recv(1000))["error"]["message"] == f"there are {MAX_CLIENTS} clients already"
        assert late.recv(1000) == b""


def test_other_users_leave_places_for_root_and_for_each_other(rig: ControlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may watch could otherwise keep out all who may do more."""
    rig.gate.policy = Policy((Rule("*", frozenset({"watch", "list"})),))

    def watch_as(uid: int) -> str:
        monkeypatch.setattr(Peer, "of", lambda sock: Peer(uid, frozenset()))
        talker = rig.talk()
        if "error" in talker.greeting:
            talker.close()
            return str(talker.greeting["error"]["message"])
        talker.ask("watch")
        return ""

    told = {uid: [watch_as(uid) for _ in range(MAX_OF_USER + 1)] for uid in (1001, 1002, 1003, 1004)}
    for uid in (1001, 1002, 1003):
        assert told[uid] == [""] * MAX_OF_USER + [f"there are {MAX_OF_USER} clients of yours already"]
    assert set(told[1004]) == {f"there are {MAX_OTHERS} clients of other users already"}
    assert {watch_as(0) for _ in range(MAX_CLIENTS - MAX_OTHERS)} == {""}
    assert watch_as(0) == f"there are {MAX_CLIENTS} clients already"


def test_an_inherited_socket(rig: ControlRig, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inherited"))
        listener.listen()
        server = ControlSocket(rig.loop, rig.requests.handle, rig.gate)
        server.start(listening(None, os.dup(listener.fileno())))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "inherited"))
            assert rig.loop.run_until(lambda: readable(client), 10.0)
            assert json.loads(client.recv(1000))["control"] == 1
        server.close()
    here, there = socket.socketpair()
    with here, there, pytest.raises(ConfigError, match="is not a listening socket"):
        listening(None, os.dup(here.fileno()))


def test_a_device_does_what_is_said_to_it(rig: ControlRig) -> None:
    rig.backend.put_in("2-1")
    talker = rig.talk()
    talker.ask("attach", device="0403:6001?name=toy")
    said: list[list[str]] = []

    def command(words: list[str]) -> str:
        said.append(words)
        return "as you like"

    rig.backend.toys[0].command = command  # type: ignore[method-assign, assignment]
    assert talker.ask("send", attachment="toy", words=["jump", "twice"]) == {"ok": True, "text": "as you like"}
    assert said == [["jump", "twice"]]


@pytest.mark.faults(r"toy: its device failed at \['jump'\]")
def test_a_device_that_does_not_understand_or_fails(rig: ControlRig, caplog: pytest.LogCaptureFixture) -> None:
    rig.backend.put_in("2-1")
    talker = rig.talk()
    talker.ask("attach", device="0403:6001?name=toy")
    error = talker.ask("send", attachment="toy", words=["jump"])["error"]
    assert (error["kind"], error["message"]) == ("config", f"{rig.backend.toys[0].name} takes no words")

    def command(words: list[str]) -> str:
        raise ValueError("too high")

    rig.backend.toys[0].command = command  # type: ignore[method-assign, assignment]
    error = talker.ask("send", attachment="toy", words=["jump"])["error"]
    assert error["kind"] == "plugin"
    assert error["message"].endswith("failed: ValueError: too high")
    assert "too high" in caplog.text
    talker.ask("detach", attachment="toy")
    assert talker.ask("send", attachment="toy", words=["jump"])["error"]["kind"] == "not-attached"


def test_a_device_that_is_not_there_is_told_nothing(rig: ControlRig) -> None:
    talker = rig.talk()
    talker.ask("attach", device="0403:6001?name=toy")
    error = talker.ask("send", attachment="toy", words=["jump"])["error"]
    assert (error["kind"], error["message"]) == ("device", "toy is not plugged in: it is not there")


@pytest.mark.parametrize("words", ["jump", [1], [["jump"]], None, {}])
def test_words_are_a_list_of_texts(rig: ControlRig, words: object) -> None:
    talker = rig.talk()
    talker.send(json.dumps({"request": "send", "attachment": "1", "words": words}).encode() + b"\n")
    error = talker.answer()["error"]
    assert (error["kind"], error["message"]) == ("request", "send: words is a list of texts")


def test_files_that_do_not_fit(rig: ControlRig, tmp_path: Path) -> None:
    """Whatever goes wrong, the descriptors that came are closed."""
    talker = rig.talk()
    (tmp_path / "file").write_text("x")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    for fds, files, message in (
        ((), ["image"], "no file descriptor came with the request, or too few"),
        ((fd,), ["image", "other"], "no file descriptor came with the request, or too few"),
        ((fd, fd), ["image", "image"], "files names an option twice"),
        ((fd,), ["image"], "toys:2-1 has no file 'image' that can be passed"),
    ):
        error = talker.ask("attach", fds, device="toys:2-1", files=files)["error"]
        assert (error["kind"], message in error["message"]) == ("request", True), error
        assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_an_attachment_that_is_to_be_held_keeps_what_it_was_given(rig: ControlRig) -> None:
    """And is gone when it is detached once more."""
    rig.backend.put_in("2-1")
    talker = rig.talk()
    assert talker.ask("attach", device="toys:2-1?port=3")["attachment"]["state"] == "plugged"
    held = talker.ask("detach", attachment="1", hold=True)["attachment"]
    assert (held["state"], held["ports"], rig.hub.ports) == ("held", [3], {})
    assert talker.ask("attach", device="1")["attachment"]["port"] == 3
    assert talker.ask("detach", attachment="1", hold=False)["attachment"]["state"] == "gone"
    assert talker.ask("attach", device="toys:2-1")["attachment"]["number"] == 2
    assert talker.ask("detach", attachment="2", hold=True)["attachment"]["state"] == "held"
    assert talker.ask("detach", attachment="2")["attachment"]["state"] == "gone"
    assert talker.ask("list")["attachments"] == []
