"""A server is killed at any moment, and the next one goes on with the same VM: `usbvfiod front` as users have it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pytest

from tests.e2e.process import COMMAND
from tests.e2e.test_front import Fronted
from tests.e2e.upgrade_rig import patient
from usbvfiod_core.daemon import places
from usbvfiod_core.state_file import StateFile
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient, VfioUserError
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU, Vmm
from usbvfiod_core.vfio_user import wire

BLOCK = 512
BLOCKS = 4096
DRIVE = 9
"""The port of the drive."""
GOES_ON = "goes on with its VM"
RESTART = 10 * PATIENCE
"""Seconds in which an answer comes, through a crash and a start: a VMM that waits for one waits as long as it takes."""


class Served(Protocol):
    """What a guest needs of a server."""

    @property
    def socket_path(self) -> Path: ...


class Unplugged(Exception):
    """The driver sees that the device is gone."""


class Driver(GuestDriver):
    """Looks at a port while it waits, as a driver does that hears of port changes."""

    watched = 0

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float | None = None) -> None:
        def ended() -> bool:
            return condition() or self.is_gone

        super().wait_until(ended, what, timeout)
        if self.is_gone and not condition():
            raise Unplugged

    @property
    def is_gone(self) -> bool:
        """The device at the watched port was unplugged, and perhaps plugged in again."""
        return bool(self.watched) and self.watched in self.port_changes


class Guest:
    """Writes a drive and reads it back. Whatever was being written when the drive was unplugged is written again."""

    def __init__(self, server: Served, image: Path, vmm: Vmm = QEMU) -> None:
        self._image = image
        self._bus = SocketBus(VfioUserClient.connect(server.socket_path, vmm=vmm, wait=PATIENCE, timeout=RESTART))
        self.driver = Driver(self._bus)
        self.driver.start()
        self._random = random.Random(17)
        self.content = bytearray(image.read_bytes())
        self.again = -1
        """How often the drive was plugged in again."""
        self.works = 0
        self._plug()

    def close(self) -> None:
        self._bus.close()

    def step(self) -> None:
        """A bit of work, and what a driver does when its device was unplugged."""
        start, count = self._random.randrange(BLOCKS - 256), self._random.randrange(1, 256)
        data = self._random.randbytes(count * BLOCK)
        while True:
            try:
                self._drive.write(start, data)
                self.content[start * BLOCK : start * BLOCK + len(data)] = data
                at = self._random.randrange(BLOCKS - 64)
                assert bytes(self._drive.read(at, 64)) == self.content[at * BLOCK : (at + 64) * BLOCK]
                self.works += 1
                return
            except Unplugged:
                self._plug()

    def check(self) -> None:
        """All of the drive is as it should be, and the file has it."""
        for start in range(0, BLOCKS, 256):
            assert bytes(self._drive.read(start, 256)) == self.content[start * BLOCK : (start + 256) * BLOCK]
        self._drive.synchronize_cache()
        assert self._image.read_bytes() == self.content
        assert self.driver.read_operational(4) & 0x1004 == 0  # USBSTS: neither HSE nor HCE

    def _plug(self) -> None:
        driver, old = self.driver, getattr(self, "_device", None)
        driver.watched = 0
        if old is not None:
            old.disable()
        while True:
            driver.handle_events()
            driver.port_changes.discard(DRIVE)
            driver.poll_until(lambda: driver.port(DRIVE).connected, "the drive does not come back")
            driver.handle_events()
            driver.port_changes.discard(DRIVE)
            driver.watched = DRIVE
            try:
                self._device = driver.enumerate(DRIVE)
                self._drive = MassStorage(self._device)
                self._drive.read_capacity()
            except Unplugged:
                driver.watched = 0
                continue
            self.again += 1
            return


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "drive.img"
    path.write_bytes(random.Random(1).randbytes(BLOCK * BLOCKS))
    return path


@pytest.fixture
def server(tmp_path: Path, drive: Path) -> Iterator[Fronted]:
    made = Fronted(
        tmp_path,
        [
            *("--control-path", tmp_path / "control.sock"),
            *("--device", f"virtual:flash?image={drive}&transport=bot"),
            *("--device", "virtual:keyboard"),
        ],
        before=["--crashes", "0", "--"],
    )
    with made:
        made.wait_ready()
        yield made


def ask(tmp_path: Path, *words: str) -> Any:
    """What a command says, as JSON if it is asked for that."""
    done = subprocess.run(
        [*COMMAND, words[0], "--control-path", str(tmp_path / "control.sock"), *words[1:]],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout


def held(server: Fronted) -> list[str]:
    """What the front has open: the targets of its descriptors."""
    return open_in(server.process.pid)


def open_in(pid: int) -> list[str]:
    """The same of any process."""
    return list(descriptors(pid).values())


def descriptors(pid: int) -> dict[Path, str]:
    """What a process has open, by its place in /proc; without what it closes meanwhile."""
    found = {}
    for place in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[place] = os.readlink(place)
    return found


def state_of(server: Fronted) -> Path:
    """The place of the state that the front holds for its servers."""
    (place,) = [place for place, name in descriptors(server.process.pid).items() if "usbvfiod-state" in name]
    return place


def memory_files(server: Fronted) -> list[str]:
    """What of its state and of the registers that a client maps the server has open; no more after any crash."""
    found = open_in(server.server)
    return sorted(each for each in found if "memfd:registers" in each or "memfd:usbvfiod-state" in each)


def survive(server: Fronted, drive: Path, times: int, vmm: Vmm = QEMU) -> None:
    """Work while the server is killed so often."""
    with closing(Guest(server, drive, vmm)) as guest:
        guest.step()
        chance = random.Random(times)
        most = 0
        memory = memory_files(server)
        for number in range(1, times + 1):
            killer = threading.Timer(chance.random() * 0.2, os.kill, (server.server, signal.SIGKILL))
            killer.start()
            while killer.is_alive() or server.log.count(GOES_ON) < number:
                guest.step()
            while guest.again < number:
                guest.step()
            if number == 1:
                most = len(held(server))
            assert len(held(server)) <= most
        guest.step()
        guest.check()
        assert memory_files(server) == memory
    assert "does not go on with the VM" not in server.log
    assert server.log.count(GOES_ON) == times


def test_the_front_sleeps_while_the_guest_works(server: Fronted, drive: Path) -> None:
    with closing(Guest(server, drive)) as guest:
        server.wait_for(lambda: server.log.count("a client has connected") == 1)
        guest.step()
        before = server.status("voluntary_ctxt_switches"), server.status("nonvoluntary_ctxt_switches")
        for _ in range(20):
            guest.step()
        assert (server.status("voluntary_ctxt_switches"), server.status("nonvoluntary_ctxt_switches")) == before


@pytest.mark.parametrize("vmm", [QEMU, CLOUD_HYPERVISOR], ids=lambda vmm: vmm.name)
def test_a_guest_works_on_when_its_server_is_killed(server: Fronted, drive: Path, vmm: Vmm) -> None:
    survive(server, drive, 2, vmm)
    # The VM is gone, and with it its memory: what is held is the state of a server without a client.
    server.wait_for(lambda: len([each for each in held(server) if "memfd:" in each]) == 1)
    server.kill_server()
    with closing(Guest(server, drive)) as guest:
        guest.step()
        guest.check()
    assert server.terminate() == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vmm", [QEMU, CLOUD_HYPERVISOR], ids=lambda vmm: vmm.name)
def test_a_hundred_crashes(server: Fronted, drive: Path, vmm: Vmm) -> None:
    survive(server, drive, 100, vmm)


def test_what_was_attached_comes_back_and_an_upgrade_changes_nothing(
    server: Fronted, drive: Path, tmp_path: Path
) -> None:
    with closing(Guest(server, drive)) as guest:
        guest.step()
        ask(tmp_path, "attach", "virtual:loopback?port=14")
        ask(tmp_path, "attach", "virtual:keyboard?name=second")
        before = ports(tmp_path)
        upgraded = patient(tmp_path / "control.sock")
        assert upgraded.returncode == 0, upgraded.stderr
        guest.step()
        pid = ask(tmp_path, "status", "--json")["server"]["pid"]
        os.kill(pid, signal.SIGKILL)
        while guest.again < 1:
            guest.step()
        wait_until(lambda: ports(tmp_path) == before, lambda: f"{ports(tmp_path)} are not {before}\n{server.log}")
        found = [path.resolve() for path in places.servers(places.directory(os.environ)).values()]
        assert found.count((tmp_path / "control.sock").resolve()) == 1
        upgraded = patient(tmp_path / "control.sock")
        assert upgraded.returncode == 0, upgraded.stderr
        guest.step()
        guest.check()
        assert guest.again == 1


def ports(tmp_path: Path) -> dict[str, int]:
    """Where the devices are that are plugged in."""
    attachments = ask(tmp_path, "list", "--json")["attachments"]
    return {each["spec"]: each["port"] for each in attachments if each["state"] == "plugged"}


def shrunk(state: BinaryIO) -> None:
    with pytest.raises(OSError, match="not permitted"):
        state.truncate(4096)  # it is sealed
    state.write(bytes(4096))


def foreign(state: BinaryIO) -> None:
    state.seek(8)
    state.write((99).to_bytes(8, "little"))


def nonsense(state: BinaryIO) -> None:
    size = state.seek(0, 2)
    for at in range(4096, size, 64):
        state.seek(at)
        state.write(b"\xa5")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shrunk, "state file: this version reads format 1, and it is another"),
        (foreign, "state file: this version reads format 1, and it is another"),
        (nonsense, "state file: it has no document"),
    ],
)
def test_a_state_that_makes_no_sense_is_let_go(
    server: Fronted, drive: Path, change: Callable[[BinaryIO], None], reason: str
) -> None:
    with closing(SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))) as bus:
        GuestDriver(bus).start()
        with state_of(server).open("r+b", buffering=0) as state:
            change(state)
        memory = memory_files(server)
        server.kill_server()
        assert memory_files(server) == memory
        assert f"does not go on with the VM of the one before it: {reason}" in server.log
        with pytest.raises(VfioUserError):
            bus.read(0)
    with closing(Guest(server, drive)) as guest:
        guest.step()
        guest.check()


FORGETFUL = """
import os, sys
from usbvfiod_core import front

