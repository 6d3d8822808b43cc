"""What it costs a server to be looked at: processor time with scraping, `usbvfiod top` or the page of `usbvfiod web`,
and without, in turn.

`python -m tests.bench.metrics` prints it. The server has 15 devices; of those that are busy each moves data ten times a
second, just before it is scraped. So the server comes to all of it with cold caches each time.
"""

from __future__ import annotations

import http.cookiejar
import os
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

from tests.bench.measure import Figure, cpu_seconds
from tests.e2e.process import COMMAND, ServerProcess
from usbvfiod_core.daemon.places import VARIABLE
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage

PACE = 10
"""Scrapes a second, and how often a busy device moves data."""
SCRAPED, LOOKED_AT = 1.0, 2.0
"""Targets: per cent of a processor."""
_USB2, _USB3 = range(1, 9), range(9, 16)
_READ = 1 << 20

Act = Callable[[], object]


class Served(NamedTuple):
    """A server's process, its metrics' socket, and for each device what keeps it busy."""

    pid: int
    metrics: Path
    uses: list[Act]


@contextmanager
def served(directory: Path) -> Iterator[Served]:
    """A server with 15 devices that have been used."""
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
            uses: list[Act] = []
            for port in _USB3:
                disk = MassStorage(driver.enumerate(port))
                for block in range(50):
                    disk.read(block, 8)
                uses.append(partial(disk.read, 1, 8))
            for port in _USB2:
                uses.append(partial(driver.enumerate(port).bulk_in, 0x81, 512))
            yield Served(server.process.pid, metrics, uses)


def paced(seconds: float, acts: list[Act]) -> None:
    """Do all that, PACE times a second."""
    due = time.monotonic()
    end = due + seconds
    while due < end:
        for act in acts:
            act()
        due += 1 / PACE
        time.sleep(max(due - time.monotonic(), 0))


@contextmanager
def scraping(path: Path) -> Iterator[list[Act]]:
    """Scrapes, over one connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))

        def scrape() -> None:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            data = connection.recv(_READ)
            length = int(data.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            wanted = data.index(b"\r\n\r\n") + 4 + length
            while len(data) < wanted:
                data += connection.recv(_READ)

        yield [scrape]


@contextmanager
def top() -> Iterator[list[Act]]:
    """`usbvfiod top`, once a second."""
    with subprocess.Popen([*COMMAND, "top", "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        yield []
        process.terminate()
        reader.join()


@contextmanager
def page() -> Iterator[list[Act]]:
    """The page of `usbvfiod web`, in a browser that keeps it open."""
    with subprocess.Popen([*COMMAND, "web"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        with browser.open(address, timeout=PATIENCE) as opened:
            events = urljoin(opened.geturl(), "/events")
        with browser.open(events, timeout=PATIENCE) as stream:
            stream.readline()
            reader = threading.Thread(target=stream.read)
            reader.start()
            yield []
            process.terminate()
            reader.join()


def percent(pid: int, seconds: float, acts: list[Act]) -> float:
    """The part of a processor that a process takes while all that is done."""
    before, started = cpu_seconds(pid), time.monotonic()
    paced(seconds, acts)
    return 100 * (cpu_seconds(pid) - before) / (time.monotonic() - started)


def measure(directory: Path, rounds: int = 7, seconds: float = 3.0) -> list[Figure]:
    """Per cent of a processor that the server takes more than without, with each in turn."""
    os.environ[VARIABLE] = str(directory / "place")
    (directory / "place").mkdir(mode=0o700)
    with served(directory) as server:
        kinds: list[tuple[int, str, Callable[[], AbstractContextManager[list[Act]]], float]] = [
            (1, "metrics scraped", lambda: scraping(server.metrics), SCRAPED),
            (15, "metrics scraped", lambda: scraping(server.metrics), SCRAPED),
            (15, "usbvfiod top", top, LOOKED_AT),
            (15, "the page of usbvfiod web", page, LOOKED_AT),
        ]
        taken: list[list[float]] = [[] for _ in kinds]
        for _ in range(rounds):
            for (busy, _, looking, _), found in zip(kinds, taken, strict=True):
                uses = server.uses[:busy]

                without = percent(server.pid, seconds, uses)
                with looking() as acts:
                    found.append(percent(server.pid, seconds, [*uses, *acts]) - without)
    return [
        Figure(f"15 devices, {busy} busy, {name}", "%", found, target)
        for (busy, name, _, target), found in zip(kinds, taken, strict=True)
    ]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        for figure in measure(Path(name)):
            print(figure.line())


if __name__ == "__main__":
    main()
