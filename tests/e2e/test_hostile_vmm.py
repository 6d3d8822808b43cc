"""A VMM that somebody has taken over: it says hello, and then anything, over and over, in a flood or in halves. The
server answers others meanwhile, keeps nothing, and serves the next one."""

from __future__ import annotations

import random
import select
import socket
import threading
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from struct import pack

import pytest

from tests.bench.measure import cpu_seconds
from tests.e2e.attacked import DELAY, GROWTH_KIB, LINES
from tests.e2e.conftest import Serve
from tests.e2e.process import ServerProcess
from tests.fuzz.client import Speaker, converse
from tests.fuzz.inputs import Actions
from tests.lab.passing import ask
from tests.lab.replugging import anonymous_kib
from tests.protocol.raw import hello
from usbvfiod_core.pci import vfio
from usbvfiod_core.testing.limits import PATIENCE, eventually, scaled
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.xhci import registers as reg

ACTIONS = 100
MOST_BYTES = 2048


class Vmm(Speaker):
    """At the socket of a real server, which has as much time as it needs."""

    def __init__(self, path: Path, actions: Actions, stack: ExitStack) -> None:
        super().__init__(actions, stack.enter_context(connected(path)), stack)

    def pause(self) -> None:
        select.select([self.near], [self.near], [], PATIENCE)
        self.receive()
        self.replies = b""


def connected(path: Path) -> socket.socket:
    """A new connection, once there is a place: one VMM is served at a time."""
    near = socket.socket(socket.AF_UNIX)
    near.settimeout(PATIENCE)
    near.connect(str(path))
    return near


class Server:
    """A server with some devices. `check` says what the hostile client has cost it."""

    def __init__(self, serve: Serve, tmp_path: Path, image: Path) -> None:
        self.control = tmp_path / "control"
        devices = (f"virtual:flash?image={image}", "virtual:keyboard", "virtual:loopback?speed=high")
        words = [word for device in devices for word in ("--device", device)]
        self.process: ServerProcess = serve("--control-path", self.control, *words)
        self.use()
        self.files = self.process.open_files()
        self.kib = anonymous_kib(self.process.process.pid)
        self.lines = len(self.process.log.splitlines())

    def use(self) -> None:
        """Be the next VMM, an honest one."""
        with self.process.guest() as driver:
            disk = MassStorage(driver.enumerate(9))
            for number in range(8):
                assert bytes(disk.read(number, 1)) == number.to_bytes(8, "little") * 64

    def delay(self) -> float:
        """Seconds of a processor that the server uses from a question at its control socket to its answer."""
        pid = self.process.process.pid
        start = cpu_seconds(pid)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE)
            peer.connect(str(self.control))
            assert peer.recv(1000)
        return cpu_seconds(pid) - start

    def check(self, clients: int) -> str:
        self.use()
        assert ask(self.control, "status")["client"] is None or eventually(
            lambda: ask(self.control, "status")["client"] is None
        )
        assert eventually(lambda: self.process.open_files() <= self.files), "descriptors are left"
        grown = anonymous_kib(self.process.process.pid) - self.kib
        assert grown < GROWTH_KIB
        lines = len(self.process.log.splitlines()) - self.lines
        assert lines < LINES + 2 * clients, self.process.log  # each has come and gone
        return f"{grown} KiB, {lines} lines of {clients} clients"


@pytest.fixture
def server(serve: Serve, tmp_path: Path, image: Path) -> Server:
    return Server(serve, tmp_path, image)


@pytest.mark.parametrize("clients", [12, pytest.param(3000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_whatever_it_says(server: Server, clients: int) -> None:
    chance = random.Random(13)
    delays = []
    for number in range(clients):
        with ExitStack() as stack:
            vmm = Vmm(server.process.socket_path, Actions(chance.randbytes(MOST_BYTES)), stack)
            converse(vmm, ACTIONS)
            if number % 4 == 0:
                delays.append(server.delay())
    delays.sort()
    assert delays[len(delays) // 2] < scaled(DELAY)
    print(server.check(clients), f"others wait {delays[len(delays) // 2] * 1e3:.1f} ms, at most {delays[-1] * 1e3:.1f}")


def _message(command: int, payload: bytes, flags: int = 0) -> bytes:
    return wire.HEADER.pack(7, command, wire.HEADER_SIZE + len(payload), flags, 0) + payload


def _access(offset: int, data: bytes = b"", count: int = 0) -> bytes:
    return wire.REGION_ACCESS.pack(offset, vfio.BAR0_REGION, count or len(data)) + data


FLOODS = {
    "reads whose answers it does not take": _message(wire.REGION_READ, _access(0, count=4)),
    "writes of doorbells": _message(wire.REGION_WRITE, _access(reg.DOORBELL_BASE, bytes(4)), wire.NO_REPLY),
    "resets": _message(wire.DEVICE_RESET, b"", wire.NO_REPLY),
    "commands that there are not": _message(200, bytes(100)),
    "runs and stops": _message(wire.REGION_WRITE, _access(reg.OPERATIONAL_BASE, pack("<I", 1)), wire.NO_REPLY)
    + _message(wire.REGION_WRITE, _access(reg.OPERATIONAL_BASE, pack("<I", 0)), wire.NO_REPLY),
    "half a message": _message(wire.REGION_WRITE, _access(0, bytes(4000)))[:2000],
}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood(server: Server, name: str) -> None:
    """Whoever else asks is answered."""
    near = connected(server.process.socket_path)
    ended = threading.Event()
    block = FLOODS[name] * ((1 << 16) // len(FLOODS[name]))

    def send() -> None:
        near.settimeout(0.2)
        with suppress(ConnectionError):
            near.sendall(hello())
            near.recv(1000)
            while not ended.is_set():
                rest = memoryview(block)
                while rest and not ended.is_set():
                    with suppress(TimeoutError):
                        rest = rest[near.send(rest) :]

    thread = threading.Thread(target=send)
    with closing(near):
        thread.start()
        delays = sorted(server.delay() for _ in range(60))
        kib = anonymous_kib(server.process.process.pid) - server.kib
        ended.set()
        thread.join()
    print(f"{name}: others wait {delays[30] * 1e3:.1f} ms, at most {delays[-1] * 1e3:.1f}; {kib} KiB")
    assert delays[30] < scaled(DELAY)
    assert kib < GROWTH_KIB
    server.check(1)
