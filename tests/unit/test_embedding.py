"""Devices that somebody else's asyncio program serves, with a guest's driver behind the socket."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest

from usbvfiod_core import ConfigError, DeviceError, Speed, Transfer
from usbvfiod_core import embedding as embedding_module
from usbvfiod_core.embedding import UsbServer, serve
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.fake_device import BULK_IN, FakeDevice
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.virtual import VirtualBackend

ROOT = Path(__file__).resolve().parents[2]


def driving(path: Path, drive: Callable[[GuestDriver], Any]) -> Any:
    """What `drive` gives with a driver behind a connection of its own; it blocks."""
    bus = SocketBus(VfioUserClient.connect(path))
    try:
        return drive(GuestDriver(bus).start())
    finally:
        bus.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_guest_reads_from_a_device(tmp_path: Path) -> None:
    path = tmp_path / "usb.sock"
    fake = FakeDevice()
    fake.answers(BULK_IN, b"from a program of one's own")

    async def main() -> None:
        async with serve(path) as server:
            assert server.plug(fake) == 1
            assert server.devices == {1: fake}
            got = await asyncio.to_thread(driving, path, lambda driver: driver.enumerate().bulk_in(BULK_IN, 64))
            assert got == b"from a program of one's own"
        assert not path.exists()

    asyncio.run(main())
    assert fake.closed


def test_plugging_and_unplugging_while_a_guest_runs(tmp_path: Path) -> None:
    path = tmp_path / "usb.sock"

    async def main() -> None:
        async with serve(path) as server:
            bus = await asyncio.to_thread(lambda: SocketBus(VfioUserClient.connect(path)))
            driver = await asyncio.to_thread(lambda: GuestDriver(bus).start())
            await eventually(lambda: server.client is not None)
            fake = FakeDevice(speed=Speed.SUPER)
            port = server.plug(fake, 9)
            usb = await asyncio.to_thread(driver.enumerate)
            assert usb.port.port_id == port == 9
            await server.unplug(port)
            assert fake.closed
            assert server.devices == {}
            await asyncio.to_thread(usb.port.wait_disconnected)
            await server.unplug(port)  # nothing is there
            bus.close()
            await eventually(lambda: server.client is None)

    asyncio.run(main())


def test_the_programs_loop_serves_two_vms_and_everything_is_on_its_thread(tmp_path: Path) -> None:
    threads = set()

    class Told(FakeDevice):
        def __init__(self, product: str) -> None:
            self.product = product
            super().__init__()

        def submit(self, transfer: Transfer) -> None:
            threads.add(get_ident())
            super().submit(transfer)

    async def main() -> None:
        paths = [tmp_path / "one", tmp_path / "two"]
        async with serve(paths[0]) as one, serve(paths[1]) as two:
            one.plug(Told("One"))
            two.plug(Told("Two"))
            names = await asyncio.gather(
                *(asyncio.to_thread(driving, path, lambda driver: driver.enumerate().get_string(2)) for path in paths)
            )
            assert names == ["One", "Two"]
        assert threads == {get_ident()}

    asyncio.run(main())


def test_a_device_of_a_backend_with_work_in_threads(tmp_path: Path) -> None:
    image = tmp_path / "stick.img"
    image.write_bytes(b"\x55" * (1 << 20))
    path = tmp_path / "usb.sock"

    async def main() -> None:
        async with serve(path) as server:
            server.plug(open_device(VirtualBackend(), "flash", {"image": str(image)}, server.loop))
            configurations = await asyncio.to_thread(driving, path, lambda driver: driver.enumerate().configurations)
            assert configurations[0].interfaces[0].class_code == 8

    asyncio.run(main())


def test_a_connected_socket_that_was_handed_down() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        async with serve(fd=ours.detach()) as server:
            server.plug(FakeDevice())

            def drive() -> str:
                bus = SocketBus(VfioUserClient(theirs))
                try:
                    return GuestDriver(bus).start().enumerate().get_string(2)
                finally:
                    bus.close()

            assert await asyncio.to_thread(drive) == "Fake device"

    asyncio.run(main())


def test_what_cannot_be(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "usb.sock"
        async with serve(path) as server:
            server.plug(FakeDevice(), 1)
            with pytest.raises(ConfigError, match="port 1 is taken"):
                server.plug(FakeDevice(), 1)
            with pytest.raises(ConfigError, match="port 16 does not exist"):
                server.plug(FakeDevice(), 16)
            with pytest.raises(ConfigError, match=r"usb\.sock"):
                async with serve(path):
                    pass
        with pytest.raises(ConfigError, match="either a socket path or a file descriptor"):
            async with serve():
                pass

    asyncio.run(main())


def test_an_error_of_the_program_ends_the_serving(tmp_path: Path) -> None:
    fake = FakeDevice()

    async def main() -> None:
        async with serve(tmp_path / "usb.sock") as server:
            server.plug(fake)
            raise DeviceError("mine")

    with pytest.raises(DeviceError, match="mine"):
        asyncio.run(main())
    assert fake.closed
    assert not (tmp_path / "usb.sock").exists()


def test_a_device_that_gives_nothing_back_does_not_keep_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedding_module, "CLOSE_TIMEOUT", 0.01)

    class Stubborn(FakeDevice):
        def when_closed(self, done: Callable[[], object]) -> None:
            return

    async def main() -> None:
        async with serve(tmp_path / "usb.sock") as server:
            server.plug(Stubborn(name="Stubborn"))

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "Stubborn does not end its transfers" in caplog.text


def test_a_device_that_leaves_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve(tmp_path / "usb.sock") as server:
            fake = FakeDevice()
            server.plug(fake)
            fake.unplug()
            assert server.devices == {}
            await eventually(lambda: fake.closed)

    asyncio.run(main())


def test_the_program_in_the_document(tmp_path: Path) -> None:
    """As its reader runs it; only the path of the socket is another one."""
    path = tmp_path / "usb.sock"
    program = (ROOT / "docs/embedding.md").read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "program.py").write_text(program.replace("/tmp/usb.sock", str(path)))
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"])
    try:
        bus = SocketBus(VfioUserClient.connect(path, wait=PATIENCE))
        usb = GuestDriver(bus).start().enumerate()
        assert usb.get_string(2) == "Thermometer"
        assert usb.control_in(0xC0, 1, 0, 0, 2) == b"21"
        bus.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) != 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_the_kits_server_is_one_of_these() -> None:
    from usbvfiod_core.testing.served import ServedController

    assert ServedController.__init__.__globals__["UsbServer"] is UsbServer
