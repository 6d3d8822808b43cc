"""The sandbox of a real server: what it keeps plugins and attachments from, and that it serves all the same."""

from __future__ import annotations

import json
import os
import signal
import socket
import wave
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run, Serve
from tests.e2e.test_front import Fronted
from tests.e2e.test_life import block
from tests.e2e.upgrade_rig import patient
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.sandbox import landlock, seccomp
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage

pytestmark = pytest.mark.skipif(not landlock.abi() or bool(seccomp.missing()), reason="the kernel cannot confine here")

STAGES = ["limits", "capabilities", "landlock", "seccomp"]
GRASPING = '''
"""A plugin that tries what it was not given, and tells each time in a device's name what came of it."""

import ctypes, errno, os, socket
from usbvfiod_core import hookimpl

def execute():
    os.execv("/bin/true", ["true"])

def connect():
    socket.create_connection(("127.0.0.1", 9))

def trace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, os.getppid(), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")

TRIES = {
    "keyboard": lambda: open("{secret}").read(),
    "mouse": execute,
    "tablet": connect,
    "loopback": trace,
    "serial": lambda: os.fork() or os._exit(0),
}

@hookimpl
def usbvfiod_admit_device(info):
    TRIES.get(info.address, lambda: None)()
'''

DECLARING = """
import os
from usbvfiod_core import RegisterNeeds, hookimpl

@hookimpl
def usbvfiod_register_needs(register: RegisterNeeds) -> None:
    register(read=["{secret}"], system_calls=["sync"])

@hookimpl
def usbvfiod_admit_device(info):
    os.sync()
    return open("{secret}").read()
"""

STARTING_A_THREAD = """
from threading import Event, Thread
from usbvfiod_core import hookimpl

Thread(target=Event().wait, daemon=True).start()

@hookimpl
def usbvfiod_admit_device(info):
    return None
"""


def plugin(path: Path, text: str) -> list[str | Path]:
    """The options that load `text` as a plugin."""
    path.write_text(text)
    return ["--plugin-files", "--plugin", path]


def sandbox(run: Run, control: Path) -> dict[str, Any]:
    """What `status` says of it."""
    answer = json.loads(run("status", "--json", "--control-path", control).stdout)
    said: dict[str, Any] = answer["server"]["sandbox"]
    return said


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_a_plugin_gets_nothing_that_it_was_not_given(
    tmp_path: Path, run: Run, serve: Serve, image: Path, control: Path
) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    options = plugin(tmp_path / "grasping.py", GRASPING.replace("{secret}", str(secret)))
    server = serve(
        "--sandbox=on", *options, "--control-path", control, "--device", f"virtual:flash?image={image}",
        environment={"USBVFIOD_SANDBOX": ""},
    )  # fmt: skip
    wanted = {"keyboard": "13", "mouse": "1", "tablet": "1", "loopback": "1", "serial": "1"}
    for kind, number in wanted.items():
        for _ in range(2):
            done = run("attach", "--control-path", control, f"virtual:{kind}")
            assert done.returncode == 5, done.stderr
            assert f"[Errno {number}]" in done.stderr
    for kind, number in wanted.items():
        lines = [line for line in server.errors if f"[Errno {number}]" in line]
        assert lines, kind
        assert all("usbvfiod_register_needs" in line for line in lines)
    assert len(server.errors) == len(set(server.errors)), server.log
    with server.guest() as driver:
        assert bytes(MassStorage(driver.enumerate(9)).read(3, 1)) == block(3)
    assert server.terminate() == 0


