"""Who may connect to a server's sockets, and what they may ask for: real processes of several users."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import ServerProcess
from tests.e2e.somebody import ALICE, BECOME, BOB, OPERATORS, SERVER, only_root, public_directory, run_as, somebody
from usbvfiod_core.testing.limits import PATIENCE, eventually

pytestmark = only_root
UNREACHABLE = 8
Start = Callable[..., ServerProcess]


@pytest.fixture
def place() -> Iterator[Path]:
    with public_directory(SERVER) as directory:
        yield directory


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Start a server of the user SERVER, who is in OPERATORS too, with a file as given; it serves on return."""
    with ExitStack() as stack:

        def start(*arguments: str | Path, file: str = "") -> ServerProcess:
            (place / "vm.toml").write_text(file)
            words = ["--config", place / "vm.toml", "--control-path", place / "control.sock", *arguments]
            server = ServerProcess(place, words, command=somebody(SERVER, OPERATORS))
            return stack.enter_context(server).wait_ready()

        yield start


AS = f"""
import json, os, socket, sys
user, groups, path, *lines = sys.argv[1:]
{BECOME}
"""
CONNECT = """
with socket.socket(socket.AF_UNIX) as client:
    try:
        client.connect(path)
    except PermissionError:
        print("refused")
    else:
        print("connected")
"""
CONNECT_AGAIN_AND_AGAIN = """
print("ready", flush=True)
while True:
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(path) == 0:
            print("connected", flush=True)
            break
"""
ASK = """
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    file = client.makefile("rw")
    file.readline() if lines else print(file.readline())
    for line in lines:
        file.write(line + "\\n")
        file.flush()
        print(file.readline())
"""
ASK_IN_BYTES = """
for line in lines:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        try:
            client.send(bytes.fromhex(line))
        except BrokenPipeError:  # it has got its answer already
            pass
        print(client.recv(100).hex())
"""


def child(code: str, user: int, groups: tuple[int, ...], path: Path, *lines: str) -> list[str]:
    """The words of a small process of this user."""
    return [sys.executable, "-S", "-c", AS + code, str(user), ",".join(map(str, groups)), str(path), *lines]


def output(*arguments: Any) -> list[str]:
    return subprocess.check_output(child(*arguments), text=True, timeout=PATIENCE).split("\n")


def connects(path: Path, user: int, *groups: int) -> bool:
    return {"connected": True, "refused": False}[output(CONNECT, user, groups, path)[0]]


