"""A server process, sandbox and all, whose device is at a server in Python: it goes away in the middle of transfers and
comes back, and a hostile one costs its own device only."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.upgrade_rig import Upgradable
from tests.lab.passing import ask
from tests.lab.replugging import gone
from tests.lab.usbip import Server, Urb
from tests.lab.usbip_devices import INTERRUPT_IN, SourceSink
from tests.lab.usbip_exporter import Exporter, Reset, virtual_keyboard
from usbvfiod_core import Speed
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.virtual.flash import Flash
from usbvfiod_core.virtual.image import Image

CHUNK = 16384
BLOCK, BLOCKS = 512, 2048


class Served:
    """A server and a guest's driver."""

    def __init__(self, directory: Path, *devices: str) -> None:
        self._control = directory / "control.sock"
        words = [word for device in devices for word in ("--device", device)]
        self.process = ServerProcess(directory / "usb.sock", [*words, "--control-path", str(self._control)])
        self.bus = self.process.connect()
        self.driver = GuestDriver(self.bus).start()

    def attachments(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return {each["name"]: each for each in ask(self._control, "list")["attachments"]}

    def close(self) -> None:
        self.bus.close()
        with self.process:
            pass


@contextmanager
def served(directory: Path, *devices: str) -> Iterator[Served]:
    made = Served(directory, *devices)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.long)])
def test_it_comes_back_to_its_port(tmp_path: Path, times: int) -> None:
    with (
        Exporter({"1-1": SourceSink}) as exporter,
        served(tmp_path, f"usbip:{exporter.host}/1-1?name=far&port=3") as server,
    ):
        for _ in range(times):
            device = server.driver.enumerate(3)
            reads = [device.submit_in(0x81, CHUNK) for _ in range(4)]
            assert len(reads[0].result()) == CHUNK
            exporter.server.disconnect()
            gone(device)
        wait_until(lambda: server.attachments()["far"]["state"] == "plugged", "it is not back")


class Reports(SourceSink):
    """Has a report for each transfer, when `say` says so; as at Linux's server, one that is taken back is gone."""

    last: Reports

    def __init__(self) -> None:
        super().__init__()
        Reports.last = self
        self.waiting: deque[tuple[Urb, Server]] = deque()
        self.lost = 0

    def submit(self, urb: Urb, server: Server) -> None:
        if urb.address == INTERRUPT_IN:
            self.waiting.append((urb, server))
        else:
            super().submit(urb, server)

    def unlinked(self, urb: Urb) -> None:
        self.lost += 1

    def say(self, number: int) -> None:
        urb, server = self.waiting.popleft()
        server.complete(urb, number.to_bytes(8, "big"))


def test_no_report_gets_lost_when_the_server_is_replaced(tmp_path: Path) -> None:
    with (
        Exporter({"1-1": Reports}) as exporter,
        Upgradable(tmp_path, ["--device", f"usbip:{exporter.host}/1-1?name=far&port=3"]) as rig,
        closing(SocketBus(VfioUserClient.connect(rig.server.socket_path, wait=PATIENCE))) as bus,
    ):
        wait_until(lambda: "(usbip:" in rig.server.log, "it is not plugged in")
        device = GuestDriver(bus).start().enumerate(3)
        queued = deque(device.submit_in(INTERRUPT_IN, 8) for _ in range(4))
        said = 0
        read: list[int] = []

        def all_read() -> bool:
            device.driver.handle_events()
            while queued[0].done:
                read.append(int.from_bytes(queued.popleft().result(), "big"))
                queued.append(device.submit_in(INTERRUPT_IN, 8))
            return len(read) >= said

        with ThreadPoolExecutor(1) as executor:
            trying = executor.submit(rig.upgrade)
            while not trying.done():
                if Reports.last.waiting:
                    said += 1
                    Reports.last.say(said)
                all_read()
                wait([trying], 0.01)
            trying.result()
        wait_until(all_read, lambda: f"of {said} reports came {read}")
        assert read == list(range(1, said + 1))
        assert Reports.last.lost == 0
        assert said > 10


