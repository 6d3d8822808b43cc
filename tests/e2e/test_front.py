"""`usbvfiod front`: it starts a server again after a crash, and hands it what it holds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.conftest import Run
from tests.e2e.process import ServerProcess
from tests.e2e.upgrade_rig import runs
from usbvfiod_core.cli.command import application
from usbvfiod_core.front import ROOM, plain
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.testing.limits import PATIENCE, wait_until

COMMAND = (sys.executable, "-P", "-m", "usbvfiod_core", "front")


def stand_in(tmp_path: Path, words: Sequence[str], crashes: int = 0) -> subprocess.CompletedProcess[str]:
    """A front whose server does these things; see `stored`."""
    return subprocess.run(
        [sys.executable, "-c", program(tmp_path, words, crashes)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )


def program(tmp_path: Path, words: Sequence[str], crashes: int = 0) -> str:
    """That of `stand_in`."""
    return (
        "import sys\n"
        "from usbvfiod_core import front\n"
        "front.COMMAND = (sys.executable, '-m', 'tests.e2e.stored')\n"
        f"sys.exit(front.front({[str(tmp_path / 'progress'), *words]!r}, {crashes}))\n"
    )


def handed(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    """What each start was handed."""
    import ast

    lines = [line for line in done.stdout.splitlines() if line.startswith("handed ")]
    return [ast.literal_eval(line.partition(" ")[2]) for line in lines]


def test_the_next_start_gets_what_was_stored(tmp_path: Path) -> None:
    done = stand_in(
        tmp_path,
        [
            "store client c",
            "store state s",
            "tell READY=1",
            "crash",
            "remove client",
            "store irq-2-0 i",
            "crash",
            "exit 0",
        ],
    )
    assert handed(done) == [{}, {"client": "c", "state": "s"}, {"state": "s", "irq-2-0": "i"}]
    assert done.returncode == 0
    assert done.stderr.count("was killed by signal 9, and is started again") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["progress"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["exit 2"], 2, ""),
        (["crash"], 137, ""),
        (["tell READY=1", "exit 0"], 0, ""),
        (["tell READY=1", "crash", "exit 3"], 3, "for the 2th time within 60 s; it is not started again"),
    ],
)
def test_when_it_is_not_started_again(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    done = stand_in(tmp_path, words, crashes=1)
    assert done.returncode == code
    assert message in done.stderr


def test_what_the_front_tells_its_own_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "manager"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "manager"))
        stand_in(tmp_path, ["store client c", "tell READY=1", "tell MAINPID=1", "tell STATUS=well", "crash", "exit 0"])
        told = []
        while True:
            try:
                told.append(manager.recv(4096).decode())
            except BlockingIOError:
                break
    assert told == ["READY=1", "STATUS=well", "STATUS=the server was killed by signal 9, and is started again"]


def test_where_paths_are_too_long_for_a_socket_it_takes_another_place(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    done = stand_in(deep, ["store client c", "tell READY=1", "crash", "exit 0"])
    assert handed(done) == [{}, {"client": "c"}]


def test_a_server_that_cannot_name_another_process(tmp_path: Path) -> None:
    """Process 1 says nothing here, so it is not what the front ends, or waits for."""
    done = stand_in(tmp_path, ["tell READY=1", "tell MAINPID=1", "crash", "exit 0"])
    assert done.returncode == 0
    assert len(handed(done)) == 2


def test_a_server_that_says_what_makes_no_sense(tmp_path: Path) -> None:
    """A number that is none, and names that would be two in the list, or none."""
    names = ("a:b", "a\tb", "ä")
    words = ["tell READY=1", f"tell MAINPID={'9' * 5000}", *(f"store {each} x" for each in names)]
    words += ["store c z", "crash", "exit 0"]
    done = stand_in(tmp_path, words)
    assert handed(done) == [{}, {"c": "z"}], done.stderr
    assert done.returncode == 0


def test_a_server_that_stores_without_end_leaves_the_front_what_it_needs(tmp_path: Path) -> None:
    done = stand_in(tmp_path, ["tell READY=1", f"flood {ROOM + 500}", "crash", "exit 0"])
    assert done.returncode == 0, done.stderr
    first, second = handed(done)
    assert first == {}
    assert set(second) == set(map(str, range(ROOM)))


ANSWERED = """
import socket
from usbvfiod_core import front

heard = front.Front._heard


def hears(self, pid, lines, fds):
    heard(self, pid, lines, fds)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"STATUS=and more", self._socket.getsockname())


