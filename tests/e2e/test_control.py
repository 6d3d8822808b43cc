"""A running server, seen and steered by the commands as users type them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run, Serve
from tests.e2e.process import COMMAND, ServerProcess
from usbvfiod_core.testing.limits import PATIENCE, scaled
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.virtual.flash import EJECTED

NOT_ATTACHED, TIMEOUT, UNREACHABLE = 6, 7, 8
Ask = Callable[..., Any]


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def ask(run: Run, control: Path) -> Ask:
    """Run a command against the server, with --json; its output, or the exit code and message of a failure."""

    def ask(command: str, *arguments: str) -> Any:
        result = run(command, "--control-path", control, "--json", *arguments)
        if result.returncode:
            return result.returncode, result.stderr
        return json.loads(result.stdout)

    return ask


def test_an_ejected_drive_is_told_of(serve: Serve, run: Run, ask: Ask, control: Path, image: Path) -> None:
    """Until the next guest finds the medium again."""
    server = serve("--control-path", control, "--device", f"virtual:flash?image={image}")
    with server.guest() as driver:
        disk = MassStorage(driver.enumerate())
        disk.test_unit_ready()
        [attachment] = ask("list")["attachments"]
        assert (attachment["state"], attachment["note"]) == ("plugged", "")
        disk.command(bytes((0x1B, 0, 0, 0, 2, 0)))
        [attachment] = ask("list")["attachments"]
        assert (attachment["state"], attachment["reason"], attachment["note"]) == ("plugged", "", EJECTED)
        assert EJECTED in run("list", "--control-path", control).stdout
        assert EJECTED in server.log
    with server.guest() as driver:
        MassStorage(driver.enumerate()).test_unit_ready()
        assert ask("list")["attachments"][0]["note"] == ""
    with server.guest() as driver:
        usb = driver.enumerate()
        MassStorage(usb).command(bytes((0x1B, 0, 0, 0, 2, 0)))
        assert ask("detach", "1")["attachment"]["note"] == ""
        usb.port.wait_disconnected()
        usb.disable()
        assert ask("attach", "1")["attachment"]["note"] == ""
        MassStorage(driver.enumerate(usb.port.port_id)).test_unit_ready()


def test_the_log_tells_of_devices_and_of_what_the_guest_does_with_them(
    serve: Serve, run: Run, ask: Ask, control: Path, image: Path
) -> None:
    device = f"virtual:flash?image={image}&speed=high"
    server = serve("--control-path", control, "--device", device)
    drive = "usbvfiod Flash Drive (drive.img)"
    who = f"{drive} ({device})"
    with server.guest() as driver:
        usb = driver.enumerate()
        assert run("log-level", "debug", "--control-path", control).returncode == 0
        MassStorage(usb).read(0, 1)
        usb.port.reset()
        assert run("log-level", "trace", "--control-path", control).returncode == 0
        usb.reset()
        assert run("log-level", "info", "--control-path", control).returncode == 0
        usb.get_descriptor(1, 0, 18)
        ask("move", "1", "5")
        ask("detach", "1")
    server.wait_for(lambda: "disconnected" in server.log)
    ask("attach", "1")
    assert server.terminate() == 0
    lines = [line.removeprefix("usbvfiod: ") for line in server.log.splitlines() if "sandbox: " not in line]
    port = f"port 1 ({drive}): "
    traced = [line for line in lines if line.startswith("trace: ")]
    assert "trace: command Address Device, slot 1: Success" in traced
    assert any(line.startswith(f"trace: {port}endpoint 0x00 00 09 0001 0000 0000: 0 of 0 bytes in ") for line in traced)
    assert [re.sub(r"process \d+", "process N", line) for line in lines if line not in traced] == [
        f"{who} is plugged into port 1 at high speed",
        f"serving on {server.socket_path}",
        "a client has connected: vfio-user client (process N)",
        f"debug: {port}reset",
        f"debug: {port}reset",
        f"debug: {port}slot 1: reset by the driver",
        f"debug: {port}slot 1: address 1",
        f"debug: {port}slot 1: configured, endpoints 0x81 bulk, 0x02 bulk",
        f"{who} is unplugged from port 1: it moves to port 5",
        f"{who} is plugged into port 5 at high speed",
        f"{who} is unplugged from port 5: it was asked for",
        "the client has disconnected",
        f"{who} is plugged into port 5 at high speed",
        f"{who} is unplugged from port 5: the server ends",
    ]


def test_what_a_device_tells_is_in_list_status_and_events(
    serve: Serve, run: Run, ask: Ask, control: Path, tmp_path: Path
) -> None:
    serve("--control-path", control, "--device", f"virtual:serial?name=tty&link={tmp_path / 'tty'}")
    note = f"the other end is {tmp_path / 'tty'}"
    for command in ("list", "status"):
        assert note in ask(command)["attachments"][0]["note"]
        text = run(command, "--control-path", control).stdout
        assert (note in text, " NOTE" in text) == (True, True)
    watch = [*COMMAND, "watch", "--control-path", str(control)]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert note in process.stdout.readline()
        process.kill()


def test_a_name_that_is_no_text_can_be_pasted(serve: Serve, run: Run, ask: Ask, control: Path, image: Path) -> None:
    odd = image.with_name(os.fsdecode(b"\xff\xc3\xa4.img"))
    image.rename(odd)
    serve("--control-path", control, "--device", f"virtual:flash?image={odd}")
    shown = f"virtual:flash?image={image.parent}/%FF\u00e4.img"
    assert shown in run("list", "--control-path", control).stdout
    [attachment] = ask("list")["attachments"]
    assert (attachment["spec"], ask("detach", shown)["attachment"]["state"]) == (shown, "held")
    assert ask("attach", f"virtual:flash?image={odd}")["attachment"]["state"] == "plugged"


def test_a_life_with_commands(serve: Serve, run: Run, ask: Ask, control: Path) -> None:
    server = serve(
        "--control-path", control, "--device", "virtual:keyboard?name=keys", "--device", "virtual:tablet?mode=manual"
    )
    assert [each["state"] for each in ask("list")["attachments"]] == ["plugged", "held"]
    attached = ask("attach", "virtual:loopback?speed=high")["attachment"]
    assert (attached["state"], attached["port"], attached["product"]) == ("plugged", 2, "usbvfiod Gadget Zero")
    assert ask("move", "3", "7")["attachment"]["port"] == 7
    told = run("detach", "keys", "--control-path", control).stdout
    assert told == "keys: detached; `usbvfiod attach keys` plugs it in again\n"
    held = ask("list")["attachments"][0]
    assert (held["state"], held["reason"]) == ("held", "it was detached")
    why = run("why", "keys", "--control-path", control).stdout
    assert "server         yes     attachment 1 is held: it was detached\n" in why
    assert "what would help (server):\nusbvfiod attach keys\n" in why
    why = run("why", "virtual:flash?image=nowhere", "--control-path", control).stdout
    assert "server         later   it is not attached\n" in why
    assert "what would help" not in why, "to attach it would not"
    table = run("list", "--control-path", control).stdout
    assert [line.split()[:4] for line in table.splitlines()[1:]] == [
        ["1", "keys", "held", "(1)"],
        ["2", "held", "virtual:tablet?mode=manual", "nobody"],
        ["3", "plugged", "7", "0525:a4a0"],
    ]
    assert run("attach", "keys", "--control-path", control).stdout == "keys: usbvfiod Keyboard is plugged into port 1\n"
    told = run("detach", "0525:a4a0", "--control-path", control).stdout
    assert told.endswith(": detached; `usbvfiod attach 'virtual:loopback?speed=high'` plugs it in again\n")
    assert len(ask("list")["attachments"]) == 2
    status = ask("status")
    assert (status["server"]["pid"], status["server"]["serving"], status["client"]) == (server.process.pid, True, None)
    assert run("log-level", "debug", "--control-path", control).returncode == 0
    for arguments, code, message in (
        (("detach", "nothing"), NOT_ATTACHED, "there is no attachment nothing; `usbvfiod list` shows"),
        (("attach", "keys"), 4, "it is already plugged in"),
        (("attach", "virtual:floppy"), 2, "floppy"),
        (("attach", "virtuel:flash"), 2, "did you mean 'virtual'?"),
        (("attach", "nobody"), 2, "there is no attachment nobody, and device 'nobody' names no backend"),
        (("move", "keys", "9"), 2, "use 1 to 8"),
        (("reload",), 2, "without a configuration file"),
    ):
        assert ask(*arguments)[0] == code
        assert message in ask(*arguments)[1]
    assert server.terminate() == 0
    assert not control.exists()
    result = run("list", "--control-path", control)
    assert result.returncode == UNREACHABLE
    assert "no server answers" in result.stderr


def test_commands_find_the_servers_of_a_user(run: Run, control: Path, serve: Serve, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(0o700)
    environment = {**os.environ, "USBVFIOD_CONTROL": str(place)}

    def show(*arguments: str | Path) -> tuple[int, str]:
        result = run("list", *arguments, environment=environment)
        return result.returncode, result.stdout or result.stderr

    code, text = show()
    assert (code, f"no server of this user is found in {place}" in text) == (UNREACHABLE, True)
    web = serve("--device", "virtual:keyboard", environment=environment, socket_path=tmp_path / "web.sock")
    assert stat.S_IMODE((place / "web.sock").stat().st_mode) == 0o600
    assert "virtual:keyboard" in show()[1]
    steered = ("--device", "virtual:mouse", "--control-path", control)
    db = serve(*steered, environment=environment, socket_path=tmp_path / "db.sock")
    assert show() == (2, "usbvfiod: error: 2 servers run, choose one with --vm NAME: db, web\n")
    assert "virtual:mouse" in show("--vm", "db")[1]
    assert "virtual:mouse" in show("--control-path", control)[1]
    assert "virtual:keyboard" in show("--vm", "web")[1]
    assert show("--vm", "no-such-vm") == (
        UNREACHABLE,
        "usbvfiod: error: no server 'no-such-vm' runs; there are: db, web\n",
    )
    assert show("--vm", "../x")[0] == 2
    (tmp_path / "other").mkdir()
    again = serve("--device", "virtual:tablet", environment=environment, socket_path=tmp_path / "other" / "web.sock")
    assert "virtual:tablet" in show("--vm", f"web-{again.process.pid}")[1], "the name is taken"
    for server in (web, again):
        server.process.kill()
        server.process.wait()
    assert "virtual:mouse" in show()[1], "who was killed does not count"
    assert db.terminate() == 0
    assert show()[0] == UNREACHABLE
    quiet = serve("--no-control", environment=environment, socket_path=tmp_path / "quiet.sock")
    assert show()[0] == UNREACHABLE
    assert quiet.terminate() == 0
    place.chmod(0o777)
    public = serve("--device", "virtual:mouse", environment=environment, socket_path=tmp_path / "public.sock")
    assert "somebody else may write there" in public.log
    assert (list(place.glob("public*")), public.errors, public.terminate()) == ([], [], 0)
    environment["USBVFIOD_CONTROL"] = str(control)
    assert "no server answers" in show()[1]
    serve("--control-path", control)
    assert show() == (0, "no attachments\n")


AS_NOBODY = """
import os, sys, pathlib
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.cli.unreached import ServerUnreachable
os.setuid(65534)
try:
    ControlConnection(pathlib.Path(sys.argv[1]))
