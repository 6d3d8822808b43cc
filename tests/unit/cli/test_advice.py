"""why, doctor, completion and man: what they find, and what they advise."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from usbvfiod_core import Backend, Device, DeviceAway, DeviceError, DeviceInfo, Loop, hookimpl
from usbvfiod_core.cli import doctor, look, main, why
from usbvfiod_core.cli.command import application
from usbvfiod_core.cli.man import page
from usbvfiod_core.daemon import places
from usbvfiod_core.daemon.guest_ports import GuestPorts
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.host import hotplug, sysfs
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.installation import installation
from usbvfiod_core.testing.limits import PATIENCE

RULE = 'SUBSYSTEM=="usb", ATTR{idVendor}=="0403", MODE="0660"'
GOOD = DeviceInfo("shelf", "/dev/bus/usb/001/002", 0x0403, 0x6001, "Serial", "A9", None, "1-1", driver="ftdi_sio")
CLOSED = DeviceInfo(
    "shelf", "/dev/bus/usb/001/003", 1, 2, "Closed", note=f"no permission for it; a udev rule would help: {RULE}"
)
FORBIDDEN = DeviceInfo("shelf", "/dev/bus/usb/001/004", 1, 3, "New", note="it is not; this would allow it: echo 1 > x")
MOUNTED = DeviceInfo("shelf", "/dev/bus/usb/001/005", 1, 4, "Drive", in_use="sda1 is mounted at /mnt", driver="uas")
HUB = DeviceInfo("shelf", "/dev/bus/usb/001/001", 0x1D6B, 2, "Hub", note="a hub is not passed through")
TWINS = [DeviceInfo("shelf", f"/dev/bus/usb/002/00{n}", 5, 6, "Twin", port_path=f"2-{n}") for n in (1, 2)]


class Shelf(Backend):
    name = "shelf"
    options = HostOptions
    failure: Exception | None = None

    def list_devices(self) -> list[DeviceInfo]:
        if self.failure is not None:
            raise self.failure
        return [GOOD, CLOSED, FORBIDDEN, MOUNTED, HUB, *TWINS]

    def problems(self) -> list[str]:
        return [str(self.failure)] if self.failure is not None else []

    def look_up(self, address: str, options: object) -> DeviceInfo | None:
        match address:
            case "far/twin":
                return DeviceInfo("shelf", address, 5, 6, "Twin")
            case "far/down":
                raise DeviceAway("far does not answer")
            case "far/old":
                raise DeviceError("far speaks version 1.0.6")
        return None

    def open(self, address: str, options: object, loop: Loop) -> Device:
        raise AssertionError("nothing is opened")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither another test's, nor one that this machine runs."""
    monkeypatch.setenv("USBVFIOD_CONTROL", str(tmp_path_factory.mktemp("nobody")))


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Only a plugin with this backend is installed, which admits no device of product 6 for a reason."""
    backend = Shelf()
    plugin = SimpleNamespace(
        usbvfiod_register_backends=hookimpl(lambda register: register(backend)),
        usbvfiod_admit_device=hookimpl(lambda info: "twins are trouble" if info.product_id == 6 else None),
    )
    monkeypatch.setattr(Registry, "discover", lambda registry, selection: registry.register(plugin, "shelf"))
    return backend


Answers = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Answers:
    """Exit code, JSON and error of a command."""

    def answers(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main([*arguments, "--json"])
        output = capsys.readouterr()
        return code, json.loads(output.out), output.err

    return answers


@pytest.mark.parametrize(
    ("spec", "code", "steps", "reason"),
    [
        ("shelf:0403:6001", 0, "specification:yes device:yes host driver:yes plugins:yes", ""),
        ("shelf:1-1?port=3&reattach=no", 0, "specification:yes device:yes host driver:yes plugins:yes", ""),
        ("shelf:9999:*", 0, "specification:yes device:later", ""),
        ("shelf:something", 0, "specification:yes device:yes plugins:yes", ""),
        ("shelf:0001:0002", 4, "specification:yes device:yes access:no plugins:yes", "no permission for it"),
        ("shelf:0001:0003", 4, "specification:yes device:yes host:no plugins:yes", "cannot be attached: it is not"),
        (
            "shelf:0001:0004?port=3",
            4,
            "specification:yes device:yes host:no host driver:yes plugins:yes",
            "cannot be attached: it is in use: sda1 is mounted at /mnt",
        ),
        (
            "shelf:0001:0004?in_use=take",
            0,
            "specification:yes device:yes host:yes host driver:yes plugins:yes",
            "",
        ),
        ("shelf:1d6b:0002", 4, "specification:yes device:yes access:no plugins:yes", "a hub is not passed through"),
        ("shelf:2-1", 4, "specification:yes device:yes plugins:no", "twins are trouble (plugin shelf)"),
        ("shelf:0005:0006", 4, "specification:yes device:no", "is ambiguous"),
        ("shelf:far/twin", 4, "specification:yes device:yes plugins:no", "twins are trouble (plugin shelf)"),
        ("shelf:far/down", 0, "specification:yes device:later", ""),
        ("shelf:far/old", 4, "specification:yes device:no", "far speaks version 1.0.6"),
        ("floor:2-1", 2, "specification:no", "there is no backend 'floor'"),
        ("shelf:2-1?port=x", 2, "specification:no", "port is a number"),
    ],
)
def test_why(shelf: Shelf, answers: Answers, spec: str, code: int, steps: str, reason: str) -> None:
    found, answer, error = answers("why", spec)
    assert found == code
    assert " ".join(f"{step['who']}:{step['answer']}" for step in answer["steps"]) == steps
    assert answer["allowed"] == (code == 0)
    assert reason in error


def test_why_a_backend_cannot_list(shelf: Shelf, answers: Answers) -> None:
    shelf.failure = DeviceError("the shelf is empty")
    code, _, error = answers("why", "shelf:2-1")
    assert (code, "backend shelf cannot list its devices: the shelf is empty" in error) == (4, True)


@pytest.mark.parametrize("spec", ["shelf:9999:*", "shelf:9999:*?port=3"])
def test_why_knows_who_waits_for_what_is_not_there(
    shelf: Shelf, answers: Answers, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attachment = {"number": 4, "name": "far", "spec": "shelf:9999:*?name=far", "state": "waiting", "port": 0}
    known = GuestPorts(8, 7), [{**attachment, "reason": "it is not there"}]
    monkeypatch.setattr(why, "_at_server", lambda connect: known)
    code, answer, _ = answers("why", spec)
    assert code == 0
    assert answer["steps"][-1] == {
        "who": "server",
        "answer": "yes",
        "text": "attachment 4 is waiting: it is not there",
        "fix": "",
    }


def test_why_prints_a_rule_to_paste(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "shelf:0001:0002"]) == 4
    output = capsys.readouterr().out
    assert "access         no      no permission for it\n" in output
    assert f"<<'END'\n{RULE}\nEND\nsudo udevadm control --reload" in output


def test_why_says_how_to_get_what_the_host_does_not_give(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "shelf:0001:0003"]) == 4
    assert "what would help (host):\necho 1 > x\n" in capsys.readouterr().out
    assert main(["why", "shelf:0001:0004?port=3"]) == 4
    assert "or take it all the same: shelf:0001:0004?port=3&in-use=take\n" in capsys.readouterr().out


def test_devices_says_what_the_host_does_not_give(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    output = capsys.readouterr().out
    assert "it is not; this would allow it: echo 1 > x\n" in output
    assert "in use on this host: sda1 is mounted at /mnt\n" in output


# -- doctor ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A healthy host: /sys and /dev with one device that may be opened."""
    root = tmp_path / "sys"
    device = root / "1-2"
    (device / "power").mkdir(parents=True)
    values = {"busnum": 1, "devnum": 4, "idVendor": "0403", "idProduct": "6001", "speed": 12, "bDeviceClass": "00"}
    for name, value in {**values, "product": "Serial", "power/control": "on"}.items():
        (device / name).write_text(f"{value}\n")
    (device / "descriptors").write_bytes(b"")
    (device / "driver").symlink_to(root / "drivers" / "usb")
    node = tmp_path / "dev" / "001" / "004"
    node.parent.mkdir(parents=True)
    node.touch()
    memory = tmp_path / "usbfs_memory_mb"
    memory.write_text("1000\n")
    monkeypatch.setattr(sysfs, "DEVICES", root)
    monkeypatch.setattr(sysfs, "NODES", tmp_path / "dev")
    monkeypatch.setattr(doctor, "USBFS_MEMORY", memory)
    return tmp_path


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["verdict"] for finding in answer["findings"]}