def ask(path: Path, user: int, *requests: dict[str, Any], groups: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The answers to requests, or the greeting if there are none."""
    lines = output(ASK, user, groups, path, *map(json.dumps, requests))
    return [json.loads(line) for line in lines if line]


def test_a_vmm_connects_through_the_group_of_the_socket(place: Path, start: Start) -> None:
    (place / "closed").mkdir(0o700)
    os.chown(place / "closed", SERVER, SERVER)
    hotplug = ("--hotplug-socket-path", place / "closed/hotplug.sock", "--hotplug-socket-group", str(OPERATORS))
    server = start("--socket-group", str(OPERATORS), "--control-mode", "0622", *hotplug)
    control = place / "control.sock"
    status = server.socket_path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid, status.st_uid) == (0o660, OPERATORS, SERVER)
    assert (stat.S_IMODE(control.stat().st_mode), control.stat().st_gid) == (0o622, SERVER), "whatever the umask"
    for user, groups, may in ((ALICE, (OPERATORS,), True), (ALICE, (), False), (SERVER, (), True)):
        assert connects(server.socket_path, user, *groups) is may
    assert connects(control, ALICE)
    [everybody, unreachable] = [line for line in server.errors if "turned away" not in line]
    assert f"every user of this host may connect to {control}, as its mode 0622 says" in everybody
    assert f"group {OPERATORS} cannot reach {place}/closed/hotplug.sock: it may not enter {place}/closed" in unreachable
    assert server.terminate() == 0
    assert not server.socket_path.exists()


def test_there_is_no_moment_at_which_others_can_connect(place: Path, start: Start) -> None:
    """Somebody who tries all the time while a server starts and ends does not get in."""
    words = ["nice", *child(CONNECT_AGAIN_AND_AGAIN, ALICE, (), place / "usb.sock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        server = start("--socket-group", str(OPERATORS))
        assert server.terminate() == 0
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "", "a stranger got in"


def test_a_group_that_the_server_is_not_in(place: Path) -> None:
    result = run_as(SERVER, "--socket-path", place / "usb.sock", "--socket-group", "0")
    assert (result.returncode, result.stderr) == (
        3,
        f"usbvfiod: error: socket path {place}/usb.sock cannot be given to group root: user {SERVER} is not in it; "
        f"`usermod -aG root {SERVER}`, or SupplementaryGroups=root in a unit, changes that\n",
    )
    assert list(place.iterdir()) == [], "nothing is left of a socket that cannot be"


LIST, STATUS, RELOAD = {"request": "list"}, {"request": "status"}, {"request": "reload"}
DETACH, ATTACH = {"request": "detach", "attachment": "keys"}, {"request": "attach", "device": "keys"}


def test_peers_may_do_what_the_configuration_says(place: Path, start: Start) -> None:
    control, hotplug = place / "control.sock", place / "hotplug.sock"
    modes = ("--control-mode", "0666", "--hotplug-socket-path", hotplug, "--hotplug-socket-mode", "0666")
    rules = f'[control.allow]\n{ALICE} = ["list", "status"]\n"@{OPERATORS}" = ["send", "detach"]\n'
    server = start(*modes, "--device", "virtual:keyboard?name=keys", file=rules)

    def outcome(user: int, *requests: dict[str, Any], groups: tuple[int, ...] = ()) -> list[bool]:
        return [answer["ok"] for answer in ask(control, user, *requests, groups=groups)]

    [listed, refused] = ask(control, ALICE, LIST, DETACH)
    assert listed["attachments"][0]["name"] == "keys"
    assert refused["error"] == {
        "kind": "forbidden",
        "message": f"user {ALICE} may not detach at this server, only list, status; "
        "[control.allow] in its configuration says so",
    }
    assert outcome(BOB, LIST, DETACH, groups=(OPERATORS,)) == [False, True]
    assert outcome(ALICE, LIST, ATTACH, DETACH, groups=(OPERATORS,)) == [True, False, True]
    assert outcome(BOB, DETACH, groups=(*range(100_000, 102_000), OPERATORS)) == [True], "of thousands of groups"
    [turned_away] = ask(control, BOB)
    assert turned_away["error"]["message"] == (
        f"only root, {SERVER}, {ALICE}, @{OPERATORS} may control this server, and you are user {BOB}; "
        "[control.allow] in its configuration lets others in"
    )
    assert outcome(SERVER, ATTACH, LIST) == [True, True]
    assert outcome(0, DETACH) == [True]
    result = run_as(BOB, "list", "--control-path", control)
    assert (result.returncode, f"and you are user {BOB}" in result.stderr) == (UNREACHABLE, True)
    # Clients of the Rust program, whose protocol has no word for that.
    for user, answers in ((SERVER, ["0100", "05"]), (ALICE, ["0100", "06"]), (BOB, ["06", "06"])):
        assert output(ASK_IN_BYTES, user, (), hotplug, "020000", "010104")[:2] == answers
    for line in (
        f"user {ALICE} was refused detach at the control socket",
        f"user {BOB} was turned away from the control socket",
        f"user {ALICE} was refused detach at the hotplug socket",
        f"user {BOB} was turned away from the hotplug socket",
    ):
        assert f"warning: {line}" in server.log


def test_what_peers_may_is_read_again(place: Path, start: Start) -> None:
    control = place / "control.sock"
    start("--control-group", str(OPERATORS))
    mine = (OPERATORS,)
    assert [answer["ok"] for answer in ask(control, ALICE, LIST, RELOAD, groups=mine)] == [True, True]
    assert not connects(control, ALICE)
    (place / "vm.toml").write_text(f'[control.allow]\n"@{OPERATORS}" = ["list"]\n')
    # It holds for who is connected, too.
    answers = ask(control, ALICE, STATUS, RELOAD, LIST, STATUS, groups=mine)
    assert [answer["ok"] for answer in answers] == [True, True, True, False]
    assert f"user {ALICE} may not status at this server, only list" in answers[3]["error"]["message"]


FLASH = "virtual:flash?serial=1"


def test_files_are_opened_with_the_rights_of_whoever_attaches(place: Path, start: Start) -> None:
    images = place / "images"
    images.mkdir(0o755)
    for name, owner in (("mine.img", ALICE), ("server.img", SERVER), ("images/shared.img", SERVER)):
        (place / name).write_bytes(bytes(1 << 20))
        os.chown(place / name, owner, owner)
        os.chmod(place / name, 0o600)
    (images / "out.img").symlink_to(place / "server.img")
    rules = f'[control]\ndirectories = ["{images}"]\n[control.allow]\n{ALICE} = ["attach", "list", "detach"]\n'
    control = place / "control.sock"
    server = start("--control-mode", "0666", file=rules)
    before = server.open_files()

    def attach(user: int, spec: str) -> tuple[int, str]:
        result = run_as(user, "attach", spec, "--control-path", control)
        return result.returncode, result.stderr.strip()

    # What only she can open, and what only the server can, where it may for her.
    assert attach(ALICE, f"{FLASH}&image={place}/mine.img&name=mine") == (0, "")
    assert attach(ALICE, f"{FLASH}&image={images}/shared.img&name=shared") == (0, "")
    code, error = attach(ALICE, f"{FLASH}&image={place}/server.img")
    assert (code, f"is not opened by this server for another user, only files below {images}" in error) == (4, True)
    assert error.endswith(f"{place}/server.img cannot be opened here: Permission denied")
    assert f"out.img leads out of {images}" in attach(ALICE, f"{FLASH}&image={images}/out.img")[1]
    code, error = attach(ALICE, f"virtual:serial?link={place}/tty")
    assert (code, f"only root and the server's own user may give link={place}/tty" in error) == (1, True)
    # The server's own user may still name what it can open, and root passes what it cannot.
    assert attach(SERVER, f"{FLASH}&image={place}/server.img&name=server") == (0, "")
    (place / "root.img").write_bytes(bytes(1 << 20))
    os.chmod(place / "root.img", 0o600)
    assert attach(0, f"{FLASH}&image={place}/root.img&name=root") == (0, "")
    recorded = f"virtual:audio?serial=1&playback={place}/sound.wav&name=sound"
    assert "Permission denied" in attach(ALICE, recorded)[1], "neither she nor the server for her can make it"
    assert attach(SERVER, recorded) == (0, "")
    names = ("mine", "shared", "server", "root", "sound")
    plugged = {each["name"]: each["state"] for each in ask(control, SERVER, LIST)[0]["attachments"]}
    assert plugged == dict.fromkeys(names, "plugged")
    for name in names:
        [answer] = ask(control, SERVER, {"request": "detach", "attachment": name})
        assert answer["ok"]
    assert eventually(lambda: server.open_files() <= before)


def test_what_was_passed_is_there_when_the_device_comes_back(place: Path, start: Start) -> None:
    """Relative paths are those of whoever attaches, and the server needs no right to the file, then or later."""
    control = place / "control.sock"
    start("--control-mode", "0666", file=f'[control.allow]\n{ALICE} = ["all"]\n')
    (place / "mine.img").write_bytes(bytes(1 << 20))
    os.chown(place / "mine.img", ALICE, ALICE)
    os.chmod(place / "mine.img", 0o600)
    words = [*somebody(ALICE), "attach", "--control-path", str(control)]
    spec = "virtual:flash?image=mine.img&serial=1&mode=manual&name=drive"
    result = subprocess.run([*words, spec], cwd=place, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, "")
    [entry] = ask(control, ALICE, LIST)[0]["attachments"]
    assert (entry["state"], f"image={place}/mine.img&" in entry["spec"]) == ("held", True)
    attach, move = {"request": "attach", "device": "drive"}, {"request": "move", "attachment": "drive", "port": 10}
    for answer in ask(control, ALICE, attach, move):
        assert answer["attachment"]["state"] == "plugged"
