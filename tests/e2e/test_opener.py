"""The opener: real processes of several users, who get what they are to get and nothing else."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.process import ServerProcess
from tests.e2e.somebody import ALICE, BECOME, BOB, OPERATORS, SERVER, only_root, public_directory, run_as, somebody
from usbvfiod_core.opener import ALL_LINES, LINE_PACE, LINES, PER_USER, Journal, Opener
from usbvfiod_core.sandbox import landlock, seccomp
from usbvfiod_core.testing.limits import PATIENCE, eventually, wait_until

pytestmark = only_root

USED = """
from pathlib import Path
from usbvfiod_core import Backend, DeviceInfo, DeviceWithheld, hookimpl
from usbvfiod_core.host.programs import open_nodes

class Used(Backend):
    name = "used"
    of_host = True

    def list_devices(self):
        programs = open_nodes(Path("/proc")).get("/dev/full", [])
        return [DeviceInfo("used", "1-1", 0x1234, 0x5678, "A drive", port_path="1-1", in_use=", ".join(programs))]

    def open(self, address, options, loop):
        raise DeviceWithheld(f"it is open in {self.list_devices()[0].in_use or 'nothing'}")

@hookimpl
def usbvfiod_register_backends(register):
    register(Used())
"""
"""A backend whose only device is in use while /dev/full is open somewhere."""

ASK = f"""
import os, socket, sys
path, user, groups, *requests = sys.argv[1:]
{BECOME}
for request in requests:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        sock.send(bytes.fromhex(request))
        answer, fds, _, _ = socket.recv_fds(sock, 4096, 1)
        print(int.from_bytes(answer[:4], "little"), answer[4:].decode(), *(os.pread(fd, 9, 0).decode() for fd in fds))
"""


def ask(path: Path, user: int, *requests: bytes, groups: tuple[int, ...] = ()) -> list[str]:
    """The answers, each as errno, reason, and what is in the file."""
    words = [sys.executable, "-S", "-c", ASK, str(path), str(user), ",".join(map(str, groups))]
    words += [each.hex() for each in requests]
    return subprocess.check_output(words, text=True, timeout=PATIENCE).splitlines()


@contextmanager
def opener(place: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running opener at `place`/opener, of root."""
    words = [sys.executable, "-m", "usbvfiod_core.opener", "--socket", str(place / "opener"), *options]
    with (place / "opener.log").open("w") as log, subprocess.Popen(words, stderr=log, text=True) as process:
        try:
            said = (place / "opener.log").read_text
            wait_until(lambda: "serving on" in said(), said)
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.fixture
def place() -> Iterator[Path]:
    with public_directory() as directory:
        files = directory / "files"
        files.mkdir(mode=0o700)
        (files / "secret").write_text("secret")
        (directory / "other").write_text("other")
        (directory / "other").chmod(0o600)
        (files / "link").symlink_to(directory / "other")
        os.mkfifo(files / "fifo")
        yield directory


def test_who_gets_what(place: Path) -> None:
    path, files = place / "opener", place / "files"
    options = (
        "--socket-group",
        str(OPERATORS),
        "--allow",
        str(ALICE),
        "--below",
        str(files),
        "--node",
        "/dev/bus/usb/001/*",
    )
    with opener(place, *options) as process:
        assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o660, OPERATORS)
        requests = {
            f"w{files}/secret": "0  secret",
            f"r{files}/secret": "0  secret",
            f"w{files}/missing": "2 No such file or directory",
            f"w{place}/other": f"13 the opener does not open it: {place}/other is not below a directory of --below",
            f"w{files}/../other": "is not below a directory",
            f"w{files}/link": "is not below a directory",
            f"w{files}/fifo": "is neither a file nor a block device",
            f"w{files}": "is neither a file nor a block device",
            "w/dev/bus/usb/002/001": "/dev/bus/usb/002/001 matches no --node",
            "w/dev/bus/usb/001/../../../null": "is not below a directory",
            "w/dev/null": "is not below a directory",
            f"x{files}/secret": "this is not a request",
            "w": "this is not a request",
            "w" + "/x" * 3000: "this is not a request",
            f"w{files}/sec\0ret": "this is not a request",
        }
        answers = ask(path, ALICE, *map(str.encode, requests), groups=(OPERATORS,))
        for answer, (request, wanted) in zip(answers, requests.items(), strict=True):
            assert wanted in answer, request
        [refused] = ask(path, BOB, f"r{files}/secret".encode(), groups=(OPERATORS,))
        assert refused == "13 the opener does not open it: --allow does not name this user, nor a group of it"
        with pytest.raises(subprocess.CalledProcessError):
            ask(path, BOB, b"r/")  # the socket is not open to him
        assert f"user {BOB}: --allow does not name this user" in (place / "opener.log").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert not path.exists()


