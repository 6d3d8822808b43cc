"""What it costs a server to be looked at: processor time with scraping or `usbvfiod top`, and without, in turn.

`python -m tests.bench.metrics` prints it. The server has 15 devices that a guest has enumerated and used, and nothing
else to do, so what it takes is for whoever looks, with cold caches each time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.bench.measure import Figure, cpu_seconds
from tests.e2e.process import COMMAND, ServerProcess
from usbvfiod_core.daemon.places import VARIABLE
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage

SCRAPES = 10
"""Scrapes a second."""
SCRAPED, LOOKED_AT = 1.0, 2.0
"""Targets: per cent of a processor."""
_USB2, _USB3 = range(1, 9), range(9, 16)
_READ = 1 << 20


@contextmanager
def served(directory: Path) -> Iterator[tuple[ServerProcess, Path]]:
    """A server with 15 devices that have been used, and its metrics' socket."""
    image, metrics = directory / "drive.img", directory / "metrics.sock"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    specs = [f"virtual:flash?image={image}&readonly=true&port={port}" for port in _USB3]
    specs += [f"virtual:loopback?speed=high&port={port}" for port in _USB2]
    options = [each for spec in specs for each in ("--device", spec)]
    with ServerProcess(directory, ["--metrics", metrics, *options], socket_path=directory / "usb.sock") as server:
        server.wait_ready()
        bus = SocketBus(VfioUserClient.connect(server.socket_path, wait=PATIENCE))
        with closing(bus), GuestDriver(bus) as driver:
            for port in _USB2:
                driver.enumerate(port)
            for port in _USB3:
                disk = MassStorage(driver.enumerate(port))
                for block in range(50):
                    disk.read(block, 8)
            yield server, metrics


def scrape(path: Path, seconds: float) -> int:
    """Ask over one connection, SCRAPES times a second; how many bytes were read."""
    count, due = 0, time.monotonic()
    end = due + seconds
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        while due < end:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            data = connection.recv(_READ)
            length = int(data.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            wanted = data.index(b"\r\n\r\n") + 4 + length
            while len(data) < wanted:
                data += connection.recv(_READ)
            count += len(data)
            due += 1 / SCRAPES
            time.sleep(max(due - time.monotonic(), 0))
    return count


def top(seconds: float) -> None:
    """`usbvfiod top`, once a second."""
    with subprocess.Popen([*COMMAND, "top", "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.terminate()
        process.stdout.read()


def measure(directory: Path, rounds: int = 7, seconds: float = 2.0) -> list[Figure]:
    """Per cent of a processor that the server takes more than without, with each in turn."""
    os.environ[VARIABLE] = str(directory / "place")
    (directory / "place").mkdir(mode=0o700)
    scraped: list[float] = []
    looked_at: list[float] = []
    with served(directory) as (server, metrics):

        def taken(work: Callable[[], object]) -> float:
            before, started = cpu_seconds(server.process.pid), time.monotonic()
            work()
            return 100 * (cpu_seconds(server.process.pid) - before) / (time.monotonic() - started)

        assert scrape(metrics, 0.1)
        for _ in range(rounds):
            idle = taken(lambda: time.sleep(seconds))
            scraped.append(taken(lambda: scrape(metrics, seconds)) - idle)
            idle = taken(lambda: time.sleep(seconds))
            looked_at.append(taken(lambda: top(seconds)) - idle)
    return [
        Figure(f"15 devices, metrics scraped {SCRAPES} times a second", "%", scraped, SCRAPED),
        Figure("15 devices, usbvfiod top", "%", looked_at, LOOKED_AT),
    ]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        for figure in measure(Path(name)):
            print(figure.line())


if __name__ == "__main__":
    main()