def test_a_healthy_host(shelf: Shelf, host: Path, answers: Answers) -> None:
    code, answer, error = answers("doctor")
    assert (code, error, answer["healthy"]) == (0, "", True)
    fine = {"usb": "ok", "events": "ok", "rights": "ok", "usbfs memory": "ok"}
    assert verdicts(answer) == {"backends": "note", **fine, "server": "note"}


def test_what_the_host_does_not_give(
    shelf: Shelf, host: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysfs, "users", lambda device, usage: ["sda1 is mounted at /mnt"])
    (host / "sys/1-2/authorized").write_text("0\n")
    code, answer, _ = answers("doctor")
    assert code == 0
    findings = {finding["check"]: finding for finding in answer["findings"]}
    assert findings["authorization"]["text"] == "1-2 0403:6001 Serial: the host has not authorized it"
    assert findings["authorization"]["fix"].startswith(f"echo 1 | sudo tee {host}/sys/1-2/authorized")
    assert "sda1 is mounted at /mnt, so a guest gets it when that has ended" in findings["in use"]["text"]
    assert findings["devices"]["verdict"] == "note"


def test_each_illness_has_a_fix(
    shelf: Shelf, host: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "usbfs_memory_mb").write_text("16\n")
    (host / "sys/1-2/power/control").write_text("auto\n")
    interface = host / "sys/1-2/1-2:1.0"
    interface.mkdir()
    (interface / "driver").symlink_to("../../drivers/ftdi_sio")
    may_open = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != host / "dev/001/004" and may_open(path, mode))

    def deaf() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(hotplug, "uevent_socket", deaf)
    code, answer, error = answers("doctor")
    assert code == 1
    assert error == "usbvfiod: error: 1 of 9 findings is wrong: rights\n"
    wrong = [finding["text"] for finding in answer["findings"] if finding["verdict"] == "wrong"]
    assert wrong == ["no permission for 1-2 0403:6001 Serial"]
    assert verdicts(answer) | {"rights": "wrong"} == {
        "backends": "note",
        "usb": "ok",
        "events": "note",
        "rights": "wrong",
        "drivers": "note",
        "autosuspend": "note",
        "usbfs memory": "note",
        "server": "note",
    }
    fixes = "\n".join(finding["fix"] for finding in answer["findings"])
    for text in ('ATTR{idVendor}=="0403"', "echo 1000 | sudo tee", "AF_NETLINK", "echo on | sudo tee"):
        assert text in fixes
    assert installation().plugin("usbfs") in fixes
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "ftdi_sio has 1-2 0403:6001 Serial" in told
    assert f"what would help (backends):\n{installation().plugin('usbfs')}\n" in told


