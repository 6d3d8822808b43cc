"""What single steps cost: the server in a process of its own, the driver of the test kit in this one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from tests.bench.measure import Figure, cpu_seconds, own_megabytes, times, voluntary_switches
from tests.bench.real_devices import streaming
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.driver.trb import normal
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.xhci import spec

FLASH, LOOPBACK = 0x0011, 0xA4A0
SOURCE_BYTES = 512


@contextmanager
def served(directory: Path, *options: str) -> Iterator[tuple[ServerProcess, GuestDriver, dict[int, UsbDevice]]]:
    """A server with a flash drive and a loopback device, and a driver that polls; the devices by product."""
    image = directory / "micro.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    devices = ("--device", f"virtual:flash?image={image}", "--device", "virtual:loopback")
    with ServerProcess(directory / "micro.sock", (*devices, *options)) as server:
        bus = server.connect()
        with GuestDriver(bus) as driver:
            found = [driver.enumerate(port.port_id) for port in driver.connected_ports()]
            yield server, driver, {each.descriptor.product_id: each for each in found if each.descriptor is not None}
        bus.close()


def measure(directory: Path, count: int = 5000) -> list[Figure]:
    """All figures; `count` samples for the quick ones."""
    figures = [start_time(directory)]
    with served(directory) as (server, driver, devices):
        pid = server.process.pid
        figures += register_reads(driver.bus, pid, count)
        figures += doorbells(driver, devices[LOOPBACK], count)
        figures.append(large_transfers(devices[LOOPBACK], pid, max(count // 5, 50)))
        figures += small_reads(devices[FLASH], pid, max(count // 5, 50))
        figures += memory(pid)
        figures += idle(pid, 5.0 if count > 1000 else 1.0)
    return figures


def start_time(directory: Path) -> Figure:
    """From the start of the process until a client can connect."""
    image = directory / "start.img"
    image.write_bytes(bytes(1 << 20))
    taken = []
    for number in range(5):
        start = perf_counter()
        with ServerProcess(directory / f"start{number}.sock", ("--device", f"virtual:flash?image={image}")):
            taken.append((perf_counter() - start) * 1000)
    return Figure("start until it serves", "ms", taken, 500)


def register_reads(bus: object, pid: int, count: int) -> list[Figure]:
    """One read of USBSTS, there and back, and the server's processor time for it."""
    assert isinstance(bus, SocketBus)
    offset = bus.read(spec.CAPLENGTH, 1) + spec.USBSTS
    times(lambda: bus.read(offset), 500)
    before = cpu_seconds(pid)
    taken = times(lambda: bus.read(offset), count)
    used = (cpu_seconds(pid) - before) / count * 1e6
    return [
        Figure("register read, round trip", "µs", taken),
        Figure("register read, server's processor time with polling", "µs", [used]),
    ]


def doorbells(driver: GuestDriver, usb: UsbDevice, count: int) -> list[Figure]:
    """From the doorbell's write until the event of a 512-byte bulk IN transfer is in memory."""
    pipe = usb.pipe(bulk_in(usb))
    buffer = driver.ram.allocate(SOURCE_BYTES)
    trbs = [normal(buffer, SOURCE_BYTES, spec.TRB_IOC)]
    ring = driver.event_rings[0]
    taken = []
    for _ in range(count + 200):
        td = pipe.submit_trbs(trbs, doorbell=False)
        start = perf_counter()
        pipe.doorbell()
        while not ring.waiting:
            pass
        taken.append((perf_counter() - start) * 1e6)
        td.wait()
    return [Figure("doorbell to event, 512-byte bulk IN", "µs", taken[200:])]


def large_transfers(usb: UsbDevice, pid: int, count: int) -> Figure:
    """Bulk IN transfers of 64 KiB, four of them in flight: what each costs the server, registers and data included."""
    run = streaming(usb, bulk_in(usb), 64 << 10, 4)
    run(50)
    used = []
    for _ in range(5):
        before = cpu_seconds(pid)
        run(count)
        used.append((cpu_seconds(pid) - before) / count * 1e6)
    return Figure("64 KiB bulk IN, four in flight, server's processor time", "µs", used)


def bulk_in(usb: UsbDevice) -> int:
    """The address of the first IN endpoint."""
    return next(each.address for each in usb.interface(0).endpoints if each.address & 0x80)


def small_reads(usb: UsbDevice, pid: int, count: int) -> list[Figure]:
    """Reads of 4 KiB as Linux does them: three transfers, each waited for."""
    figures = []
    disk = MassStorage(usb, pipelined=False)
    blocks = 4096 // 512
    places = iter(range(1 << 30))

    def read() -> None:
        disk.read(next(places) * blocks % (64 << 11), blocks)

    times(read, 100)
    used, taken = [], []
    for _ in range(5):
        before = cpu_seconds(pid)
        taken += times(read, count)
        used.append((cpu_seconds(pid) - before) / count * 1e6)
    figures.append(Figure("4 KiB read (three transfers), time", "µs", taken))
    figures.append(Figure("4 KiB read (three transfers), server's processor time", "µs", used, 150))
    disk.close()
    return figures


def memory(pid: int) -> list[Figure]:
    """The server's own memory: all that is resident but what it shares with the guest."""
    return [Figure("memory of its own", "MB", [own_megabytes(pid)], 60)]


def idle(pid: int, seconds: float) -> list[Figure]:
    """What it does while nobody asks for anything, with a guest connected."""
    time.sleep(1)  # memory maps settle half a second after the last change
    switches, used = voluntary_switches(pid), cpu_seconds(pid)
    time.sleep(seconds)
    return [
        Figure("idle: wake-ups a second", "", [(voluntary_switches(pid) - switches) / seconds], 1),
        Figure("idle: processor time", "µs/s", [(cpu_seconds(pid) - used) / seconds * 1e6]),
    ]
