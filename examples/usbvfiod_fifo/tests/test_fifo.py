"""The pipe, read by a guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from usbvfiod_fifo import IN, Fifos

from usbvfiod_core import Backend, ConfigError, Device, DeviceError, Loop
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.conformance import DeviceConformance
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.loop import StepLoop


@pytest.fixture
def path(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A guest in real time: a file descriptor does not know of any other."""
    guest = Guest(DirectBus(loop=StepLoop(virtual_time=False)))
    yield guest
    guest.close()


@pytest.fixture
def usb(guest: Guest, path: Path) -> UsbDevice:
    return guest.plug(open_device(Fifos(), str(path), {}, guest.bus.loop))


def test_a_guest_reads_what_is_written(usb: UsbDevice, path: Path) -> None:
    with path.open("wb", buffering=0) as pipe:
        pipe.write(b"first")
        assert usb.bulk_in(IN, 64) == b"first"
        waiting = usb.submit_in(IN, 4), usb.submit_in(IN, 512)
        pipe.write(b"second")
        assert [td.result() for td in waiting] == [b"seco", b"nd"]
    later = usb.submit_in(IN, 64)
    with path.open("wb", buffering=0) as pipe:
        pipe.write(b"of another writer")
        assert later.result() == b"of another writer"


def test_what_nobody_asks_for_stays_in_the_pipe(usb: UsbDevice, path: Path) -> None:
    cancelled = usb.submit_in(IN, 64)
    usb.pipe(IN).cancel(cancelled)
    usb.set_configuration(None)
    with path.open("wb", buffering=0) as pipe:
        pipe.write(b"kept")
        usb.set_configuration(1)
        assert usb.bulk_in(IN, 64) == b"kept"


def test_the_descriptor_is_closed_with_the_device(guest: Guest, usb: UsbDevice, path: Path) -> None:
    usb.submit_in(IN, 64)
    guest.unplug(usb)
    with pytest.raises(OSError, match="No such device"):  # ENXIO: nobody reads it any more
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def test_what_is_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a named pipe"):
        open_device(Fifos(), str(tmp_path / "file"), {}, StepLoop())
    with pytest.raises(DeviceError, match="absent: No such file"):
        open_device(Fifos(), str(tmp_path / "absent"), {}, StepLoop())
    with pytest.raises(ConfigError, match="there is no option 'speed'"):
        open_device(Fifos(), str(tmp_path / "file"), {"speed": "full"}, StepLoop())


class TestDevice(DeviceConformance):
    """The contract that every device has with usbvfiod."""

    @pytest.fixture(autouse=True)
    def _path(self, path: Path) -> None:
        self.path = path

    def make_device(self, loop: Loop) -> Device:
        return open_device(self.backend(), str(self.path), {}, loop)

    @staticmethod
    def backend() -> Backend:
        return Fifos()