def test_those_who_say_nothing_hold_up_nobody_else(place: Path) -> None:
    path = place / "opener"
    with opener(place, "--allow", "*", "--socket-group", str(OPERATORS), "--below", str(place / "files")):
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2 * PER_USER)]
        for each in silent:
            each.connect(str(path))
        request = f"r{place}/files/secret".encode()
        assert ask(path, ALICE, request, groups=(OPERATORS,)) == ["0  secret"]
        assert eventually(lambda: sum(_is_closed(each) for each in silent) == PER_USER)
        for each in silent:
            each.close()
        assert eventually(lambda: _answers(path, request))


def test_the_log_is_neither_forged_nor_flooded(place: Path) -> None:
    """Names are made visible, also those that are no UTF-8; a user has LINES lines, and the rest is counted."""
    with opener(place, "--allow", "*", "--below", str(place / "files")):
        forged = b"r/x\nusbvfiod-opener: user 0: all is well\x1b[2J"
        answers = ask(place / "opener", 0, forged, b"r/x\xff", *[b"r/y"] * (2 * LINES))
    assert len(answers) == 3 + 2 * LINES, "one of the names has a line break"
    said = (place / "opener.log").read_text()
    assert "user 0: /x\\nusbvfiod-opener: user 0: all is well\\x1b[2J is not below" in said
    assert "user 0: /x\\udcff is not below" in said
    lines = [line for line in said.splitlines() if "user 0: /" in line]
    # Processes that were begun before another's refusal was counted may each have one more.
    assert LINES <= len(lines) < LINES + PER_USER


def test_what_was_left_out_of_the_log_is_counted() -> None:
    now = 0.0
    journal = Journal(lambda: now)
    for _ in range(LINES):
        assert journal.may_say(1)
        assert journal.refused(1, said=True) == 0
    assert not journal.may_say(1)
    assert journal.may_say(2), "another user has lines of his own"
    for _ in range(7):
        journal.refused(1, said=False)
    now += LINE_PACE
    assert journal.may_say(1)
    assert journal.refused(1, said=True) == 7
    users = range(3, 3 + 2 * ALL_LINES)
    assert sum(journal.may_say(user) and journal.refused(user, said=True) == 0 for user in users) < ALL_LINES


def test_want_of_descriptors_does_not_end_it(place: Path) -> None:
    with opener(place, "--allow", "0", "--below", str(place / "files")) as process:
        had = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (0, had[1]))
        assert ask(place / "opener", 0, b"r/") == [
            "13 the opener does not open it: / is not below a directory of --below"
        ]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(place / "opener"))
            sock.send(f"r{place}/files/secret".encode())
            said = (place / "opener.log").read_text
            wait_until(lambda: "cannot be answered: Too many open files" in said(), said)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, had)
            answer, fds, _, _ = socket.recv_fds(sock, 4096, 1)
        assert answer == bytes(4)
        assert os.pread(fds[0], 9, 0) == b"secret"
        os.close(fds[0])


def test_want_of_processes_does_not_end_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    coming = iter([theirs])

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, str]:
            try:
                return next(coming), ""
            except StopIteration:
                raise KeyboardInterrupt from None

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr("usbvfiod_core.opener.PAUSE", 0)
    with ours, Listener() as listener, pytest.raises(KeyboardInterrupt):
        Opener([], [], []).serve(listener)
    assert theirs.fileno() < 0, "whoever asked is hung up on, and asks again"
    assert "cannot be answered: Resource temporarily unavailable" in capsys.readouterr().err


