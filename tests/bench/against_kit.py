"""Two builds beside each other, driven by the kit: reads of a drive, sound, and the memory of many drives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

from tests.bench.builds import Build
from tests.bench.measure import cpu_seconds, own_megabytes
from tests.bench.rows import Row, alternating
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.driver.td import Td
from usbvfiod_core.testing.mass_storage import READ_10, MassStorage
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.testing.vmm import QEMU, Vmm

IMAGE = 64 << 20
BLOCKS = 4096 // 512
PLAYBACK, OUT = 1, 0x01
PACKET, PACKETS, AHEAD = 192, 10, 3
"""Bytes of a packet of 48 kHz stereo, one a millisecond; packets that Linux sends at a time; how many of these wait."""
DRIVES, USB3_PORTS, AT_ONCE, LARGE = 8, 7, 4, 256 << 10


def in_turn(rounds: int, new: Build, old: Build, once: Callable[[Build], float]) -> list[list[float]]:
    """What `once` measures of each build, round by round."""
    return alternating(rounds, lambda: once(new), lambda: once(old))


@contextmanager
def served(build: Build, directory: Path, *devices: str, vmm: Vmm = QEMU) -> Iterator[tuple[int, list[UsbDevice]]]:
    """The process of a build's server, and its devices behind a driver that accesses what Linux's does."""
    directory.mkdir(exist_ok=True)
    options = [word for device in devices for word in ("--device", device)]
    with ServerProcess(directory / "usb.sock", options, python=build.python) as server:
        bus = server.connect(vmm=vmm)
        with GuestDriver(bus, linux=True, ring_trbs=256) as driver:
            yield server.process.pid, [driver.enumerate(port.port_id) for port in driver.connected_ports()]
        bus.close()


def image(directory: Path, name: str, size: int = IMAGE) -> Path:
    """An image of zeros, which is in nobody's cache and takes no room."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    with path.open("wb") as file:
        file.truncate(size)
    return path


def small_reads(rows: list[Row], new: Build, old: Build, directory: Path, rounds: int, vmm: Vmm, count: int) -> None:
    """Reads of 4 KiB, three transfers each, one after the other: their rate, and the server's processor time."""
    with ExitStack() as stack:
        reads = []
        for name, build in (("new", new), ("old", old)):
            specification = f"virtual:flash?image={image(directory / name, 'drive.img')}"
            pid, [usb] = stack.enter_context(served(build, directory / name, specification, vmm=vmm))
            reads.append(_Reads(usb, pid))
        rates = alternating(rounds, *[lambda each=each: each.rate(count) for each in reads])
        rows[0].compare(*rates)
        rows[1].compare(*[each.used[1:] for each in reads])  # the first was not counted
        for each in reads:
            each.disk.close()


class _Reads:
    def __init__(self, usb: UsbDevice, pid: int) -> None:
        self.disk = MassStorage(usb, pipelined=False)
        self.disk.wait_ready()
        self.used: list[float] = []
        self._pid = pid

    def rate(self, count: int) -> float:
        """Reads a second; their processor time goes to `used`."""
        read = self.disk.read
        before, start = cpu_seconds(self._pid), perf_counter()
        for number in range(count):
            read(number * BLOCKS % (IMAGE // 512), BLOCKS)
        seconds = perf_counter() - start
        self.used.append(cpu_seconds(self._pid) - before)
        return count / seconds


def sound(rows: list[Row], new: Build, old: Build, directory: Path, rounds: int, count: int) -> None:
    """Playing for two milliseconds each of `count`: what share of a processor the server takes."""
    with ExitStack() as stack:
        players: list[Callable[[], float]] = []
        for name, build in (("new", new), ("old", old)):
            pid, [usb] = stack.enter_context(served(build, directory / name, "virtual:audio"))
            usb.set_interface(PLAYBACK, 1)
            players.append(_player(usb, pid, max(2 * count // PACKETS, AHEAD)))
        rows[0].compare(*alternating(rounds, *players))


def _player(usb: UsbDevice, pid: int, pieces: int) -> Callable[[], float]:
    pipe, packet = usb.pipe(OUT), bytes(PACKET)

    def piece() -> Td:
        for _ in range(PACKETS - 1):
            pipe.submit(packet, ioc=False, doorbell=False)
        return pipe.submit(packet)

    def share() -> float:
        before, start = cpu_seconds(pid), perf_counter()
        waiting = deque(piece() for _ in range(AHEAD))
        for _ in range(pieces - AHEAD):
            waiting.popleft().wait()
            waiting.append(piece())
        for each in waiting:
            each.wait()
        return (cpu_seconds(pid) - before) / (perf_counter() - start)

    return share


def memory(rows: list[Row], new: Build, old: Build, directory: Path, rounds: int, count: int) -> None:
    """Eight drives with several large commands in flight each: the most that the server holds of its own."""

    def once(build: Build) -> float:
        images = [image(directory, f"{number}.img") for number in range(DRIVES)]
        devices = [f"virtual:flash?image={path}&transport=uas" for path in images]
        devices[USB3_PORTS:] = [f"{device}&speed=high" for device in devices[USB3_PORTS:]]
        most = 0.0
        with served(build, directory / build.name.replace(" ", "-"), *devices) as (pid, found):
            drives = [UasClient(usb) for usb in found]
            for turn in range(max(count // 100, 2)):
                commands = [
                    drive.submit(_read(turn * AT_ONCE + each), LARGE) for drive in drives for each in range(AT_ONCE)
                ]
                most = max(most, own_megabytes(pid))
                for command in commands:
                    command.result()
            return max(most, own_megabytes(pid))

    for _ in range(min(rounds, 3)):
        rows[0].compare([once(new)], [once(old)])


def _read(number: int) -> bytes:
    """READ(10) of LARGE bytes."""
    blocks = LARGE // 512
    block = number * blocks % (IMAGE // 512)
    return bytes((READ_10, 0)) + block.to_bytes(4, "big") + bytes(1) + blocks.to_bytes(2, "big") + bytes(1)