except ServerUnreachable as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_somebody_else_is_told_who_may(serve: Serve) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        control = directory / "control.sock"
        serve("--control-path", control, "--device", "virtual:mouse")

        def error() -> str:
            return subprocess.check_output([sys.executable, "-c", AS_NOBODY, str(control)], text=True)

        assert "only root, and the user who runs the server, root, may use it" in error()
        control.chmod(0o666)
        assert "only root may control this server, and you are user nobody" in error()


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH\n", b'{"control": 99}\n', b"[1]\n"])
def test_somebody_else_at_the_socket(run: Run, control: Path, says: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
        listener.listen()
        command = subprocess.Popen(
            [*COMMAND, "list", "--control-path", str(control), "--timeout", "30" if says else "0.5"],
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = listener.accept()
        with connection:
            connection.sendall(says)
            _, errors = command.communicate(timeout=scaled(60))
    assert command.returncode == (UNREACHABLE if says else TIMEOUT)
    assert errors.startswith("usbvfiod: error: ")
    assert errors.count("\n") == 1


def test_watch(serve: Serve, control: Path, ask: Ask) -> None:
    server = serve("--control-path", control, "--device", "virtual:keyboard?name=keys")
    command = [*COMMAND, "watch", "--control-path", str(control)]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        assert first["attachment"]["state"] == "plugged"
        ask("detach", "keys")
        states = [json.loads(watch.stdout.readline())["attachment"]["state"] for _ in range(2)]
        assert states == ["leaving", "held"]
        watch.send_signal(signal.SIGINT)
        assert watch.wait(PATIENCE) == 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().partition(" ")[2] == " keys held (it was detached)\n"
        assert server.terminate() == 0
        assert watch.wait(PATIENCE) == 0


# -- the configuration file ------------------------------------------------------------------------------------------


@pytest.fixture
def configured(tmp_path: Path, control: Path) -> Iterator[tuple[Path, ServerProcess]]:
    """A server with a configuration file."""
    file = tmp_path / "usbvfiod.toml"
    write(file, control, ("virtual:keyboard", "keys", 1), ("virtual:loopback", "loop", 9))
    with ServerProcess(tmp_path, ["--config", file]) as server:
        server.wait_ready()
        yield file, server


def write(file: Path, control: Path, *devices: tuple[str, str, int], more: str = "") -> None:
    """A file with these devices: specification, name, port."""
    tables = [f'[[device]]\nspec = "{spec}"\nname = "{name}"\nport = {port}\n' for spec, name, port in devices]
    file.write_text(f'[server]\ncontrol-path = "{control}"\n{more}\n' + "\n".join(tables))


def attachments(ask: Ask) -> dict[str, tuple[int, int, int]]:
    """Number, port and how often it was plugged in, by name."""
    return {each["name"]: (each["number"], each["port"], each["plugs"]) for each in ask("list")["attachments"]}


def test_reload_does_only_what_has_changed(configured: tuple[Path, ServerProcess], ask: Ask, control: Path) -> None:
    file, server = configured
    assert attachments(ask) == {"keys": (1, 1, 1), "loop": (2, 9, 1)}
    answer = ask("reload")
    assert [answer[key] for key in ("added", "removed", "ignored", "errors")] == [[], [], [], []]
    ask("attach", "virtual:loopback?name=mine&speed=high")
    loop = ("virtual:loopback", "loop", 10)  # moved to another port
    write(file, control, ("virtual:keyboard", "keys", 1), loop, ("virtual:keyboard", "more", 4), more="spin = 0")
    answer = ask("reload")
    assert answer["added"] == ["virtual:loopback", "virtual:keyboard"]
    assert (answer["removed"], answer["ignored"]) == (["virtual:loopback"], ["server.spin"])
    assert attachments(ask) == {"keys": (1, 1, 1), "mine": (3, 2, 1), "loop": (4, 10, 1), "more": (5, 4, 1)}
    write(file, control, ("virtual:keyboard", "keys", 1))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: "the configuration was read again: 0 devices added, 2 removed" in server.log)
    assert attachments(ask) == {"keys": (1, 1, 1), "mine": (3, 2, 1)}


def test_a_file_that_is_wrong_changes_nothing(configured: tuple[Path, ServerProcess], ask: Ask, control: Path) -> None:
    file, server = configured
    for text, message in (
        ("[server", "is not valid TOML"),
        ('[[device]]\nspec = "virtuel:x"\n', "there is no backend"),
    ):
        file.write_text(text)
        code, error = ask("reload")
        assert code == 2
        assert f"{file}:" in error
        assert message in error
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: "the configuration was not changed" in server.log)
    assert attachments(ask) == {"keys": (1, 1, 1), "loop": (2, 9, 1)}
    write(file, control, ("virtual:flash?image=/missing", "disk", 11), ("virtual:keyboard", "keys", 1))
    answer = ask("reload")
    assert "/missing does not exist" in answer["errors"][0]
    assert list(attachments(ask)) == ["keys"]