heard = front.Front._heard


def forgets(self, pid, lines, fds):
    if "FDSTORE=1" in lines and any(line.startswith("FDNAME=held.{lost}") for line in lines):
        for fd in fds:
            os.close(fd)
    else:
        heard(self, pid, lines, fds)


front.Front._heard = forgets
sys.exit(front.front(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "lost", ["irq-2-0", *(pytest.param(each, marks=pytest.mark.long) for each in ("client", "memory-"))]
)
def test_a_descriptor_that_was_not_held(tmp_path: Path, drive: Path, lost: str) -> None:
    """The store had no room for it, say. Nobody goes on without interrupts, or without some of the memory."""
    words = ["--device", f"virtual:flash?image={drive}&transport=bot"]
    server = Fronted(tmp_path, words, command=(sys.executable, "-c", FORGETFUL.format(lost=lost)))
    with server:
        server.wait_ready()
        with closing(SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))) as bus:
            GuestDriver(bus).start().enumerate()
            server.kill_server()
            assert "does not go on with the VM of the one before it: " in server.log
            assert "was not held" in server.log
            with pytest.raises(VfioUserError):
                bus.read(0)
        with closing(Guest(server, drive)) as guest:
            guest.step()
            guest.check()


def attempts(server: Fronted) -> int:
    """How many servers in a row have crashed soon, as the state says that is held."""
    state = StateFile.opened(os.open(state_of(server), os.O_RDWR))
    try:
        return state.attempts
    finally:
        state.close()


