"""A whole server with its sandbox, a guest, and hosts that come and go."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from redir_host import RedirHost
from redir_replaced import Exchange, Replaced
from usbvfiod_usbredir import messages as m

from usbvfiod_core import Device, Speed
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.virtual.flash import Flash
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.loopback import Loopback

SOURCE, SINK = 0x81, 0x01


def loopback(loop: StepLoop) -> Device:
    return Loopback(loop, speed=Speed.HIGH)


def use(guest: UsbDevice) -> None:
    assert len(guest.bulk_in(SOURCE, 1 << 14)) == 1 << 14
    guest.bulk_out(SINK, bytes(1 << 14))


def gone(guest: UsbDevice) -> None:
    guest.driver.wait_until(lambda: not guest.port.connected, "the port does not disconnect")
    guest.driver.handle_events()
    guest.port.clear_changes()
    guest.disable()


def test_clients_come_to_a_port_in_the_sandbox_and_come_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--device", f"usbredir:listen=127.0.0.1:{port}"]
    with ServerProcess(tmp_path / "usb.sock", words) as server:
        bus = server.connect()
        driver = GuestDriver(bus).start()

        def client() -> RedirHost:
            return RedirHost(socket.create_connection(("127.0.0.1", port)), loopback)

        host = client()
        guest = driver.enumerate()
        first = guest.port.port_id
        for turn in range(3):
            use(guest)
            tds = [guest.submit_in(SOURCE, 1 << 14) for _ in range(4)]
            if turn:
                host.close()
            else:
                host.call(host.pull_out)
            gone(guest)
            assert all(td.done for td in tds)
            if turn:
                host = client()
            else:
                host.call(host.plug_in)
            guest = driver.enumerate(first)
        use(guest)
        bus.close()
        host.close()


def test_a_host_is_connected_in_the_sandbox(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = ["--device", f"usbredir:127.0.0.1:{listener.getsockname()[1]}"]
        with ServerProcess(tmp_path / "usb.sock", words) as server:
            stream, _ = listener.accept()
            host = RedirHost(stream, loopback)
            bus = server.connect()
            use(GuestDriver(bus).start().enumerate())
            bus.close()
        wait_until(lambda: host.stopped, "the server has not hung up")
        host.close()


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.long)])
def test_it_is_replaced_while_a_drive_of_the_other_end_is_in_use(tmp_path: Path, times: int) -> None:
    """The other end keeps its connection, and its device is neither reset nor configured again."""
    control, image = tmp_path / "control.sock", tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = ["--device", f"usbredir:127.0.0.1:{listener.getsockname()[1]}", "--control-path", str(control)]
        with ServerProcess(tmp_path / "usb.sock", words) as server:
            stream, _ = listener.accept()
            host = RedirHost(stream, lambda loop: Flash(Image(str(image)), loop, speed=Speed.HIGH))
            bus = server.connect()
            work = Exchange(MassStorage(GuestDriver(bus).start().enumerate()), 2048)
            work()
            before = [each for each in host.seen if isinstance(each, m.Reset | m.SetConfiguration)]
            with Replaced(server, control) as replaced:
                for _ in range(times):
                    replaced.upgrade(work)
                work.compare()
                assert [each for each in host.seen if isinstance(each, m.Reset | m.SetConfiguration)] == before
                bus.close()
        wait_until(lambda: host.stopped, "the server has not hung up")
        host.close()


def test_it_is_replaced_while_it_waits_for_others(tmp_path: Path) -> None:
    """One client's drive is in use, another one waits behind it, and a third comes when the new process listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    control, image = tmp_path / "control.sock", tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    words = ["--device", f"usbredir:listen=127.0.0.1:{port}", "--control-path", str(control)]
    with ServerProcess(tmp_path / "usb.sock", words) as server:
        bus = server.connect()
        driver = GuestDriver(bus).start()

        def client(make: Callable[[StepLoop], Device]) -> RedirHost:
            return RedirHost(socket.create_connection(("127.0.0.1", port)), make)

        first = client(lambda loop: Flash(Image(str(image)), loop, speed=Speed.HIGH))
        guest = driver.enumerate()
        work = Exchange(MassStorage(guest), 2048)
        work()
        before = [each for each in first.seen if isinstance(each, m.Reset | m.SetConfiguration)]
        with Replaced(server, control) as replaced:
            second = client(loopback)
            replaced.upgrade(work)
            work.compare()
            assert [each for each in first.seen if isinstance(each, m.Reset | m.SetConfiguration)] == before
            assert not second.stopped
            for leaving in (first, second):
                leaving.close()
                gone(guest)
                third = client(loopback) if leaving is second else None
                guest = driver.enumerate(guest.port.port_id)
                use(guest)
            assert third is not None
            bus.close()
    wait_until(lambda: third.stopped, "the server has not hung up")
    third.close()
