"""What hostile clients of the control socket cost the guest: reads of a drive beside a fuzzer, and without it.

`python -m tests.bench.control` prints it; `make bench` does so among the rest.

What is to be measured is what the *server* loses, not what a busy neighbour costs. So the server has a processor of its
own, and the guest's driver shares another with the fuzzer, which runs only when the driver has nothing to do
(SCHED_IDLE). In the rounds without it the fuzzer does not rest either: it does the same to a socket that nobody reads.
So the two kinds of rounds, which alternate, differ in what the server gets to do and in nothing else. With fewer than
two processors nothing is pinned, and the ratio includes the fuzzer's own appetite.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, perf_counter, sleep

from tests.bench.measure import Comparison, Figure, cpu_seconds
from tests.e2e.process import ServerProcess
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.cli.unreached import ServerUnreachable
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage

CHECKOUT = Path(__file__).resolve().parents[2]
TARGET = 0.90
IMAGE = 16 << 20
SMALL, LARGE = 4096, 1 << 20
SETTLE = 0.1
"""Seconds between a change of the fuzzer's aim and the measurement."""


class FuzzerProcess:
    """`tests.bench.fuzzer` on this processor, or on any."""

    def __init__(self, path: Path, processor: int | None) -> None:
        command = [sys.executable, "-m", "tests.bench.fuzzer", str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT
        )
        pin(self._process.pid, processor)
        os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))

    def aim(self, at: str) -> int:
        """ "aim" at the server or "aside"; how many things it has done since it was told last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{at}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def pin(process: int, processor: int | None) -> None:
    """Keep a process to a processor; None for any."""
    if processor is not None:
        os.sched_setaffinity(process, {processor})


def processors() -> tuple[int | None, int | None]:
    """One for the server, one for the rest."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


@contextmanager
def drive(directory: Path) -> Iterator[tuple[ServerProcess, MassStorage, FuzzerProcess, Path]]:
    """A server of a flash drive, a guest that reads it, and a fuzzer; this process is on the guest's processor."""
    image, path = directory / "drive.img", directory / "control.sock"
    with image.open("wb") as file:
        file.truncate(IMAGE)
    mine = os.sched_getaffinity(0)
    servers, others = processors()
    options = ("--control-path", path, "--device", f"virtual:flash?image={image}")
    with ServerProcess(directory, options) as server:
        server.wait_ready()
        pin(server.process.pid, servers)
        pin(0, others)
        fuzzer = FuzzerProcess(path, others)
        bus = SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))
        try:
            with GuestDriver(bus) as driver:
                disk = MassStorage(driver.enumerate(), pipelined=False)
                yield server, disk, fuzzer, path
                disk.close()
        finally:
            bus.close()
            fuzzer.close()
            os.sched_setaffinity(0, mine)


def measure(directory: Path, rounds: int = 20, seconds: float = 0.5) -> tuple[list[Comparison], list[Figure]]:
    """Reads with the fuzzer beside reads without it, and what the fuzzer did and left behind.

    Raises AssertionError if the server does not answer at its control socket afterwards, or has kept a descriptor.
    """
    small = Comparison("4 KiB reads, control fuzzed", "reads/s", TARGET)
    large = Comparison("1 MiB reads, control fuzzed", "reads/s", TARGET)
    acts: list[float] = []
    with drive(directory) as (server, disk, fuzzer, path):
        small_read = _reader(disk, SMALL)
        reads = [(small, small_read), (large, _reader(disk, LARGE))]
        for _, read in reads:
            rate(read, seconds)
        files = open_files(server, path)
        fuzzer.aim("aim")
        rate(small_read, seconds)  # whatever is made once is made now
        fuzzer.aim("aside")
        drop_all(server, path, files)
        before = server.status("RssAnon")
        for number in range(rounds):
            for comparison, read in reads:
                for aim in ("aim", "aside") if number % 2 else ("aside", "aim"):
                    fuzzer.aim(aim)
                    sleep(SETTLE)
                    start = perf_counter()
                    reads_a_second = rate(read, seconds)
                    elapsed = perf_counter() - start + SETTLE
                    done = fuzzer.aim("aside")
                    if aim == "aim":
                        acts.append(done / elapsed)
                        comparison.ours.append(reads_a_second)
                    else:
                        comparison.reference.append(reads_a_second)
        share = idle_share(server, fuzzer, rounds * seconds / 4)
        drop_all(server, path, files)
        after = server.status("RssAnon")
    figures = [
        Figure("control socket: what the fuzzer did, a second", "1/s", acts),
        Figure("control socket: a processor's time that it takes at most", "%", [100 * share], 100 * (1 - TARGET)),
        Figure("control socket: memory that it left behind", "MB", [(after - before) / 1000], 8.0),
    ]
    return [small, large], figures


def idle_share(server: ServerProcess, fuzzer: FuzzerProcess, seconds: float) -> float:
    """The part of a processor that a server takes while its guest is idle and its control socket is fuzzed."""
    fuzzer.aim("aim")
    start, before = perf_counter(), cpu_seconds(server.process.pid)
    sleep(seconds)
    used = cpu_seconds(server.process.pid) - before
    elapsed = perf_counter() - start
    fuzzer.aim("aside")
    return used / elapsed


def drop_all(server: ServerProcess, path: Path, files: int) -> None:
    """Wait until a server answers again and has no more descriptors than `files`. Raises AssertionError if it keeps
    some."""
    deadline = monotonic() + PATIENCE
    while (now := open_files(server, path)) != files:
        assert monotonic() < deadline, f"{now - files} descriptors are left"
        sleep(SETTLE)


def open_files(server: ServerProcess, path: Path) -> int:
    """How many descriptors a server has, while somebody talks to it; 0 if it has no time for one more."""
    with suppress(ServerUnreachable), ControlConnection(path, PATIENCE) as control:
        control.request("devices")  # which makes it watch the host's devices, for good
        return server.open_files()
    return 0


def rate(read: Callable[[], object], seconds: float) -> float:
    """How often a second."""
    count = 0
    start = perf_counter()
    while (elapsed := perf_counter() - start) < seconds:
        read()
        count += 1
    return count / elapsed


def _reader(disk: MassStorage, size: int) -> Callable[[], object]:
    blocks = size // 512
    places = iter(range(1 << 30))
    return lambda: disk.read(next(places) * blocks % (IMAGE // 512), blocks)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        comparisons, figures = measure(Path(name))
    for comparison in comparisons:
        print(comparison.line())
    for figure in figures:
        print(figure.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
