"""The shell that looks into memory maps, asked about this process."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbvfiod_core.daemon.witness import Witness
from usbvfiod_core.host import programs
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.vfio_user.peer import is_private


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    yield witness
    witness.close()
    os.waitpid(witness.pid, 0)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((mmap.MAP_PRIVATE,), True),
        ((mmap.MAP_SHARED,), False),
        ((mmap.MAP_PRIVATE, mmap.MAP_SHARED), False),
        ((), False),
    ],
)
def test_it_sees_what_the_process_itself_would_see(witness: Witness, flags: tuple[int, ...], wanted: bool) -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 16)
    status = os.fstat(fd)
    maps = [mmap.mmap(fd, 1 << 16, flags=each) for each in flags]
    for look in (witness, is_private):
        assert look(os.getpid(), status.st_dev, status.st_ino) is wanted
    for each in maps:
        each.close()
    os.close(fd)


def test_of_a_process_that_is_not_there_it_tells_nothing(witness: Witness) -> None:
    assert witness(2**22 + 1, 1, 1) is False
    assert witness(0, 1, 1) is False


def test_it_sees_what_others_have_open(witness: Witness, tmp_path: Path) -> None:
    """By its name and number, and no file that only looks like a node."""
    (tmp_path / "x -> ").mkdir()
    odd = tmp_path / "x -> " / "dev"
    odd.mkdir()
    files = [(odd / name).open("w") for name in ("full", "3\nl 1 r r 6 N 1 1 4 -> " + "full")]
    with open("/dev/full", "wb", buffering=0) as full:
        sleeper = subprocess.Popen(["sleep", "600"], stdout=full)
    nodes = [each for each in witness.open_nodes() if each[0] in (str(sleeper.pid), str(os.getpid()))]
    assert (str(sleeper.pid), "sleep", "/dev/full") in nodes
    assert {node for process, _, node in nodes if process == str(os.getpid())} <= {"/dev/zero", "/dev/tty"}
    sleeper.kill()
    sleeper.wait()
    assert (str(sleeper.pid), "sleep", "/dev/full") not in witness.open_nodes()
    for file in files:
        file.close()


def test_it_looks_into_maps_while_it_lists_what_is_open(witness: Witness) -> None:
    """The loop asks for maps, and is not to wait for all descriptors of the host."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    status, private = os.fstat(fd), mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE)
    witness._socket.sendall(b"nodes\n" * 20)
    assert witness(os.getpid(), status.st_dev, status.st_ino)
    private.close()
    os.close(fd)


def test_the_programs_of_a_server_in_its_sandbox_are_those_that_it_sees() -> None:
    own = str(os.getpid())
    seen = [("7", "dd", "/dev/sda"), ("8", "(udev-worker)", "/dev/sda"), (own, "usbvfiod", "/dev/sda")]
    programs.look_by(lambda: [*seen, ("9", "(udev-worker)", "/dev/sdb")])
    assert programs.open_nodes(Path("/proc")) == {"/dev/sda": ["dd (7)"]}
    programs.look_by(None)
    assert "/dev/sda" not in programs.open_nodes(Path("/nowhere"))


@pytest.mark.parametrize("path", ["..{directory}", "self/root{directory}", "*", "$(id)", "-e"])
def test_no_other_file_can_be_read_through_it(witness: Witness, tmp_path: Path, path: str) -> None:
    """Also by somebody who has taken over the server, and with it the socket."""
    (tmp_path / "maps").write_text("secret place\n")
    witness._socket.sendall(f"{path.format(directory=tmp_path)} secret\n".encode())
    assert witness._socket.recv(100) == b".\n"


def test_it_has_nothing_of_the_server_but_its_socket() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    witness = Witness()
    os.close(write)
    assert os.read(read, 1) == b""  # no copy of it is open
    os.close(read)
    environment = Path(f"/proc/{witness.pid}/environ").read_bytes().split(b"\0")
    assert {each.split(b"=")[0] for each in environment if each} <= {b"PATH", b"LC_ALL", b"PWD"}
    witness.close()
    os.waitpid(witness.pid, 0)


def test_one_that_is_gone_answers_no_more(witness: Witness) -> None:
    os.kill(witness.pid, 9)
    wait_until(lambda: os.waitid(os.P_PID, witness.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG), "it lives")
    assert witness(os.getpid(), 1, 1) is False
    assert witness(os.getpid(), 1, 1) is False
