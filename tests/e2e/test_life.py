"""A server's life: serving, clients that come and go, signals in the middle of a transfer, and what it costs."""

from __future__ import annotations

import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from random import random

import pytest

from tests.e2e.conftest import Serve
from usbvfiod_core import UsbvfiodError
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.testing.mass_storage import MassStorage

MEBIBYTE = 1 << 20


def block(number: int) -> bytes:
    """What the fixture `image` has in a block."""
    return number.to_bytes(8, "little") * 64


def test_a_drive_is_served(serve: Serve, image: Path) -> None:
    server = serve("--device", f"virtual:flash?image={image}")
    with server.guest() as driver:
        disk = MassStorage(driver.enumerate())
        assert disk.read_capacity() == (8 * 2048, 512)
        assert bytes(disk.read(77, 2)) == block(77) + block(78)
        disk.write(5, b"\xa5" * 512)
        disk.synchronize_cache()
    assert image.read_bytes()[4 * 512 : 7 * 512] == block(4) + b"\xa5" * 512 + block(6)
    assert server.terminate() == 0
    assert not server.socket_path.exists()
    assert server.errors == []


def test_interrupts_are_those_that_are_offered(serve: Serve, image: Path) -> None:
    server = serve("--interrupts", "intx,msi", "--device", f"virtual:flash?image={image}")
    for mechanism in (Mechanism.INTX, Mechanism.MSI):
        with server.guest(mechanism) as driver:
            assert bytes(MassStorage(driver.enumerate()).read(77, 2)) == block(77) + block(78)
            assert driver.lost_interrupts == 0
    with VfioUserClient.connect(server.socket_path, wait=PATIENCE) as client:
        assert [client.irq_info(index).count for index in range(5)] == [1, 8, 0, 0, 0]


def test_several_devices_take_ports_in_order_and_the_pinned_one_first(serve: Serve, image: Path) -> None:
    server = serve(
        "--backend=virtual",
        "--device=keyboard",
        f"--device=flash?image={image}&readonly=true",
        "--device=loopback?port=9",
        "--device=keyboard?port=1",
    )
    with server.guest() as driver:
        found = {port.port_id: driver.enumerate(port.port_id) for port in driver.connected_ports()}
    products = {port_id: usb.descriptor.product_id for port_id, usb in found.items() if usb.descriptor}
    keyboard, flash, loopback = 2, 0x11, 0xA4A0
    assert products == {1: keyboard, 2: keyboard, 9: loopback, 10: flash}


@pytest.mark.parametrize("how", ["closed", "halted"])
def test_a_client_that_comes_back_finds_its_devices(how: str, serve: Serve, image: Path) -> None:
    server = serve("--device", f"virtual:flash?image={image}")
    files = server.open_files()
    for turn in range(6):
        with server.guest() as driver:
            disk = MassStorage(driver.enumerate())
            assert driver.devices[1].port.port_id == 9
            if turn:
                assert bytes(disk.read(turn, 1)) == bytes([turn]) * 512
            disk.write(turn + 1, bytes([turn + 1]) * 512)
            if how == "halted":
                driver.halt()
        # Its sockets, its eventfds and the last view of its memory: all of it is let go.
        server.wait_for(lambda: server.open_files() == files)
    server.wait_for(lambda: server.log.count("the client has disconnected") == 6)
    assert server.errors == []


def test_a_second_client_is_turned_away_and_the_first_is_served_on(serve: Serve, image: Path) -> None:
    server = serve("--device", f"virtual:flash?image={image}")
    with server.guest() as driver:
        disk = MassStorage(driver.enumerate())
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as second:
                second.connect(str(server.socket_path))
                second.settimeout(PATIENCE)
                assert second.recv(1) == b""
            assert bytes(disk.read(9, 1)) == block(9)


