"""Pytest fixtures for tests of devices, backends and plugins. Loaded by pytest itself where usbvfiod is installed.

usb_guest           `Guest`: a controller in this process and a driver for it, in virtual time
usb_served_guest    `ServedGuest`: a controller behind a real vfio-user socket, and a driver on the other side
usb_plug            `usb_plug(device)`: plugs it into `usb_guest` and enumerates it; the `UsbDevice`
usb_replay          `usb_replay("recorded.pcapng")`: plugs in a device made of a recording; the `UsbDevice`
usb_serve           `usb_serve("--device", "virtual:flash?image=...")`: the daemon as a process, and a bus to it

Nothing of usbvfiod is imported before a test asks for one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .bus import SocketBus
    from .driver import UsbDevice
    from .guest import Guest, ServedGuest

pytest.register_assert_rewrite("usbvfiod_core.testing.conformance", "usbvfiod_core.testing.device_bench")


@pytest.fixture
def usb_guest() -> Iterator[Guest]:
    """A guest in this process; its driver is started when it is first used."""
    from .guest import Guest

    guest = Guest()
    yield guest
    guest.close()


@pytest.fixture
def usb_plug(usb_guest: Guest) -> Callable[..., UsbDevice]:
    """Plug a device into `usb_guest` and enumerate it: `usb_plug(device, port_id=None)`."""
    return usb_guest.plug


@pytest.fixture
def usb_replay(usb_guest: Guest, request: pytest.FixtureRequest) -> Callable[..., UsbDevice]:
    """Plug a device made of a recording into `usb_guest` and enumerate it: `usb_replay("recorded.pcapng")`. A path that
    is not absolute is beside the test's file. Options are those of `virtual:replay`: `device="3.60"`."""

    def plug(path: str | Path, **options: str) -> UsbDevice:
        from ..virtual import VirtualBackend

        given = {"capture": str(request.path.parent / path), **options}
        return usb_guest.plug(VirtualBackend().open("replay", given, usb_guest.bus.loop))

    return plug


@pytest.fixture
def usb_served_guest(tmp_path: Path) -> Iterator[ServedGuest]:
    """A guest whose controller is served over a socket by a thread."""
    from .guest import ServedGuest

    guest = ServedGuest(tmp_path / "usbvfiod.sock")
    yield guest
    guest.close()


@pytest.fixture
def usb_serve(tmp_path: Path) -> Iterator[Callable[..., SocketBus]]:
    """Start the daemon with options and connect: `usb_serve("--device", "virtual:keyboard")` gives a `SocketBus`."""
    from .served import ServerProcess

    started: list[tuple[Any, Any]] = []

    def start(*options: str) -> SocketBus:
        server = ServerProcess(tmp_path / f"usbvfiod-{len(started)}.sock", options)
        started.append((server, None))
        bus = server.connect()
        started[-1] = (server, bus)
        return bus

    yield start
    for server, bus in started:
        if bus is not None:
            bus.close()
        server.stop()
