"""What servers and commands of tests in the lab are copies of (tests/vm/inside/prepared.py): it has imported nothing
that a new process would not, and a copy is as a new process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_imports import COMMAND, imported, run
from tests.e2e.upgrade_rig import end, serving
from tests.lab.prepared import FIFOS, PROGRAM, REPLACING, Prepared
from tests.vm.inside import prepared
from usbvfiod_core.testing.limits import PATIENCE, wait_until

PREPARING = """
import runpy, sys, types
names = runpy.run_path(sys.argv[1])
for step in sys.argv[2:]:
    names[step]()
for name, module in sorted(sys.modules.items()):
    if type(module) is types.ModuleType or not isinstance(module, types.ModuleType):  # or it waits to be used
        print("imported", name)
"""
WHOSE = ("Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Seccomp", "CapEff", "Umask")
"""Lines of /proc/PID/status. How many threads there are is a matter of chance: of how many were busy at once."""


def prepares(*steps: str) -> set[str]:
    command = [sys.executable, "-P", "-c", PREPARING, str(prepared.__file__), *steps]
    text = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    return imported(text) - {"runpy", "pkgutil"}  # which `python -m` imports


def test_what_it_imports_all_would(serve: Serve) -> None:
    server = serve(command=COMMAND)
    assert server.terminate() == 0
    every = imported(server.log)
    assert sorted(prepares("prepare_server") ^ every) == [
        "usbvfiod_core.__main__",
        "usbvfiod_core.search_path",
    ]
    commands = prepares("prepare_command")
    assert {"click", "usbvfiod_usbfs"} <= commands
    assert sorted(commands - run("plugins")) == []


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where one that is prepared takes requests for servers."""
    directory = tmp_path_factory.mktemp("prepared")
    fifos = [directory / Path(fifo).name for fifo in FIFOS]
    for fifo in fifos:
        os.mkfifo(fifo)
    command = [sys.executable, "-P", str(prepared.__file__), *map(str, fifos)]
    with subprocess.Popen(command, process_group=0) as process:
        yield fifos[1]
        os.killpg(process.pid, signal.SIGKILL)


def said(log: Path, words: str) -> bool:
    return words in log.read_text()


def about(process: int) -> dict[str, object]:
    """What a process has of whoever has started it, and what it has open."""
    where = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (where / "status").read_text().splitlines())
    found: dict[str, object] = {name: status[name].split() for name in WHOSE}
    found["limits"] = (where / "limits").read_text()
    found["directory"] = os.readlink(where / "cwd")
    found["program"] = os.readlink(where / "exe")
    found["session"] = os.getsid(process)
    return found | {"open": sorted(os.readlink(each).split("[")[0] for each in (where / "fd").iterdir())}


def test_a_copy_is_as_a_new_process(requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "control").mkdir()
    monkeypatch.setenv("USBVFIOD_CONTROL", str(tmp_path / "control"))
    monkeypatch.chdir(tmp_path)
    found = []
    for start in (subprocess.Popen, partial(Prepared, requests=requests)):
        log = tmp_path / "log"
        with log.open("wb") as output:
            command = [*PROGRAM, "--socket-path", "usb.sock", "--device", "virtual:keyboard"]
            process = start(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output.fileno())
        wait_until(partial(said, log, "serving on"), log.read_text)
        assert len(list((tmp_path / "control").iterdir())) == 1
        found.append(about(process.pid))
        assert process.poll() is None
        process.terminate()
        assert process.wait(PATIENCE) == process.poll() == 0
    assert found[0] == found[1]


def test_how_a_copy_ends_is_told(requests: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        refused = Prepared([*PROGRAM, "--nonsense"], stderr=output.fileno(), requests=requests)
        killed = Prepared([*PROGRAM, "--socket-path", str(tmp_path / "s")], requests=requests, stderr=output.fileno())
    assert refused.wait(PATIENCE) == 2
    assert "No such option '--nonsense'" in log.read_text()
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0)
    killed.kill()
    assert killed.wait(PATIENCE) == -signal.SIGKILL


def test_a_copy_takes_the_place_of_a_copy(requests: Path, tmp_path: Path) -> None:
    log, control = tmp_path / "log", tmp_path / "control.sock"
    where = ["--control-path", str(control)]
    with log.open("wb") as output:
        words = ["--socket-path", str(tmp_path / "usb.sock"), *where, "--device", "virtual:keyboard"]
        server = Prepared([*PROGRAM, *words], stderr=output.fileno(), requests=requests)
        wait_until(partial(said, log, "serving on"), log.read_text)
        refused = Prepared([*REPLACING, *where, "--", "--nonsense"], stderr=output.fileno(), requests=requests)
        assert refused.wait(3 * PATIENCE) == 2
        assert serving(control) == server.pid
        command = [*REPLACING, *where]
        replacing = Prepared(command, stdout=output.fileno(), stderr=output.fileno(), requests=requests)
        assert replacing.wait(3 * PATIENCE) == 0, log.read_text()
    assert server.wait(PATIENCE) == 0
    other = serving(control)
    end(other)
    assert f"process {other} has taken the place of the server" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_it_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="is not"):
        Prepared([sys.executable, "-m", "usbvfiod_core"])
