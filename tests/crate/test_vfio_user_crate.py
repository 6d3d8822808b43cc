"""A server and the client that Cloud Hypervisor really has, with the test kit's driver as the guest behind it."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.crate.client import CrateClient, library
from usbvfiod_core.pci import vfio
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(660),
    pytest.mark.skipif(shutil.which("cargo") is None, reason="there is no cargo to build the crate vfio_user with"),
]

SIZE = 16 << 20
CHUNK = 1 << 20


@pytest.fixture(scope="module")
def crate() -> ctypes.CDLL:
    return library()


def test_a_drive_behind_it_through_three_lives(crate: ctypes.CDLL, tmp_path: Path) -> None:
    """It resets the device, maps memory, waits for a reply to each access, and is gone; then the next one comes.

    Each is interrupted in another way; in the last life one more message follows an access, to unmask the pin.
    """
    image, content = tmp_path / "drive.img", os.urandom(SIZE)
    image.write_bytes(content)
    with ServerProcess(tmp_path / "usb.sock", ["--device", f"virtual:flash?image={image}"]) as server:
        for life, mechanism in enumerate(Mechanism):
            client: Any = CrateClient(crate, server.path)
            assert client.region_size(vfio.BAR0_REGION) == 0x8000
            client.reset()
            bus = SocketBus(client, interrupts=mechanism)
            driver = GuestDriver(bus).start()
            disk = MassStorage(driver.enumerate())
            disk.wait_ready()
            blocks, size = disk.read_capacity()
            step = CHUNK // size
            read = [bytes(disk.read(block, step)) for block in range(0, blocks, step)]
            assert b"".join(read) == image.read_bytes()
            disk.write(life * step, bytes([life]) * CHUNK)
            disk.synchronize_cache()
            assert driver.lost_interrupts == 0
            for span in bus.ram.spans:
                client.dma_unmap(span.address, span.size)
            bus.close()
        assert server.stop() == 0
    assert image.read_bytes() == b"".join(bytes([life]) * CHUNK for life in range(3)) + content[3 * CHUNK :]