front.Front._heard = hears
"""
"""There is always one more message, however fast the front reads."""


def test_what_is_said_without_end_keeps_no_signal_from_the_front(tmp_path: Path) -> None:
    front = subprocess.Popen(
        [sys.executable, "-c", ANSWERED + program(tmp_path, ["tell READY=1", "talk"])],
        stdout=subprocess.PIPE,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert front.stdout is not None
    try:
        while front.stdout.readline() != b"talks\n":
            assert front.poll() is None
        front.terminate()
        front.wait(PATIENCE)
    finally:
        front.kill()
        front.wait()
        front.stdout.close()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """As after an upgrade of Python."""
    code = "import sys; from usbvfiod_core import front; front.COMMAND = ('/gone/python',); sys.exit(front.front([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 127
    assert done.stderr == "usbvfiod: error: /gone/python cannot be started: No such file or directory\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--socket-path", "x"], (["--socket-path", "x"], 5)),
        (["--", "-h"], (["-h"], 5)),
        (["--crashes", "3", "--", "-v"], (["-v"], 3)),
        (["--crashes=0", "-v"], (["-v"], 0)),
        (["-v", "--crashes=0"], None),
        (["--crashes", "x"], None),
        (["--crashes"], None),
        (["--help"], None),
        (["list"], None),
        ([], ([], 5)),
    ],
)
def test_its_own_words(words: list[str], found: object) -> None:
    assert plain(words) == found


WORDS = ("--crashes", "--crashes=2", "--crashes=x", "3", "007", "-1", "٣", "--", "-v", "-h", "--fd", "a.sock")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(WORDS), max_size=5))
def test_its_own_words_mean_the_same_to_click(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    by_click: list[object] = []
    monkeypatch.setattr("usbvfiod_core.front.front", lambda options, crashes: by_click.append(([*options], crashes)))
    if (found := plain(words)) is not None:
        application(Registry()).main(["front", *words], standalone_mode=False)
        assert by_click == [found]


def test_mistakes_are_those_of_the_server_or_its_own(run: Run, tmp_path: Path) -> None:
    for arguments, message in (
        (["--nonsense"], "No such option"),
        (["--fd", "5"], "--fd cannot be used with a front"),
        (["--crashes", "-1", "--"], "-1 is not a whole number from 0 up"),
    ):
        done = run("front", *arguments)
        assert done.returncode == 2
        assert message in done.stderr


class Fronted(ServerProcess):
    """A server behind a front, which is `process`."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str | Path] = (),
        *,
        before: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`before` are the front's own options; `command` is one in its place."""
        super().__init__(directory, arguments, command=(*command, *before))

    @property
    def server(self) -> int:
        """The server's process, if the front has started it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.wait()
        super().__exit__(kind, error, trace)

    def kill_server(self) -> None:
        """As the kernel does when there is no memory left."""
        served = self.log.count("serving on")
        os.kill(self.server, signal.SIGKILL)
        self.wait_for(lambda: self.log.count("serving on") > served)


def test_a_server_that_is_killed_comes_back_and_ends_with_its_front(tmp_path: Path) -> None:
    server = Fronted(tmp_path, ["--device", "virtual:keyboard", "--no-control"])
    with server:
        server.wait_ready()
        server.kill_server()
        last = server.server
        assert server.status("VmRSS") < 20_000
        assert server.terminate() == 0
        assert not runs(last)
        assert not server.socket_path.exists()


def test_signals_are_passed_on(tmp_path: Path) -> None:
    config = tmp_path / "web.toml"
    config.write_text("")
    server = Fronted(tmp_path, ["--config", config, "--control-path", tmp_path / "control.sock"])
    with server:
        server.wait_ready()
        config.write_text('[[device]]\nspec = "virtual:keyboard"\n')
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "is plugged into port 1" in server.log)
        first = server.server
        server.process.send_signal(signal.SIGUSR2)
        server.wait_for(lambda: "has taken the place of another one" in server.log)
        wait_until(lambda: not runs(first), "the old server does not end")
        done = subprocess.run(
            [sys.executable, "-m", "usbvfiod_core", "status", "--control-path", tmp_path / "control.sock", "--json"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        import json

        second = json.loads(done.stdout)["server"]["pid"]
        assert second != first
        os.kill(second, signal.SIGKILL)
        server.wait_for(lambda: "the server has ended, and is started again" in server.log)
        server.wait_for(lambda: server.log.count("serving on") == 2)
        assert server.terminate() == 0
