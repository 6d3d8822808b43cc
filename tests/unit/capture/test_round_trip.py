"""Devices that were captured by us and replayed: a driver finds the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.capture.rig import Captured
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.usb.device import Device
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.replay import ReplayOptions, open_replay

BLOCK = 512


class Studio:
    """Records a device, and plays it again in its place."""

    def __init__(self, guest: Guest, path: Path) -> None:
        self.guest = guest
        self.path = path
        self.captured: Captured | None = None

    def open(self, kind: str, **options: str) -> Device:
        return VirtualBackend().open(kind, options, self.guest.bus.loop)

    def record(self, device: Device, *, late: bool = False) -> UsbDevice:
        self.captured = Captured(self.guest, device, self.path, late=late)
        self.captured.usb.set_configuration(self.captured.usb.configurations[0].value)
        if late:
            self.captured.begin()
        return self.captured.usb

    def replay(self) -> UsbDevice:
        assert self.captured is not None
        self.guest.unplug(self.captured.usb)
        self.captured.rig.finish()
        device = open_replay(from_text(ReplayOptions, {"capture": str(self.path)}), self.guest.bus.loop)
        usb = self.guest.plug(device)
        usb.set_configuration(usb.configurations[0].value)
        return usb


@pytest.fixture
def studio(usb_guest: Guest, tmp_path: Path) -> Iterator[Studio]:
    studio = Studio(usb_guest, tmp_path / "it.pcapng")
    yield studio
    if studio.captured is not None:
        studio.captured.rig.close()


def test_a_drive(studio: Studio, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"".join(bytes([number]) * BLOCK for number in range(64)))
    recorded = MassStorage(studio.record(studio.open("flash", image=str(image))))
    recorded.wait_ready()
    identity, capacity = recorded.inquiry(), recorded.read_capacity()
    data = bytes(recorded.read(4, 16))
    replayed = MassStorage(studio.replay())
    assert replayed.device.port.speed is Speed.SUPER
    replayed.wait_ready()
    assert (replayed.inquiry(), replayed.read_capacity()) == (identity, capacity)
    assert bytes(replayed.read(4, 16)) == data
    assert bytes(replayed.read(10, 3)) == data[6 * BLOCK : 9 * BLOCK]
    with pytest.raises(ScsiError):
        replayed.read(30, 1)
    assert "block 30 was never read" in caplog.text


@pytest.mark.parametrize("late", [False, True])
def test_gadget_zero_with_its_requests_and_packets(studio: Studio, late: bool) -> None:
    def move(usb: UsbDevice) -> list[object]:
        usb.control_out(0x40, 0x5B, 0, 0, b"kept")
        found: list[object] = [usb.control_in(0xC0, 0x5C, 0, 0, 4), usb.bulk_in(0x81, 3000)]
        usb.set_interface(0, 1)
        tds = [usb.submit_in(0x83, 1024) for _ in range(4)]
        found += [td.result() for td in tds]
        return found

    first = move(studio.record(studio.open("loopback", pattern="1", speed="high"), late=late))
    assert move(studio.replay()) == first
