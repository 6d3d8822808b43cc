"""A client that truncates the guest's memory at random moments, while every kind of transfer runs.

The server is a process of its own: it is still there, with all its devices, and has logged nothing but that the client
was dropped.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core import sigbus
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.limits import PATIENCE, eventually, scaled
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.testing.uas import UasClient

MEGABYTES = 4
MOMENT = 0.012
"""Seconds after the enumeration within which the memory is truncated."""
FAILURES = (UsbvfiodError, OSError, ValueError, KeyError, IndexError)
EXPECTED = (
    "is plugged into port",
    "serving on",
    "sandbox: ",
    "has connected",
    "has disconnected",
    "was dropped: it has truncated",
    "host system error",
    "the guest's transfers fail",
    "TRB error",
    "the guest sends what is not understood",
)

pytestmark = pytest.mark.skipif(
    sigbus.handler(os.uname().machine, 0) is None, reason="only sealed memory is safe on this processor"
)


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """The other ends of the network and the serial port, which say something all the time once they are started."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "network"))
    listener.listen(4)
    listener.settimeout(0.1)
    stop = threading.Event()

    def talk() -> None:
        peers: list[socket.socket] = []
        tty = os.open(tmp_path / "tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        frame = b"\xff" * 12 + bytes(500)
        while not stop.wait(0.002):
            with contextlib.suppress(OSError):
                os.write(tty, b"serial" * 10)
                os.read(tty, 4096)
            with contextlib.suppress(OSError):
                if not peers:
                    peers.append(listener.accept()[0])
                    peers[0].setblocking(False)
                peers[0].send(len(frame).to_bytes(4, "big") + frame)
                peers[0].recv(1 << 16)
        os.close(tty)
        for peer in peers:
            peer.close()

    thread = threading.Thread(target=talk)
    yield thread.start
    stop.set()
    thread.join()
    listener.close()


@pytest.fixture
def server(tmp_path: Path, talker: Callable[[], None]) -> Iterator[ServerProcess]:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    wav = tmp_path / "capture.wav"
    devices = [
        f"virtual:flash?image={image}&readonly=true",
        f"virtual:flash?image={image}&readonly=true&transport=uas",
        f"virtual:flash?image={image}&readonly=true&speed=high",
        "virtual:keyboard",
        "virtual:loopback",
        "virtual:loopback?speed=high",
        f"virtual:audio?playback={wav}",
        f"virtual:serial?link={tmp_path / 'tty'}",
        f"virtual:network?socket={tmp_path / 'network'}",
    ]
    options = [word for device in devices for word in ("--device", device)]
    with ServerProcess(tmp_path / "socket", [*options, "--no-control", "--sandbox=auto"]) as server:
        assert eventually((tmp_path / "tty").exists)
        talker()
        yield server


class Client:
    """One client: a guest that uses one device, and the moment at which its memory is truncated."""

    def __init__(self, server: ServerProcess, choice: random.Random) -> None:
        self.choice = choice
        self.ram = GuestRam([(0x10_0000, MEGABYTES << 20)], sealed=False)
        guard = sigbus.guard()
        assert guard is not None
        guard.protect(self.ram._map, 4096)  # this process has it mapped as well
        self.bus = SocketBus(VfioUserClient.connect(server.path, wait=PATIENCE), self.ram)
        self.driver = GuestDriver(self.bus, timeout=scaled(0.1))

    def run(self) -> bool:
        """Whether the memory was truncated while transfers were in flight, and not before."""
        choice, truncated = self.choice, threading.Event()

        def truncate() -> None:
            os.ftruncate(self.ram.fd, choice.choice((0, 0, choice.randrange(MEGABYTES << 8) << 12)))
            if choice.random() < 0.2:
                os.ftruncate(self.ram.fd, MEGABYTES << 20)
            truncated.set()

        timer = threading.Timer(choice.random() * MOMENT, truncate)
        in_flight = False
        try:
            device = self._enumerate()
            timer.start()
            in_flight = True
            while not truncated.is_set():
                with contextlib.suppress(*FAILURES):  # the device may be of another kind, or halted
                    choice.choice(USES)(device, choice)
            self._stay()
        except FAILURES:
            pass  # a guest without memory does not go far
        if in_flight:
            timer.join()
        self.bus.close()
        return in_flight

    def _enumerate(self) -> UsbDevice:
        self.driver.start()
        ports = [number for number in range(1, 16) if self.driver.port(number).connected]
        return self.driver.enumerate(self.choice.choice(ports))

    def _stay(self) -> None:
        """Let the devices go on for a moment."""
        deadline = time.monotonic() + 0.003
        while time.monotonic() < deadline:
            self.bus.read(0x2000)  # fails when the server has noticed
            with contextlib.suppress(*FAILURES):
                self.driver.handle_events()


def fill_all(device: UsbDevice, choice: random.Random) -> None:
    """Transfers of any length on every endpoint, alternate settings with isochronous ones first."""
    interfaces = [each for each in device.configuration.interfaces if each.endpoints] if device.configuration else []
    if interfaces and choice.random() < 0.1:
        chosen = choice.choice(interfaces)
        device.set_interface(chosen.number, chosen.alternate)
    for address in list(device.pipes):
        pipe = device.pipe(address)
        if address == 0 or len(pipe.queue) > 6:
            continue
        length = choice.choice((0, 1, 8, 31, 64, 512, 4096, 65536))
        if hasattr(pipe, "payload_max"):
            length = min(length, pipe.payload_max)
        if pipe.is_in:
            pipe.submit(length=length, scatter=choice.random() < 0.3)
        else:
            pipe.submit(bytes(length), scatter=choice.random() < 0.3)


def read_blocks(device: UsbDevice, choice: random.Random) -> None:
    storage = MassStorage(device, buffer_size=1 << 18)
    for _ in range(3):
        storage.read(choice.randrange(8000), choice.choice((1, 8, 300)))


def read_blocks_by_uas(device: UsbDevice, choice: random.Random) -> None:
    uas = UasClient(device, streams=8)
    for _ in range(8):
        uas.submit(b"\x28\0" + choice.randrange(8000).to_bytes(4, "big") + b"\0\0\x40\0" + bytes(6), 64 * 512)


def ask_endpoint_0(device: UsbDevice, choice: random.Random) -> None:
    device.get_descriptor(choice.choice((1, 2, 3)), 0, choice.choice((8, 64, 4096)))


USES: list[Callable[[UsbDevice, random.Random], None]] = [
    fill_all,
    fill_all,
    read_blocks,
    read_blocks_by_uas,
    ask_endpoint_0,
]


def truncate_often(server: ServerProcess, times: int, seed: int) -> None:
    choice = random.Random(seed)
    hits = 0
    for _ in range(times):
        hits += Client(server, choice).run()
        assert server.process.poll() is None, f"ended with {server.process.returncode}: {server.output}"
    assert hits > times // 2
    strange = [line for line in server.output.splitlines() if not any(known in line for known in EXPECTED)]
    assert not strange, strange[:20]


def test_the_server_lives(server: ServerProcess) -> None:
    truncate_often(server, 20, 1)


@pytest.mark.long
def test_the_server_lives_long(server: ServerProcess) -> None:
    for seed in range(5):
        truncate_often(server, 1000, seed)
