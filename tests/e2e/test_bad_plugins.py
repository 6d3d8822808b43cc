"""Plugins and devices that break their contracts in a running server: it says whose fault it is and serves on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.process import ServerProcess
from tests.e2e.test_life import guest
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.mass_storage import MassStorage

RUDE = '''
"""A backend whose devices misbehave where their address says."""

import time

from usbvfiod_core import Backend, Speed, TransferStatus, hookimpl
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.virtual.device import VirtualDevice


class RudeDevice(VirtualDevice):
    product = "Rude device"

    def __init__(self, where):
        super().__init__(Speed.HIGH)
        self.where = where

    def describe(self, speed):
        return [Configuration((Interface(0, class_code=0xFF),))]

    def control_request(self, setup, data):
        if self.where == "submit":
            raise RuntimeError("not with me")
        if self.where == "twice":
            return bytes(setup.length)
        return None

    def submit(self, transfer):
        super().submit(transfer)
        if self.where == "twice":
            transfer.complete(TransferStatus.STALL)

    def reset(self, done):
        super().reset(done)
        if self.where == "reset":
            raise RuntimeError("leave me alone")

    def closed(self):
        if self.where == "close":
            raise RuntimeError("I stay")


class RudeBackend(Backend):
    name = "rude"

    def list_devices(self):
        return []

    def open(self, address, options, loop):
        if address == "hang":
            time.sleep(3600)
        return RudeDevice(address)


@hookimpl
def usbvfiod_register_backends(register):
    register(RudeBackend())


@hookimpl
def usbvfiod_observe_attachments(info):
    raise RuntimeError("I saw nothing")
'''


@pytest.fixture
def rude(tmp_path: Path) -> dict[str, str]:
    """An environment in which the plugin is installed."""
    site = tmp_path / "site"
    info = site / "rude-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plug_rude.py").write_text(RUDE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[usbvfiod]\nrude = plug_rude\n")
    return {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}


def enumerate_all(driver: object) -> dict[int, UsbDevice]:
    from usbvfiod_core.testing.driver import GuestDriver

    assert isinstance(driver, GuestDriver)
    return {port.port_id: driver.enumerate(port.port_id) for port in driver.connected_ports()}


@pytest.mark.parametrize("where", ["submit", "twice", "reset", "close"])
def test_a_rude_device_harms_nobody_else(where: str, serve: Serve, rude: dict[str, str], image: Path) -> None:
    server = serve("--device", f"rude:{where}", "--device", f"virtual:flash?image={image}", environment=rude)
    with guest(server) as driver:
        disk = MassStorage(driver.enumerate(9))
        if where != "reset":
            usb = driver.enumerate(1)
            for _ in range(3):
                try:
                    answer = usb.control_in(0xC0, 1, 0, 0, 4)
                except DriverError:
                    assert where in ("submit", "close")
                else:
                    assert (where, answer) == ("twice", bytes(4))
        else:
            driver.port(1).write(1 << 4)  # a reset that the device answers with an exception
        for number in range(20):
            assert bytes(disk.read(number, 1)) == number.to_bytes(8, "little") * 64
    with guest(server) as driver:
        assert bytes(MassStorage(driver.enumerate(9)).read(3, 1)) == (3).to_bytes(8, "little") * 64
    started = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - started < 6
    assert not server.socket_path.exists()
    if where == "submit":
        assert "not with me" in server.log
    assert "plugin rude: usbvfiod_observe_attachments failed: RuntimeError: I saw nothing" in server.log


def test_a_device_that_never_opens_does_not_keep_the_server(tmp_path: Path, rude: dict[str, str]) -> None:
    with ServerProcess(tmp_path, ["--device", "rude:hang"], environment=rude) as server:
        time.sleep(1)
        assert not server.socket_path.exists()
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 6
        assert "does not open" in server.log
