"""What a capture costs while a guest reads a drive at full speed, and what it loses.

The server's thread that serves the guest is measured by its processor time, and so is the guest: what is between two
reads of a guest is the sum of both. The thread that writes the file is beside it, on another processor.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import thread_time
from typing import Any

from tests.bench.measure import Comparison, Figure
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess

IMAGE = 32 << 20
SIZES = {"4 KiB": 4096, "120 KiB": 120 << 10}
TARGET = 0.9
"""Of the rate without a capture."""


@contextmanager
def drive(directory: Path) -> Iterator[tuple[ServerProcess, MassStorage, Path]]:
    """A server of a flash drive and a guest that reads it."""
    image, path = directory / "drive.img", directory / "control.sock"
    image.write_bytes(bytes(IMAGE))
    options = ("--control-path", str(path), "--device", f"virtual:flash?image={image}&name=stick")
    with ServerProcess(directory / "vm.sock", options) as server:
        bus = server.connect()
        try:
            with GuestDriver(bus) as driver:
                disk = MassStorage(driver.enumerate(), pipelined=False)
                yield server, disk, path
                disk.close()
        finally:
            bus.close()


def measure(
    directory: Path, rounds: int = 80, count: int = 30, snap_length: int | None = None
) -> tuple[list[Comparison], list[Figure]]:
    """Reads with a capture to a file beside reads without one, by turns, short ones, since a machine with other
    work has its moods; and the packets that were dropped."""
    comparisons = {size: Comparison(f"{name} reads, captured", "reads/s", TARGET) for name, size in SIZES.items()}
    dropped = packets = 0
    arguments = {} if snap_length is None else {"snap_length": snap_length}
    with drive(directory) as (server, disk, path), ControlConnection(path, PATIENCE) as control:
        for number in range(rounds):
            for size, comparison in comparisons.items():
                read = _reader(disk, size)
                read()
                for capturing in (True, False) if number % 2 else (False, True):
                    if not capturing:
                        comparison.reference.append(rate(server.process.pid, read, count))
                        continue
                    running = _begin(control, directory / "capture.pcapng", **arguments)
                    comparison.ours.append(rate(server.process.pid, read, count))
                    result = control.request("capture-end", capture=running)
                    packets += result["packets"]
                    dropped += result["dropped"]
    return list(comparisons.values()), [
        Figure("capture: packets dropped", "%", [100 * dropped / max(packets + dropped, 1)])
    ]


def rate(pid: int, work: Callable[[], object], count: int) -> float:
    """How often a second of the processor time of the thread that serves and the one that asks."""
    before = thread_time() + serving_seconds(pid)
    for _ in range(count):
        work()
    return count / (thread_time() + serving_seconds(pid) - before)


def serving_seconds(pid: int) -> float:
    """The processor time of a process's main thread."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def _begin(control: ControlConnection, path: Path, **arguments: Any) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        number: int = control.request("capture", fd=True, fds=[fd], **arguments)["capture"]
    finally:
        os.close(fd)
    return number


def _reader(disk: MassStorage, size: int) -> Callable[[], object]:
    blocks = size // 512
    places = iter(range(1 << 30))
    return lambda: disk.read(next(places) * blocks % (IMAGE // 512 - blocks), blocks)


def main() -> int:
    snap_length = int(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        comparisons, figures = measure(Path(name), snap_length=snap_length)
    for comparison in comparisons:
        print(comparison.line())
    for figure in figures:
        print(figure.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
