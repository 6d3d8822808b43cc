"""A server process, sandbox and all, whose device is at a server in Python: it goes away in the middle of transfers and
comes back, and a hostile one costs its own device only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.passing import ask
from tests.lab.replugging import gone
from tests.lab.usbip_devices import SourceSink
from tests.lab.usbip_exporter import Exporter, virtual_keyboard
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.served import ServerProcess

CHUNK = 16384


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