@pytest.mark.long
def test_a_plugin_gets_nothing_after_a_crash_and_an_upgrade_either(
    tmp_path: Path, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USBVFIOD_SANDBOX", "")
    secret = tmp_path / "secret"
    secret.touch()
    options = plugin(tmp_path / "grasping.py", GRASPING.replace("{secret}", str(secret)))
    wanted = {"keyboard": "13", "mouse": "1", "tablet": "1", "loopback": "1", "serial": "1"}

    def grasp() -> int:
        """The plugin tries everything; the server's process."""
        with ControlConnection(control, PATIENCE) as connection:
            for kind, number in wanted.items():
                with pytest.raises(UsbvfiodError, match=rf"\[Errno {number}\]"):
                    connection.request("attach", device=f"virtual:{kind}")
            said = connection.request("status")["server"]
        assert said["sandbox"]["missing"] == []
        assert [stage.split()[0] for stage in said["sandbox"]["stages"]] == STAGES
        return int(said["pid"])

    server = Fronted(tmp_path, ["--sandbox=on", *map(str, options), "--control-path", control])
    with server:
        server.wait_ready()
        first = grasp()
        server.kill_server()
        second = grasp()
        done = patient(control)
        assert done.returncode == 0, done.stderr
        third = grasp()
        os.kill(third, signal.SIGKILL)
        server.wait_for(lambda: server.log.count("serving on") == 3)
        assert len({first, second, third, grasp()}) == 4
        assert server.terminate() == 0


def test_a_plugin_gets_what_it_declares(tmp_path: Path, run: Run, serve: Serve, control: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not on Mondays")
    options = plugin(tmp_path / "declaring.py", DECLARING.format(secret=secret))
    serve("--sandbox=on", *options, "--control-path", control)
    done = run("attach", "--control-path", control, "virtual:keyboard")
    assert "not on Mondays" in done.stderr


def test_what_is_attached_later_is_passed_or_below_a_directory(
    tmp_path: Path, run: Run, serve: Serve, control: Path
) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for directory in (allowed, other):
        directory.mkdir()
        (directory / "drive.img").write_bytes(bytes(4096))
    file = tmp_path / "vm.toml"
    file.write_text(f'[control]\ndirectories = ["{allowed}"]\n')
    server = serve("--sandbox=on", "--config", file, "--control-path", control)
    with ControlConnection(control, PATIENCE) as connection:
        with pytest.raises(UsbvfiodError) as refused:
            connection.request("attach", device=f"virtual:flash?image={other}/drive.img")
        assert f"the sandbox is closed to {other}/drive.img" in str(refused.value)
        assert "[control] directories" in str(refused.value)
        for kind in (f"flash?image={allowed}/drive.img", f"audio?playback={allowed}/new.wav", "serial"):
            connection.request("attach", device=f"virtual:{kind}")
    done = run("attach", "--control-path", control, f"virtual:flash?image={other}/drive.img")
    assert done.returncode == 0, done.stderr
    assert server.errors == []
    assert server.terminate() == 0


def test_log_and_status_say_what_holds(run: Run, serve: Serve, control: Path) -> None:
    server = serve("--sandbox=auto", "--control-path", control, environment={"USBVFIOD_SANDBOX": ""})
    stages = ["limits", "capabilities", f"landlock (ABI {landlock.abi()})", "seccomp"]
    said = sandbox(run, control)
    assert said["mode"] == "auto"
    assert said["stages"] == stages
    assert [line for line in server.log.splitlines() if "sandbox" in line] == [
        "usbvfiod: sandbox: "
        + ", ".join(stages)
        + (f"; missing: {', '.join(said['missing'])}" if said["missing"] else "")
    ]
    assert server.terminate() == 0
    assert not control.exists()
    assert not server.socket_path.exists()


def test_off_is_off(run: Run, serve: Serve, control: Path) -> None:
    server = serve("--sandbox=off", "--control-path", control)
    assert sandbox(run, control) == {"mode": "off", "stages": [], "missing": []}
    assert "sandbox: off" in server.log


def test_what_is_missing_is_said_and_too_little_for_on(tmp_path: Path, run: Run, serve: Serve, control: Path) -> None:
    options = plugin(tmp_path / "early.py", STARTING_A_THREAD)
    missing = "landlock and capabilities (1 thread that a plugin has started before)"
    done = run("--sandbox=on", *options, "--socket-path", tmp_path / "usb.sock")
    assert done.returncode == 2
    assert f"--sandbox=on: there is no {missing}; --sandbox=auto does without" in done.stderr
    server = serve("--sandbox=auto", *options, "--control-path", control)
    said = sandbox(run, control)
    assert said["missing"] == [missing]
    assert said["stages"][-1].startswith("seccomp")
    assert f"missing: {missing}" in server.log


def test_a_wrong_word_in_the_environment_is_an_error(tmp_path: Path, run: Run) -> None:
    environment = {**os.environ, "USBVFIOD_SANDBOX": "sometimes"}
    done = run("--socket-path", tmp_path / "usb.sock", environment=environment)
    assert done.returncode == 2
    assert "USBVFIOD_SANDBOX is one of auto, on, off and kill, not 'sometimes'" in done.stderr


def test_every_virtual_device_is_opened(tmp_path: Path, serve: Serve, image: Path) -> None:
    """With what each of its options stands for; a system call that is refused would be the end."""
    played, recorded = tmp_path / "played.wav", tmp_path / "recorded.wav"
    with wave.open(str(recorded), "wb") as file:
        file.setparams((2, 2, 48000, 0, "NONE", ""))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "listening"))
        listening.listen()
        specs = [
            f"flash?image={image}&transport=uas",
            *("keyboard", "mouse", "tablet", "loopback"),
            f"audio?playback={played}&capture={recorded}",
            f"serial?link={tmp_path}/tty",
            f"serial?file={tmp_path}/lines",
            f"serial?connect={tmp_path}/listening",
            f"network?socket={tmp_path}/listening",
        ]
        devices = [word for spec in specs for word in ("--device", f"virtual:{spec}")]
        server = serve(*devices, environment={"USBVFIOD_SANDBOX": "kill"})
        assert server.log.count("is plugged into port") == len(specs), server.log
        with server.guest() as driver:
            assert bytes(MassStorage(driver.enumerate(9)).read(3, 1)) == block(3)
        assert server.errors == []
        assert server.terminate() == 0
    assert not (tmp_path / "tty").is_symlink()