def test_sighup_without_a_file_is_survived(serve: Serve) -> None:
    server = serve("--device", "virtual:keyboard")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: "without a configuration file" in server.log)
    assert server.terminate() == 0


# -- the service manager ---------------------------------------------------------------------------------------------

ACTIVATE = """
import os, sys
fds = [int(number) for number in sys.argv[1].split(",")]
for index, fd in enumerate(fds):
    os.dup2(fd, 3 + index)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.executable, [sys.executable, "-m", "usbvfiod_core", *sys.argv[3:]])
"""


@pytest.mark.parametrize("named", [False, True])
def test_sockets_of_the_service_manager(tmp_path: Path, ask: Ask, control: Path, named: bool) -> None:
    """`named`: the command line says where they are, as that of the unit does, which works without them, too."""
    path = tmp_path / "usb.sock"
    with socket.socket(socket.AF_UNIX) as usb, socket.socket(socket.AF_UNIX) as steering:
        for sock, place in ((usb, path), (steering, control)):
            sock.bind(str(place))
            sock.listen()
        fds = sorted((usb.fileno() + 20, steering.fileno() + 20))
        os.dup2(usb.fileno(), fds[0])
        os.dup2(steering.fileno(), fds[1])
        command = (sys.executable, "-c", ACTIVATE, f"{fds[0]},{fds[1]}", "usb:control")
        (tmp_path / "vm.toml").write_text('[[device]]\nspec = "virtual:keyboard"\n')
        arguments: list[str | Path] = ["--config", tmp_path / "vm.toml"]
        if named:
            arguments += ["--socket-path", path, "--control-path", control]
        with ServerProcess(tmp_path, arguments, pass_fds=fds, command=command, socket_path=path) as server:
            server.wait_for(lambda: "serving on fd 3" in server.log)
            assert [each["state"] for each in ask("list")["attachments"]] == ["plugged"]
            assert ask("reload")["ignored"] == []
            assert server.terminate() == 0
        for fd in fds:
            os.close(fd)
    assert path.exists()  # it is the service manager's