def test_a_vm_under_which_each_server_crashes_is_let_go(tmp_path: Path, drive: Path) -> None:
    server = Fronted(tmp_path, ["--device", f"virtual:flash?image={drive}&transport=bot"])
    with server:
        server.wait_ready()
        with closing(SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))) as bus:
            GuestDriver(bus).start()
            for count in (1, 2):
                server.kill_server()
                assert bus.read(0)
                wait_until(lambda count=count: attempts(server) == count, "nobody counts")  # type: ignore[misc]
            assert server.log.count(GOES_ON) == 2
            server.kill_server()
            assert "one before it: 2 servers in a row have crashed that went on with it, each within 10 s" in server.log
            with pytest.raises(VfioUserError):
                bus.read(0)
        with closing(Guest(server, drive)) as guest:
            guest.step()
            guest.check()
        assert attempts(server) == 0


@pytest.mark.long
def test_a_server_that_runs_steadily_is_no_failed_attempt(tmp_path: Path, drive: Path) -> None:
    server = Fronted(tmp_path, ["--device", f"virtual:flash?image={drive}&transport=bot"])
    with server:
        server.wait_ready()
        with closing(SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))) as bus:
            GuestDriver(bus).start()
            for _ in range(4):
                server.kill_server()
                assert bus.read(0)
                wait_until(lambda: attempts(server) == 0, "it is not steady")
            assert server.log.count(GOES_ON) == 4


def test_an_answer_that_may_have_been_sent(server: Fronted) -> None:
    """The server is killed between executing a request and noting that it was answered; it was not."""
    client = VfioUserClient.connect(server.socket_path, wait=PATIENCE)
    with closing(SocketBus(client)) as bus:
        expected = bus.read(0)
        os.kill(server.server, signal.SIGSTOP)
        request = wire.REGION_MESSAGE.pack(77, wire.REGION_READ, wire.REGION_MESSAGE.size, 0, 0, 0, 0, 4)
        state = StateFile(os.open(state_of(server), os.O_RDWR))
        marks = state.area("session").cast("Q")
        state.area("input")[marks[0] : marks[0] + len(request)] = request
        marks[1] = marks[0] + len(request)
        state.close()
        server.kill_server()
        reply = client.receive_reply(wire.REGION_READ, 77)
        assert int.from_bytes(reply.payload[-4:], "little") == expected
        assert bus.read(0) == expected
    assert GOES_ON in server.log


def test_a_setting_that_the_guest_sees_has_changed(tmp_path: Path, drive: Path) -> None:
    config = tmp_path / "web.toml"
    config.write_text("[server]\nusb2-ports = 8\n")
    server = Fronted(tmp_path, ["--config", config, "--device", f"virtual:flash?image={drive}&transport=bot"])
    with server:
        server.wait_ready()
        with closing(SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))) as bus:
            GuestDriver(bus).start()
            config.write_text("[server]\nusb2-ports = 9\n")
            server.kill_server()
            assert "the one before it: usb2-ports was 8, and is 9" in server.log
            with pytest.raises(VfioUserError):
                bus.read(0)