def _answers(path: Path, request: bytes) -> bool:
    try:
        return ask(path, 0, request) == ["0  secret"]
    except subprocess.CalledProcessError:
        return False


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--allow", "no-such-user"], 2, "there is no user 'no-such-user' on this host"),
        (["--allow", "@no-such"], 2, "there is no group 'no-such' on this host"),
        (["--allow", "*", "--node", "/dev/*"], 2, "--node /dev/*: the nodes of USB devices are /dev/bus/usb/BBB/DDD"),
        (["--allow", "*", "--below", "here"], 2, "--below here is not an absolute path"),
        (["--allow", "*"], 3, "give --socket PATH"),
        (["--allow", "*", "--socket", "/missing/x"], 3, "cannot listen at /missing/x: No such file or directory"),
        ([], 2, "--allow"),
    ],
)
def test_what_is_wrong_is_said(capfd: pytest.CaptureFixture[str], options: list[str], code: int, message: str) -> None:
    from usbvfiod_core.opener import main

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main(options))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == code
    assert message in capfd.readouterr().err


def test_a_server_asks_for_what_it_may_not_open(place: Path) -> None:
    """A file of a configured device, now, and after the opener has been started anew."""
    image = place / "files/drive.img"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o600)
    home = place / "home"
    home.mkdir()
    os.chown(home, SERVER, SERVER)
    device = f"virtual:flash?image={image}&serial=1&name=drive"
    control = home / "control.sock"
    words = ("--opener", place / "opener", "--control-path", control, "--device", device)
    options = ("--socket-group", str(SERVER), "--allow", str(SERVER), "--below", str(place / "files"))
    with opener(place, *options), ServerProcess(home, words, command=somebody(SERVER)) as server:
        server.wait_ready()
        assert "is plugged into port" in server.log
        assert run_as(SERVER, "detach", "drive", "--control-path", control).returncode == 0
        other = f"virtual:flash?image={place}/other"
        assert "Permission denied" in run_as(SERVER, "attach", other, "--control-path", control).stderr
    missing = run_as(SERVER, "--socket-path", home / "usb.sock", "--no-control", *words[:2], "--device", device)
    assert missing.returncode == 4
    assert f"no opener answers at {place}/opener: No such file or directory" in missing.stderr


@pytest.mark.skipif(not landlock.abi() or bool(seccomp.missing()), reason="the kernel cannot confine here")
def test_a_server_in_its_sandbox_asks_and_sees_who_has_a_drive_open(place: Path) -> None:
    """What it may not open it has from the opener, and whom it cannot see its witness tells."""
    image = place / "files/drive.img"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o600)
    plugin = place / "used.py"
    plugin.write_text(USED)
    home = place / "home"
    home.mkdir()
    os.chown(home, SERVER, SERVER)
    control = home / "control.sock"
    words = ("--sandbox=on", "--plugin-files", "--plugin", plugin, "--opener", place / "opener")
    devices = ("--device", f"virtual:flash?image={image}&serial=1&name=drive", "--device", "used:1-1?name=used")
    options = ("--socket-group", str(SERVER), "--allow", str(SERVER), "--below", str(place / "files"))
    # By another program of the server's user: other users' are only for root.
    with open("/dev/full", "wb", buffering=0) as full:
        sleeper = subprocess.Popen(["sleep", "600"], stdout=full, user=SERVER, group=SERVER, extra_groups=[])
    try:
        with (
            opener(place, *options),
            ServerProcess(home, (*words, "--control-path", control, *devices), command=somebody(SERVER)) as server,
        ):
            server.wait_ready()
            assert "landlock" in server.log
            assert "is plugged into port" in server.log
            listed = run_as(SERVER, "list", "--json", "--control-path", control).stdout
            assert f"it is open in sleep ({sleeper.pid})" in listed
    finally:
        sleeper.kill()
        sleeper.wait()
