"""What a server pays for what is held of it, while it works: `python -m tests.bench.fronted [STARTS]`.

A server behind `usbvfiod front` and one without it are read from in turn, 4 KiB at a time. What counts is the processor
time of the server, which keeps its state for the next one, and of the front, which should have none.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.measure import Comparison, Figure, cpu_seconds, times
from tests.e2e.process import COMMAND, ServerProcess
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU, Vmm

SMALL: Final = 4096
IMAGE: Final = 16 << 20


@dataclass(frozen=True)
class Served:
    """A server that a guest reads from; `started` is the process that was started, the front's or `pid` itself."""

    pid: int
    started: int
    read: Callable[[], object]

    def rate(self, count: int) -> float:
        """Reads for each second of the server's processor time."""
        before = cpu_seconds(self.pid)
        times(self.read, count)
        return count / (cpu_seconds(self.pid) - before)


@contextmanager
def served(directory: Path, vmm: Vmm, *before: str) -> Iterator[Served]:
    """A server of a flash drive, read from as by this VMM; `before` stands in front of its options."""
    directory.mkdir()
    image, control = directory / "drive.img", directory / "control.sock"
    with image.open("wb") as file:
        file.truncate(IMAGE)
    options: list[str | Path] = ["--control-path", control, "--device", f"virtual:flash?image={image}&transport=bot"]
    with ServerProcess(directory, options, command=(*COMMAND, *before)) as server:
        server.wait_ready()
        with ControlConnection(control, PATIENCE) as connection:
            pid = int(connection.request("status")["server"]["pid"])
        bus = SocketBus(VfioUserClient.connect(server.socket_path, vmm=vmm, wait=PATIENCE))
        with GuestDriver(bus) as driver:
            disk = MassStorage(driver.enumerate(), pipelined=False)
            blocks = SMALL // 512
            places = iter(range(1 << 30))
            yield Served(pid, server.process.pid, lambda: disk.read(next(places) * blocks % (IMAGE // 512), blocks))
            disk.close()
        bus.close()
        server.terminate()


def measure(
    directory: Path, starts: int = 6, rounds: int = 6, count: int = 200
) -> tuple[list[Comparison], list[Figure]]:
    """As either VMM reads. The servers are started anew a few times, because where a process happens to lie in memory
    makes a difference of its own."""
    comparisons, fronts = [], []
    for vmm in (QEMU, CLOUD_HYPERVISOR):
        comparison = Comparison(f"behind a front, as {vmm.name}", "reads/s")
        for start in range(starts):
            with ExitStack() as stack:
                behind, bare = (
                    stack.enter_context(served(directory / f"{vmm.name}-{name}-{start}", vmm, *before))
                    for name, before in (("front", ("front", "--")), ("bare", ()))
                )
                for each in (behind, bare):
                    times(each.read, count)
                used = cpu_seconds(behind.started)
                for number in range(rounds):
                    order = [(behind, comparison.ours), (bare, comparison.reference)]
                    for each, rates in order if number % 2 else reversed(order):
                        rates.append(each.rate(count))
                fronts.append((cpu_seconds(behind.started) - used) * 1e6)
        comparisons.append(comparison)
    return comparisons, [Figure(f"the front, for {rounds * count} reads", "µs", fronts)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        found, figures = measure(Path(name), *map(int, sys.argv[1:2]))
    print(*(each.line() for each in found), *(each.line() for each in figures), sep="\n")