def test_a_container_without_the_nodes_gets_no_udev_rule(shelf: Shelf, host: Path, answers: Answers) -> None:
    node = host / "dev/001/004"
    node.unlink()
    found = [each for each in answers("doctor")[1]["findings"] if each["check"] == "rights"]
    assert [(each["verdict"], each["text"]) for each in found] == [
        ("wrong", f"1-2 0403:6001 Serial: {node}: No such file or directory")
    ]
    assert "-v /dev/bus/usb:/dev/bus/usb --device-cgroup-rule='c 189:* rw'" in found[0]["fix"]


def test_a_host_without_usb(shelf: Shelf, host: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It matters only to those who want devices of the host."""
    for wanted, verdict in ((False, "note"), (True, "wrong")):
        monkeypatch.setattr(shelf, "of_host", wanted, raising=False)
        with monkeypatch.context() as context:
            context.setattr(sysfs, "NODES", host / "none")
            assert verdicts(answers("doctor")[1])["usb"] == verdict
            context.setattr(sysfs, "DEVICES", host / "none")
            code, answer, _ = answers("doctor")
        assert (code, verdicts(answer)["usb"], verdicts(answer)["devices"]) == (int(wanted), verdict, "note")
        assert any("the kernel has no USB" in finding["text"] for finding in answer["findings"])


def test_a_backend_has_problems(shelf: Shelf, host: Path, answers: Answers) -> None:
    shelf.failure = DeviceError("far does not answer")
    code, answer, error = answers("doctor")
    assert (code, verdicts(answer)["shelf"]) == (1, "wrong")
    assert error.endswith("wrong: shelf\n")
    assert {"check": "shelf", "verdict": "wrong", "text": "far does not answer", "fix": ""} in answer["findings"]


def test_several_servers_and_none(
    shelf: Shelf, host: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    assert "what would help (server):\nusbvfiod --socket-path PATH\n" in capsys.readouterr().out
    monkeypatch.setattr(places, "servers", lambda place: {"db": Path("db"), "web": Path("web")})
    (server,) = (each for each in answers("doctor")[1]["findings"] if each["check"] == "server")
    assert (server["text"], server["fix"]) == ("2 servers run: db, web", "usbvfiod doctor --vm NAME")


# -- completion and man ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    output = capsys.readouterr().out
    assert re.search(rf"_USBVFIOD_COMPLETE[= ]{shell}_complete", output)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=output, text=True, check=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("words", "found"),
    [("usbvfiod att", "attach"), ("usbvfiod attach --op", "--open"), ("usbvfiod --soc", "--socket-path")],
)
def test_words_are_completed(words: str, found: str) -> None:
    code = "import sys; from usbvfiod_core.cli import main; sys.exit(main())"
    count = str(len(words.split()) - 1)
    environment = {**os.environ, "_USBVFIOD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": count}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert found in [line.split(",")[1] for line in result.stdout.splitlines()]


def group() -> click.Group:
    return application(Registry())


@pytest.mark.parametrize("name", [None, *group().commands])
def test_every_command_has_a_manual_page_with_its_options(name: str | None) -> None:
    text = page(group(), name)
    command = group() if name is None else group().commands[name]
    plain = text.replace("\\-", "-")
    for parameter in command.params:
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert option in plain
    assert text.startswith(".TH ")
    assert f"\n.SH NAME\nusbvfiod{'' if name is None else '-' + name} \\- " in text.replace(
        "usbvfiod\\-", "usbvfiod-"
    ).replace("log\\-", "log-")
    if shutil.which("groff"):
        result = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8"], input=text, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        assert result.stderr == ""
        assert "OPTIONS" in result.stdout


def test_manual_pages_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "man1"
    assert main(["man", "--directory", str(directory)]) == 0
    names = {path.name for path in directory.iterdir()}
    assert {"usbvfiod.1", "usbvfiod-attach.1", "usbvfiod-doctor.1", "usbvfiod-opener.1"} <= names
    opener = (directory / "usbvfiod-opener.1").read_text().replace("\\-", "-")
    assert opener.startswith('.TH "USBVFIOD-OPENER" 1')
    for option in ("--socket PATH", "--socket-group GROUP", "--allow WHO", "--node PATTERN", "--below DIRECTORY"):
        assert f"\n.B {option}\n" in opener
    assert (directory / "usbvfiod-attach.1").read_text() == page(group(), "attach")
    capsys.readouterr()
    assert main(["man", "attach"]) == 0
    assert capsys.readouterr().out == page(group(), "attach")
    assert main(["man", "nothing"]) == 2
    assert main(["man", "attach", "--directory", str(directory)]) == 2


@pytest.mark.parametrize(
    ("shared", "unshared", "verdict", "words"),
    [
        (2 << 30, 17 << 20, "ok", "shares its memory"),  # firmware, and what a display adapter has
        (2 << 30, 512 << 20, "wrong", "512 MiB of the guest's memory are not shared"),
        (0, 2 << 30, "wrong", "the guest's memory is not shared with the server"),
    ],
)
def test_memory_that_is_not_shared(
    shared: int, unshared: int, verdict: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One NUMA node without share=on is wrong, and what no VMM shares is not."""
    server = {"pid": 1, "serving": True, "seconds": 1.0, "socket": "/run/vm.sock", "missing": []}
    server |= {"build": "pure", "sandbox": {"stages": [], "missing": []}}
    client = {"pid": 2, "uid": 0, "name": "QEMU", "version": ""}
    memory = {"shared": shared, "unshared": unshared}
    status = {"server": server, "client": client, "memory": memory, "attachments": []}
    connection = nullcontext(SimpleNamespace(request=lambda name: status))
    found = {finding.check: finding for finding in doctor._server(lambda: connection)}  # type: ignore[arg-type, return-value]
    assert found["vm"].verdict == verdict
    assert words in found["vm"].text
    look._print_status(status)
    printed = capsys.readouterr().out
    assert ("share=on" in printed) == (verdict == "wrong")
    if verdict == "wrong":
        assert "not shared" in printed
        assert "share=on" in found["vm"].fix


@pytest.mark.parametrize(
    ("socket", "where"), [("/run/vm.sock", "/run/vm.sock"), ("", "the socket that the server has inherited")]
)
def test_nobody_is_connected(socket: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    server = {"pid": 1, "build": "pure", "serving": True, "seconds": 65.0, "socket": socket, "missing": []}
    server["sandbox"] = {"stages": [], "missing": []}
    memory = {"shared": 0, "unshared": 0}
    status: dict[str, Any] = {"server": server, "client": None, "memory": memory, "attachments": []}
    connection = nullcontext(SimpleNamespace(request=lambda name: status))
    found = {finding.check: finding for finding in doctor._server(lambda: connection)}  # type: ignore[arg-type, return-value]
    assert found["vm"].fix == f"Start a VM that connects to {where}."
    look._print_status(status)
    on = f" on {socket}" if socket else ""
    assert capsys.readouterr().out.startswith(f"server   process 1 (pure), serving{on}, for 0:01:05\n")


def test_what_would_help_an_attachment_can_be_pasted() -> None:
    attachment = {"name": "", "spec": "virtual:flash?image=/a b&speed=high", "state": "retrying", "reason": "no"}
    server = {"pid": 1, "serving": True, "socket": "", "missing": []}
    memory = {"shared": 0, "unshared": 0}
    status = {"server": server, "client": None, "memory": memory, "attachments": [attachment]}
    connection = nullcontext(SimpleNamespace(request=lambda name: status))
    found = {finding.check: finding for finding in doctor._server(lambda: connection)}  # type: ignore[arg-type, return-value]
    assert shlex.split(found["attachment"].fix) == ["usbvfiod", "why", attachment["spec"]]
    assert "'" in found["attachment"].fix