def test_the_watchdog_is_fed(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
        with ServerProcess(tmp_path, ["--device", "virtual:keyboard"], environment=environment) as server:
            messages = [manager.recv(100) for _ in range(6)]
            assert messages.count(b"READY=1") == 1
            assert messages.count(b"WATCHDOG=1") == 5
            assert server.terminate() == 0


def test_clients_of_the_rust_program_have_a_socket_of_their_own(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "hotplug.sock"
    server = serve("--hotplug-socket-path", path, "--device", "virtual:keyboard", "--no-color")
    assert path.stat().st_mode & 0o777 == 0o600
    for command, answer in ((b"\2\0\0", b"\1\0"), (b"\1\1\4", b"\5"), (b"\7\0\0", b"\6")):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.send(command)
            assert client.recv(100) == answer
            assert client.recv(100) == b""
    assert server.terminate() == 0
    assert not path.exists()


def test_a_hotplug_socket_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    arguments = ("--socket-path", tmp_path / "usb.sock", "--hotplug-socket-path")
    result = run(*arguments, tmp_path / "missing" / "hotplug.sock")
    assert (result.returncode, "hotplug: socket path" in result.stderr) == (3, True)
    result = run(*arguments, tmp_path / "hotplug.sock", "--hotplug-fd", "5")
    assert (result.returncode, "cannot be used together" in result.stderr) == (2, True)
