"""A client as Cloud Hypervisor, which maps the interrupters' registers, and what comes before and after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from usbvfiod_core.pci.vfio import BAR0_REGION
from usbvfiod_core.shared_area import PAGE, possible
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU
from usbvfiod_core.xhci import registers as reg

pytestmark = pytest.mark.skipif(not possible(), reason="needs an x86-64 host with pages of 4 KiB")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "drive.img").write_bytes(os.urandom(1 << 20))
    with ServerProcess(tmp_path / "usb.sock", ["--device", f"virtual:flash?image={tmp_path}/drive.img"]) as process:
        yield process


def connect(process: ServerProcess, *, hypervisor: bool) -> SocketBus:
    vmm = CLOUD_HYPERVISOR if hypervisor else replace(QEMU, maps=True)
    return SocketBus(VfioUserClient.connect(process.path, vmm=vmm, wait=PATIENCE))


def test_one_client_after_the_other(process: ServerProcess, tmp_path: Path) -> None:
    content = (tmp_path / "drive.img").read_bytes()
    for hypervisor in (True, False, True, True):
        bus = connect(process, hypervisor=hypervisor)
        assert [area.offset for area in bus.areas] == ([reg.INTERRUPTER_PAGE] if hypervisor else [])
        with GuestDriver(bus) as driver:
            drive = MassStorage(driver.start().enumerate())
            assert drive.read(0, len(content) // 512) == content
        bus.close()


def test_what_is_written_by_messages_counts_too(process: ServerProcess) -> None:
    """A client that was offered the page and does not map it."""
    bus = process.connect(vmm=replace(CLOUD_HYPERVISOR, maps=False))
    with GuestDriver(bus) as driver:
        assert len(MassStorage(driver.start().enumerate()).read(0, 8)) == 4096
    bus.close()


def test_a_client_that_scribbles_after_it_has_gone_disturbs_nobody(process: ServerProcess) -> None:
    bus = connect(process, hypervisor=True)
    (old,) = bus.client.map_region(BAR0_REGION)
    bus.close()
    bus = connect(process, hypervisor=True)
    with GuestDriver(bus) as driver:
        usb = driver.start().enumerate()
        old.content[:] = b"\xff" * PAGE
        assert len(MassStorage(usb).read(0, 8)) == 4096
    bus.close()
    old.content.close()
