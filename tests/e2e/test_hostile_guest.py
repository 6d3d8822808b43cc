"""A guest that queues without end: what it costs the server, and whoever else is there, while it does.

The bounds are those of docs/security.md: 64 MiB more than idle, and 10 ms for another device, a register, DMA_UNMAP and
the control socket. Times are those of the server's processor, since other processors and programs are not its guest's.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.process import ServerProcess
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver, Pipe
from usbvfiod_core.testing.driver.device import UsbDevice
from usbvfiod_core.testing.driver.streams import Stream
from usbvfiod_core.testing.limits import PATIENCE, eventually, scaled
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.xhci import spec

MIB = 1 << 20
MEMORY = 64 * MIB
DELAY = 0.010
ROUNDS = 15
RING = 64 << 10
CYCLE, CHAIN, IOC = spec.TRB_CYCLE, spec.TRB_CH, spec.TRB_IOC
NORMAL, NO_OP, LINK = (kind << spec.TRB_TYPE_SHIFT | CYCLE for kind in (spec.TRB_NORMAL, spec.TRB_NO_OP, spec.TRB_LINK))
LOOPBACK, LOOPBACK_OUT = 0xA4A0, 0x01
STREAMS = 15
SPARE = 1 << 40
"""An address at which there is a page to unmap."""


def endless(driver: GuestDriver, controls: list[int], *, length: int = 1) -> int:
    """64 KiB of TRBs with these control dwords again and again, and a Link to the first; the address."""
    ram, count = driver.ram, RING // spec.TRB_SIZE
    base, data = ram.allocate(RING, align=RING), ram.allocate(64)
    words = ram.dwords(base, 4 * count)
    for index in range(count - 1):
        control = controls[index % len(controls)]
        words[4 * index], words[4 * index + 1] = data & 0xFFFF_FFFF, data >> 32
        words[4 * index + 2], words[4 * index + 3] = length, control
    words[-4], words[-3], words[-2], words[-1] = base & 0xFFFF_FFFF, base >> 32, 0, LINK
    return base


def point_at(pipe: Pipe, base: int) -> None:
    pipe.stop()
    pipe.set_dequeue((base, 1))


class Bystanders:
    """What others do meanwhile: each operation with the seconds that it takes, at the least of some tries."""

    def __init__(self, server: ServerProcess, control: Path, driver: GuestDriver, bus: SocketBus, drive: UsbDevice):
        self._server, self._control, self._driver, self._bus = server, control, driver, bus
        self._disk = MassStorage(drive)
        self._spare = os.memfd_create("spare")
        os.ftruncate(self._spare, 4096)

    def measure(self) -> dict[str, float]:
        operations: dict[str, Callable[[], object]] = {
            "a 512-byte read": lambda: self._disk.read(7, 1),
            "a register": self.look,
            "DMA_UNMAP": self._unmap,
        }
        seconds = {name: self._least(operation) for name, operation in operations.items()}
        seconds["the control socket"] = self._least(self._greeting, 3)  # it has a share of the time, soon used up
        return seconds

    def look(self) -> None:
        """Read a register: the server has done something else meanwhile."""
        self._bus.client.region_read(0, 0x84, 4)

    def reset(self) -> float:
        start = self._worked()
        self._bus.client.reset()
        return self._worked() - start

    def close(self) -> None:
        os.close(self._spare)

    def _unmap(self) -> None:
        self._bus.client.dma_map(SPARE, 4096, self._spare)
        self._bus.client.dma_unmap(SPARE, 4096)

    def _greeting(self) -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE)
            peer.connect(str(self._control))
            assert peer.recv(1000)

    def _worked(self) -> float:
        """Seconds of a processor that the server has used. What it does between a request and its answer is what the
        answer waits for; what others of this machine do meanwhile is not counted."""
        return int(Path(f"/proc/{self._server.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def _least(self, operation: Callable[[], object], rounds: int = ROUNDS) -> float:
        seconds = []
        for _ in range(rounds):
            start = self._worked()
            operation()
            seconds.append(self._worked() - start)
        return min(seconds)


class Stage:
    """A server with a drive that somebody uses, and three loopbacks and two UAS drives for the attack."""

    def __init__(self, server: ServerProcess, control: Path, driver: GuestDriver, bus: SocketBus) -> None:
        self.server, self.driver = server, driver
        devices = [driver.enumerate(port.port_id) for port in driver.connected_ports()]
        self.loopbacks = [each for each in devices if each.descriptor and each.descriptor.product_id == LOOPBACK]
        victim, *self.uas = (each for each in devices if each not in self.loopbacks)  # in the order of their ports
        self.others = Bystanders(server, control, driver, bus, victim)
        self.idle = self.others.measure()
        self.memory = self.resident

    @property
    def resident(self) -> int:
        return self.server.status("VmRSS") << 10

    def streams(self) -> Iterator[Stream]:
        """Every stream of every endpoint that has streams."""
        for drive in self.uas:
            client = UasClient(drive, streams=STREAMS)
            for endpoint in client.interface.endpoints:
                if endpoint.companion and endpoint.companion.max_streams:
                    for stream_id in range(1, client.streams + 1):
                        yield drive.stream(endpoint.address, stream_id)

    def check(self) -> None:
        """Nobody waits longer than they may, and the server has no more memory than it may."""
        slow: dict[str, float] = {}
        for _ in range(3):  # a machine that is busy with something else for a moment is not the attack
            slow = {
                name: seconds
                for name, seconds in self.others.measure().items()
                if seconds > scaled(DELAY) + 10 * self.idle[name]
            }
            if not slow:
                break
        assert slow == {}, f"idle: {self.idle}"
        self.check_memory()

    def check_memory(self) -> None:
        assert self.resident - self.memory < MEMORY

    def check_reset(self) -> None:
        seconds = self.others.reset()
        assert seconds < scaled(10 * DELAY) + 10 * self.idle["DMA_UNMAP"], "of a reset"

    def check_sleep(self) -> None:
        def sleeps() -> bool:
            before = self.server.status("voluntary_ctxt_switches")
            time.sleep(0.2)
            return self.server.status("voluntary_ctxt_switches") == before

        assert eventually(sleeps), "the server does not sleep again"


@pytest.fixture
def stage(serve: Serve, image: Path, tmp_path: Path) -> Iterator[Stage]:
    copies = []
    for number in range(2):
        copies.append(tmp_path / f"uas{number}.img")
        copies[-1].write_bytes(bytes(MIB))
    control = tmp_path / "control"
    server = serve(
        *("--control-path", control, "--device", f"virtual:flash?image={image}"),
        *(f"--device=virtual:flash?image={copy}&transport=uas" for copy in copies),
        *("--device=virtual:loopback",) * 3,
    )
    with connected(server) as (driver, bus):
        stage = Stage(server, control, driver, bus)
        try:
            yield stage
        finally:
            stage.others.close()
    assert server.terminate() == 0
    assert ": error: " not in server.log


@contextmanager
def connected(server: ServerProcess) -> Iterator[tuple[GuestDriver, SocketBus]]:
    bus = SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))
    try:
        yield GuestDriver(bus).start(), bus
    finally:
        bus.close()


def test_chains_of_one_byte_on_every_ring_and_stream(stage: Stage) -> None:
    """64 KiB of ring, which every endpoint and stream has to itself: a guest pays nothing for more."""
    chained = endless(stage.driver, [*[NORMAL | CHAIN] * 1000, NORMAL])
    for loopback in stage.loopbacks:
        pipe = loopback.pipe(LOOPBACK_OUT)
        point_at(pipe, chained)
        pipe.doorbell()
    for stream in stage.streams():
        stage.driver.ram.write_u64(stream.context_address, chained | spec.SCT_PRIMARY_RING << spec.SCT_SHIFT | 1)
        stream.doorbell()
    for _ in range(20):
        stage.others.look()
        stage.check_memory()
    stage.check()
    stage.check_reset()


def test_endless_rings_of_no_ops(stage: Stage) -> None:
    no_ops = endless(stage.driver, [NO_OP])
    pipes: list[Pipe] = [loopback.pipe(LOOPBACK_OUT) for loopback in stage.loopbacks]
    for pipe in pipes:
        point_at(pipe, no_ops)
    for stream in stage.streams():
        stage.driver.ram.write_u64(stream.context_address, no_ops | spec.SCT_PRIMARY_RING << spec.SCT_SHIFT | 1)
        pipes.append(stream)
    for pipe in pipes:
        pipe.doorbell()
    stage.check()
    stage.check_sleep()
    stage.check_reset()
