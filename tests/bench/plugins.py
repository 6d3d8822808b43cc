"""What plugins cost: one that is installed and has no interest in the device, and one that reads every transfer.

Servers that differ in their plugins only are driven in turn, so that what else the machine does is in all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

from tests.bench.measure import Comparison, Figure, times
from usbvfiod_core import (
    Device,
    DeviceEvents,
    InterceptedTransfer,
    Interceptor,
    Speed,
    Transfer,
    TransferStatus,
    TransferType,
)
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess

SMALL = 4096
BATCH = 200

UNINTERESTED = """
from usbvfiod_core import hookimpl

@hookimpl
def usbvfiod_admit_device(info):
    return None

@hookimpl
def usbvfiod_wrap_device(info):
    return None

@hookimpl
def usbvfiod_intercept_device(info):
    return None

@hookimpl
def usbvfiod_observe_attachments(info):
    return None
"""

READING = """
from usbvfiod_core import Interceptor, hookimpl

class Reading(Interceptor):
    def __init__(self):
        self.transfers = self.bytes = 0
        self.first = None

    def bulk(self, transfer):
        self.transfers += 1

    def bulk_completed(self, transfer):
        self.bytes += transfer.actual
        self.first = transfer.windows[0][0]

@hookimpl
def usbvfiod_intercept_device(info):
    return Reading()
"""


def install(directory: Path) -> None:
    """Lay down both plugins as an installed distribution."""
    info = directory / "costs-1.0.dist-info"
    info.mkdir(parents=True)
    (directory / "costs_uninterested.py").write_text(UNINTERESTED)
    (directory / "costs_reading.py").write_text(READING)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: costs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[usbvfiod]\nuninterested = costs_uninterested\nreading = costs_reading\n")


@contextmanager
def drive(directory: Path, name: str, plugins: tuple[str, ...]) -> Iterator[Callable[[], object]]:
    """A server of a flash drive with just these plugins; a function that reads 4 KiB as Linux does."""
    image, config = directory / f"{name}.img", directory / f"{name}.toml"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    config.write_text(f"[plugins]\nenable = {['virtual', *plugins]}\n")
    options = ("--config", str(config), "--device", f"virtual:flash?image={image}")
    with ServerProcess(directory / f"{name}.sock", options) as server:
        bus = server.connect()
        with GuestDriver(bus) as driver:
            disk = MassStorage(driver.enumerate(), pipelined=False)
            blocks = SMALL // 512
            places = iter(range(1 << 30))
            yield lambda: disk.read(next(places) * blocks % (16 << 11), blocks)
            disk.close()
        bus.close()


def measure(directory: Path, starts: int = 6, rounds: int = 6) -> list[Comparison]:
    """4 KiB reads a second with a plugin, beside those without any. The servers are started anew a few times, because
    where a process happens to lie in memory makes a difference of its own."""
    site = directory / "site"
    install(site)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), before]))
    indifferent = Comparison("an uninterested plugin", "reads/s", 0.97)
    observed = Comparison("a reading interceptor", "reads/s", 0.90)
    try:
        for start in range(starts):
            with ExitStack() as stack:
                bare, uninterested, reading = (
                    stack.enter_context(drive(directory, f"{name}{start}", plugins))
                    for name, plugins in (("bare", ()), ("uninterested", ("uninterested",)), ("reading", ("reading",)))
                )
                for rates in _rates([bare, uninterested, reading], rounds):
                    for comparison, rate in ((indifferent, rates[1]), (observed, rates[2])):
                        comparison.ours.append(rate)
                        comparison.reference.append(rates[0])
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return [indifferent, observed]


def _rates(reads: list[Callable[[], object]], rounds: int) -> Iterator[list[float]]:
    """Reads a second by each, for each round; another one is the first in each."""
    for read in reads:
        times(read, BATCH)
    for number in range(rounds):
        rates = [0.0] * len(reads)
        for place in range(len(reads)):
            index = (place + number) % len(reads)
            start = perf_counter()
            for _ in range(BATCH):
                reads[index]()
            rates[index] = BATCH / (perf_counter() - start)
        yield rates


# -- one transfer, without a guest ----------------------------------------------------------------------------------


class Immediate(Device):
    """Ends each transfer at once."""

    speed = Speed.HIGH
    name = "immediate"

    def attach(self, events: DeviceEvents) -> None:
        pass

    def submit(self, transfer: Transfer) -> None:
        transfer.complete(TransferStatus.COMPLETED, transfer.length)

    def cancel(self, transfer: Transfer) -> None:
        pass

    def reset(self, done: Callable[[], object]) -> None:
        done()

    def close(self) -> None:
        pass


class Counting(Interceptor):
    """Looks at bulk transfers, both ways."""

    def __init__(self) -> None:
        self.transfers = self.bytes = 0

    def bulk(self, transfer: InterceptedTransfer) -> None:
        self.transfers += 1

    def bulk_completed(self, transfer: InterceptedTransfer) -> None:
        self.bytes += transfer.actual


def transfers(count: int) -> list[Figure]:
    """From making a transfer to its completion: of a bare device, and behind an interceptor that has no interest in
    the endpoint, or has."""
    device, loop = Immediate(), StepLoop()
    behind = intercept(device, Counting(), "bench", loop)
    figures = []
    for name, route, type in (
        ("a transfer: no plugin", device.route(0x81, TransferType.BULK), TransferType.BULK),
        ("a transfer: endpoint not intercepted", behind.route(0x83, TransferType.INTERRUPT), TransferType.INTERRUPT),
        ("a transfer: read by an interceptor", behind.route(0x81, TransferType.BULK), TransferType.BULK),
    ):
        figures.append(Figure(name, "µs", times(_submission(route, type), count)))
    loop.close()
    return figures


def _submission(route: Callable[[Transfer], None], type: TransferType) -> Callable[[], None]:
    windows = [memoryview(bytearray(64))]

    def ended(transfer: Transfer) -> None:
        pass

    return lambda: route(Transfer(0x81, type, windows, 64, ended))