def test_a_listening_descriptor(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "mine.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        server = serve("--fd", str(fd), "--device", "virtual:keyboard", pass_fds=[fd], socket_path=path)
    for _ in range(2):
        with server.guest() as driver:
            assert driver.enumerate().port.port_id == 1
    assert server.terminate() == 0
    assert path.exists()  # not the server's own


def test_a_connected_descriptor_and_the_end_of_it(serve: Serve) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        server = serve("--fd", str(fd), "--device", "virtual:keyboard", pass_fds=[fd])
    bus = SocketBus(VfioUserClient(ours))
    with GuestDriver(bus) as driver:
        assert driver.enumerate().port.port_id == 1
    bus.close()
    assert server.wait() == 0
    assert server.errors == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server(number: signal.Signals, serve: Serve) -> None:
    server = serve("--device", "virtual:keyboard")
    assert server.terminate(number) == 0
    assert not server.socket_path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_writing(number: signal.Signals, serve: Serve, image: Path) -> None:
    """What was acknowledged is in the image, every block is old or new as a whole, and the exit code is 0."""
    server = serve("--device", f"virtual:flash?image={image}")
    acknowledged = 0
    blocks = 256

    def interrupt() -> None:
        assert eventually(lambda: acknowledged > 9, pace=0.001)
        time.sleep(random() * 0.01)  # at any time of a write
        server.process.send_signal(number)

    with server.guest() as driver:
        disk = MassStorage(driver.enumerate())
        stop = threading.Thread(target=interrupt)
        stop.start()
        try:
            while True:
                disk.write((acknowledged * blocks) % (8 * 2048), bytes([acknowledged % 251 + 1]) * 512 * blocks)
                acknowledged += 1
        except (UsbvfiodError, OSError):
            pass  # the server has gone
        stop.join()
        assert server.wait() == 0
    assert acknowledged > 9
    assert not server.socket_path.exists()
    data = image.read_bytes()
    assert len(data) == 8 * MEBIBYTE
    for turn in range(max(acknowledged - 60, 0), acknowledged):  # the image holds 64 of these writes
        at = turn * blocks * 512 % len(data)
        assert data[at : at + blocks * 512] == bytes([turn % 251 + 1]) * 512 * blocks
    assert server.errors == []


def test_a_signal_while_transfers_wait_for_ever(serve: Serve) -> None:
    """A keyboard's interrupt transfer is in flight, and will never complete."""
    server = serve("--device", "virtual:keyboard", "--device", "virtual:loopback")
    with server.guest() as driver:
        for port in driver.connected_ports():
            usb = driver.enumerate(port.port_id)
            for interface in usb.configuration.interfaces if usb.configuration else ():
                for endpoint in interface.endpoints:
                    if endpoint.address & 0x80 and endpoint.attributes & 3 == 3:
                        usb.submit_in(endpoint.address, 8)
        assert server.terminate() == 0
    assert not server.socket_path.exists()
    assert server.errors == []


def test_a_client_killed_in_the_middle_of_transfers(serve: Serve, image: Path) -> None:
    server = serve("--device", f"virtual:flash?image={image}", "--device", "virtual:keyboard")
    for turn in range(10):
        with server.guest() as driver:
            for port in driver.connected_ports():
                usb = driver.enumerate(port.port_id)
                if port.port_id == 9:
                    disk = MassStorage(usb)
                    disk.write(turn, bytes([turn]) * 512)
                    usb.submit_in(disk.device.interface(0).endpoints[0].address, 512)
                else:
                    usb.submit_in(0x81, 8)
    with server.guest() as driver:
        disk = MassStorage(driver.enumerate(9))
        assert [disk.read(turn, 1)[0] for turn in range(10)] == list(range(10))
    assert server.errors == []


def test_readiness_is_announced(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        server = serve("--device", "virtual:keyboard", environment={"NOTIFY_SOCKET": str(path)})
        assert manager.recv(100) == b"READY=1"
        assert server.terminate() == 0
        assert manager.recv(100) == b"STOPPING=1"


# -- what it costs; tests/bench has the budgets --------------------------------------------------------------------


@pytest.mark.parametrize("connected", [False, True])
def test_an_idle_server_sleeps(connected: bool, serve: Serve, image: Path) -> None:
    """Once all is done that a client gave it to do, it does not wake up by itself."""
    server = serve("--device", f"virtual:flash?image={image}", "--device", "virtual:keyboard")

    def sleeps() -> bool:
        before = server.status("voluntary_ctxt_switches")
        time.sleep(1)
        return server.status("voluntary_ctxt_switches") == before

    with ExitStack() as stack:
        if connected:
            driver = stack.enter_context(server.guest())
            driver.enumerate(9)
            driver.enumerate(1).submit_in(0x81, 8)
        server.wait_for(sleeps)