class SlowDrive(Reset):
    """A drive that takes its transfers one after the other, some after a second. As Linux says nothing of what one has
    moved that is taken back, and may move it all the same, so does this."""

    last: SlowDrive

    def __init__(self, image: Path) -> None:
        image.write_bytes(bytes(BLOCK * BLOCKS))
        super().__init__(lambda loop: Flash(Image(str(image)), loop, speed=Speed.HIGH))
        SlowDrive.last = self
        self.taken_back = 0
        self._chance = random.Random(4)
        self._queue: deque[tuple[Urb, Server]] = deque()
        self._busy = False

    def submit(self, urb: Urb, server: Server) -> None:
        if not urb.address & 0x7F:
            super().submit(urb, server)
        else:
            self._queue.append((urb, server))
            self._next()

    def unlinked(self, urb: Urb) -> None:
        self.taken_back += 1

    def _next(self) -> None:
        if self._queue and not self._busy:
            self._busy = True
            slow = self._chance.random() < 0.3
            server = self._queue[0][1]
            server.call_at(time.monotonic() + (1.2 * self._chance.random() if slow else 0.001), self._take)

    def _take(self) -> None:
        super().submit(*self._queue.popleft())
        self._busy = False
        self._next()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_slow_drive_has_everything_once(tmp_path: Path) -> None:
    names = itertools.count()
    with (
        Exporter({"1-1": lambda: SlowDrive(tmp_path / f"image{next(names)}")}) as exporter,
        Upgradable(tmp_path, ["--device", f"usbip:{exporter.host}/1-1?name=far&port=3"]) as rig,
        closing(SocketBus(VfioUserClient.connect(rig.server.socket_path, wait=PATIENCE, timeout=10 * PATIENCE))) as bus,
    ):
        wait_until(lambda: "(usbip:" in rig.server.log, "it is not plugged in")
        drive = MassStorage(GuestDriver(bus).start().enumerate(3), pipelined=False)
        chance, content = random.Random(1), bytearray(BLOCK * BLOCKS)
        for _ in range(12):
            with ThreadPoolExecutor(1) as executor:
                trying = executor.submit(rig.upgrade, "--wait", str(10 * PATIENCE))
                while not trying.done():
                    start, count = chance.randrange(BLOCKS - 128), chance.randrange(1, 128)
                    data = chance.randbytes(count * BLOCK)
                    drive.write(start, data)
                    content[start * BLOCK : start * BLOCK + len(data)] = data
                    at = chance.randrange(BLOCKS - 64)
                    assert bytes(drive.read(at, 64)) == content[at * BLOCK : (at + 64) * BLOCK]
                trying.result()
        assert bytes(drive.read(0, BLOCKS)) == content
        assert SlowDrive.last.taken_back == 0


def test_it_waits_for_its_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    with served(tmp_path, f"usbip:127.0.0.1:{port}/1-1?name=far", "virtual:keyboard?name=near") as server:
        states = server.attachments()
        assert (states["far"]["state"], states["near"]["state"]) == ("waiting", "plugged")
        assert states["far"]["reason"] == f"127.0.0.1:{port}: Connection refused"
        with Exporter({"1-1": virtual_keyboard}, port=port):
            wait_until(lambda: server.attachments()["far"]["state"] == "plugged", "it is not plugged in")


def test_a_hostile_server_costs_its_own_device(tmp_path: Path) -> None:
    """It imports as it should, and then sends answers to nothing."""
    hostile = Exporter({"1-1": SourceSink})
    with hostile, served(tmp_path, f"usbip:{hostile.host}/1-1?name=far&port=3", "virtual:keyboard?name=near") as server:
        device = server.driver.enumerate(3)
        assert len(device.submit_in(0x81, CHUNK).result()) == CHUNK
        hostile.devices.clear()
        threading.Thread(target=hostile.server._connection.sendall, args=(b"\xff" * 4800,)).start()
        gone(device)
        wait_until(lambda: server.attachments()["far"]["state"] == "waiting", "it does not wait")
        assert server.attachments()["near"]["state"] == "plugged"
        wait_until(lambda: "does not keep to the protocol" in server.process.output, "it is not said why")
