"""A server is killed in the middle of anything, and the next one goes on with the same client: with what was held of
the first, its state file, and the guest's memory."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.e2e.mortal_server import PORT, STATE
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU, Vmm
from usbvfiod_core.xhci import spec

BULK_IN = 0x81
RESTART = 10 * PATIENCE
"""Seconds in which a server is started and answers, on a machine that has other things to do."""
COUNTED = bytes(place % 1024 % 63 for place in range(4096))


class Keeper:
    """What the servers have had kept, and the server that runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: dict[str, int] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self.start()

    def start(self) -> None:
        """Start a server with what is held."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            words = [sys.executable, "-m", "tests.e2e.mortal_server", str(self.path), str(other.fileno())]
            self.process = subprocess.Popen(words, pass_fds=[other.fileno()])
        self._sock = own
        socket.send_fds(own, [json.dumps(list(self.held)).encode()], list(self.held.values()))
        before = self.held.get(STATE)
        while self.held.get(STATE) == before:
            self._hear(PATIENCE)

    def kill(self) -> None:
        """End it as nothing ends by itself, and hear what it has said before."""
        assert self.process is not None
        assert self._sock is not None
        self.process.kill()
        self.process.wait()
        while self._hear(0.0):
            pass
        self._sock.close()

    def drain(self) -> None:
        """Hear what there is."""
        while self._hear(0.0):
            pass

    def close(self) -> None:
        self.kill()
        for fd in self.held.values():
            os.close(fd)

    def _hear(self, timeout: float) -> bool:
        assert self._sock is not None
        self._sock.settimeout(timeout)
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, 4)
        except (BlockingIOError, TimeoutError):
            return False
        if not data:
            assert not timeout, "the server has ended by itself"
            return False
        what, name = json.loads(data)
        old = self.held.pop(name, None)
        if old is not None:
            os.close(old)
        if what == "store":
            (self.held[name],) = fds
        return True


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "usb.sock")
    yield made
    made.close()


def read(usb: UsbDevice, count: int = 1) -> None:
    """Read what the device counts."""
    for _ in range(count):
        td = usb.pipe(BULK_IN).submit(length=len(COUNTED))
        td.wait()
        assert td.data == COUNTED


def is_there(driver: GuestDriver, usb: UsbDevice) -> bool:
    """Read once more; False if the device goes instead, when nothing comes of what is in flight."""
    port = driver.port(PORT)
    td = usb.pipe(BULK_IN).submit(length=len(COUNTED))

    def gone() -> bool:
        return bool(port.portsc & spec.PORTSC_CSC)  # it may be back, and a port of USB 3 is enabled then

    driver.wait_until(lambda: td.done or gone(), "neither data comes nor the device goes", RESTART)
    if gone():
        return False
    assert td.data == COUNTED
    return True


def found(driver: GuestDriver) -> UsbDevice:
    """The device, as soon as it is there."""
    port = driver.port(PORT)
    wait_until(lambda: (driver.handle_events(), port.connected)[1], "no device comes", RESTART)
    return driver.enumerate(PORT)


@pytest.mark.parametrize("vmm", [QEMU, CLOUD_HYPERVISOR], ids=lambda vmm: vmm.name)
def test_a_killed_server_is_followed_by_another(keeper: Keeper, vmm: Vmm) -> None:
    kills(keeper, vmm, 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("vmm", [QEMU, CLOUD_HYPERVISOR], ids=lambda vmm: vmm.name)
def test_a_server_is_killed_a_hundred_times(keeper: Keeper, vmm: Vmm) -> None:
    kills(keeper, vmm, 100)


def kills(keeper: Keeper, vmm: Vmm, count: int) -> None:
    numbers = random.Random(count)
    client = VfioUserClient.connect(keeper.path, vmm=vmm, timeout=RESTART)
    bus = SocketBus(client)
    driver = GuestDriver(bus).start()
    usb = found(driver)
    for _ in range(count):
        read(usb)
        thread = Thread(target=kill_later, args=(keeper, numbers.random() * 0.05))
        thread.start()
        while thread.is_alive() and is_there(driver, usb):
            pass
        thread.join()
        driver.handle_events()
        usb.disable()
        usb = found(driver)
        read(usb, 3)
    keeper.drain()
    files = {"memory-1", "client", STATE, *(f"irq-2-{vector}" for vector in range(8))}
    assert set(keeper.held) == files | ({"page"} if vmm.maps else set())
    bus.close()


def kill_later(keeper: Keeper, seconds: float) -> None:
    time.sleep(seconds)  # a random moment is what is wanted
    keeper.kill()
    keeper.start()
