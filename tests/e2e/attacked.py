"""A whole server, sandbox and all, with something hostile in one port, and a drive that somebody reads meanwhile."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.bench.measure import cpu_seconds
from tests.e2e.process import ServerProcess
from tests.lab.passing import ask
from tests.lab.replugging import anonymous_kib
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.limits import PATIENCE, eventually, scaled, wait_until
from usbvfiod_core.testing.mass_storage import MassStorage

FAR, NEAR = 3, 9
"""Ports: of what is attacked, and of the drive."""
GROWTH_KIB = 8192
"""Of docs/security.md, as the next one."""
DELAY = 0.010
"""Seconds of the server's processor for which somebody who uses another device waits."""
ROUNDS = 40
LINES = 100


@dataclass(frozen=True)
class Cost:
    """What others notice: seconds of the server's processor for a read of the drive, KiB of its own memory, descriptors
    and lines of the log."""

    median: float
    p99: float
    kib: int
    descriptors: int
    lines: int

    def __str__(self) -> str:
        reads = f"a read {self.median * 1e3:.1f} ms, p99 {self.p99 * 1e3:.1f} ms"
        return f"{reads}; {self.kib} KiB, {self.descriptors} descriptors, {self.lines} lines"


class Attacked:
    """`usbvfiod` with the device of `specification`, called "far", and a drive. `idle` is what it costs before anything
    hostile is done. Leaving `with` ends the server, and fails if it has logged an exception, unless `tracebacks`."""

    def __init__(
        self, directory: Path, specification: str = "", *options: str | Path, tracebacks: bool = False, **given: Any
    ) -> None:
        image = directory / "near.img"
        image.write_bytes(b"".join(number.to_bytes(8, "little") * 64 for number in range(2048)))
        self.control = directory / "control.sock"
        words: list[str | Path] = ["--device", f"virtual:flash?image={image}&name=near&port={NEAR}"]
        if specification:
            mark = "&" if "?" in specification else "?"
            words += ["--device", f"{specification}{mark}name=far&port={FAR}"]
        words += ["--control-path", self.control, *options]
        self.server = ServerProcess(directory, words, tracebacks=tracebacks, **given)
        try:
            self.server.wait_ready()
            self._bus = SocketBus(VfioUserClient.connect(self.server.socket_path, wait=PATIENCE))
        except BaseException:
            self.server.process.kill()
            self.server.process.wait()
            raise
        self.driver = GuestDriver(self._bus).start()
        self._disk = MassStorage(self.driver.enumerate(NEAR))
        self._number = 0
        self.cost()  # what is made when it is used for the first time
        self.idle = self.cost()

    def __enter__(self) -> Attacked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus.close()
        if value is None:
            assert self.server.terminate() == 0
        else:
            value.add_note(f"usbvfiod said:\n{self.server.log[-5000:]}")
        self.server.__exit__(kind, value, trace)

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """The server's answer at its control socket."""
        return ask(self.control, request, **arguments)

    def attachment(self, name: str = "far") -> dict[str, Any]:
        """What the server says of an attachment."""
        [found] = [each for each in self.ask("list")["attachments"] if each["name"] == name]
        return dict(found)

    def take(self) -> UsbDevice:
        """The far device, once the guest has it."""
        wait_until(lambda: self.attachment()["state"] == "plugged", lambda: f"{self.attachment()}: {self.server.log}")
        return self.driver.enumerate(FAR)

    def cost(self, rounds: int = ROUNDS) -> Cost:
        """Read the drive, and say what it cost. What other programs of this machine do is not counted."""
        pid = self.server.process.pid
        seconds = []
        for _ in range(rounds):
            self._number = (self._number + 7) % 2048
            start = cpu_seconds(pid)
            assert bytes(self._disk.read(self._number, 1)) == self._number.to_bytes(8, "little") * 64
            seconds.append(cpu_seconds(pid) - start)
        seconds.sort()
        lines = len(self.server.log.splitlines())
        kib, files = anonymous_kib(pid), self.server.open_files()
        return Cost(seconds[rounds // 2], seconds[rounds * 99 // 100], kib, files, lines)

    def check_delay(self) -> Cost:
        """Others wait no longer than they may, while it goes on."""
        costs: list[Cost] = []

        def soon() -> bool:
            costs.append(self.cost())
            return costs[-1].median < scaled(DELAY)

        assert eventually(soon), [*map(str, costs)]
        assert costs[-1].kib - self.idle.kib < GROWTH_KIB, f"{costs[-1]}; idle: {self.idle}"
        return costs[-1]

    def check(self, *, lines: int = LINES) -> Cost:
        """What it has left behind, once it is over."""
        assert eventually(lambda: self.server.open_files() <= self.idle.descriptors), "descriptors are left"
        cost = self.check_delay()
        assert cost.lines - self.idle.lines < lines, self.server.log
        return cost


@contextmanager
def flood(stream: socket.socket, data: bytes) -> Iterator[None]:
    """Send it again and again, as fast as it is taken, until the other end hangs up."""
    ended = threading.Event()
    block = data * max(1, (1 << 18) // len(data))

    def send(own: socket.socket) -> None:
        own.settimeout(0.2)
        with own, suppress(ConnectionError):
            while not ended.is_set():
                rest = memoryview(block)
                while rest and not ended.is_set():
                    with suppress(TimeoutError):
                        rest = rest[own.send(rest) :]

    thread = threading.Thread(target=send, args=(socket.socket(fileno=os.dup(stream.fileno())),))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
