"""The shell that looks into memory maps, asked about this process."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from select import select

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
    own = {node for process, _, node in nodes if process == str(os.getpid())}
    assert own <= {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}, "other tests may have some open"
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
    many = [os.open("/dev/full", os.O_WRONLY) for _ in range(600)]  # more than there is room for, until somebody reads
    witness._socket.sendall(b"nodes\n")
    assert witness(os.getpid(), status.st_dev, status.st_ino)
    assert len([each for each in witness.open_nodes() if each[0] == str(os.getpid())]) >= len(many)
    private.close()
    for each in (fd, *many):
        os.close(each)


def test_whoever_has_taken_the_server_over_floods_the_host_with_no_processes() -> None:
    witness = Witness(("/bin/sleep", "600"))
    many = [os.open("/dev/full", os.O_WRONLY) for _ in range(600)]
    most = 0

    def count(name: str = "") -> int:
        nonlocal most
        most = max(most, len(descendants(witness.pid)))
        return len(named(witness.pid, name))

    witness._socket.sendall(b"nodes\n" * 20 + b"0 \n")  # lists, which nobody reads
    wait_until(lambda: count() > 0, "there is no list")
    witness._list.close()
    witness._socket.setblocking(False)
    wait_until(lambda: count() >= 0 and select([witness._socket], [], [], 0.01)[0], "the lists do not end")
    assert most <= 6
    witness._socket.sendall(b"upgrade\n" * 20)
    for _ in range(2):
        wait_until(lambda: count("sleep") == 2, "no heirs are started")
        heirs = named(witness.pid, "sleep")
        for pid in heirs:
            os.kill(pid, 9)
        wait_until(partial(none_of, witness.pid, heirs), "they do not end")
    assert most <= 6
    wait_until(lambda: count("sleep") == 2, "no heirs are started")
    heirs = named(witness.pid, "sleep")
    os.kill(witness.pid, 9)
    os.waitpid(witness.pid, 0)
    for pid in heirs:
        os.kill(pid, 9)
    witness.close()
    for fd in many:
        os.close(fd)


def none_of(pid: int, heirs: list[int]) -> bool:
    """Whether they have ended."""
    return not set(heirs) & set(named(pid, "sleep"))


def descendants(pid: int) -> list[int]:
    """Its processes and theirs."""
    try:
        own = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []
    return [*own, *(each for child in own for each in descendants(child))]


def named(pid: int, name: str) -> list[int]:
    """Those that execute a program of this name, and live."""
    found = []
    for each in descendants(pid):
        try:
            status = Path(f"/proc/{each}/stat").read_text()
        except OSError:
            continue
        if f"({name}" in status and status.rpartition(")")[2].split()[0] != "Z":
            found.append(each)
    return found


@pytest.mark.parametrize("place", ["", "0", ".", "00:00 0\n", "[0-9a-f]*:[0-9a-f]* [0-9]*"])
def test_no_address_of_another_process_is_told(witness: Witness, place: str) -> None:
    """Nor what is in its memory, by a place that is many."""
    witness._socket.sendall(f"{os.getpid()} {place}\n".encode())
    said = b""
    while not said.endswith(b".\n"):
        said += witness._socket.recv(1 << 16)
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert lines
    for line in lines:
        assert line.split()[0].encode() not in said
        assert line.split()[-1].encode() not in said or "/" not in line


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
