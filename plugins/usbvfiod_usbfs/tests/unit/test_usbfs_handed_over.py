"""A device that another process goes on with: nothing is done to it, and nothing is given back in between."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from fake_usbfs import FakeKernel, sysfs_device
from usbvfiod_usbfs.device import UsbfsState, open_device, take_device_over
from usbvfiod_usbfs.handle import Handle

from tests.handed_over import travelled
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.state import unpack
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.handover import CannotHandOver, NotSettled
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

PIPES = (bulk_endpoint(0x81, Speed.SUPER), bulk_endpoint(0x02, Speed.SUPER))
ONE = Configuration((Interface(0, 255, endpoints=PIPES), Interface(0, 255, endpoints=PIPES, alternate=1)))
TWO = Configuration((Interface(0, 255),), value=2)


class Heirs:
    """A device in a fake kernel, handed over again and again; every process has a descriptor of its own."""

    def __init__(self, kernel: FakeKernel, directory: Path) -> None:
        self.kernel = kernel
        self.directory = directory / "2-1"
        self.directory.mkdir()
        for interface in ("2-1:1.0",):
            (self.directory / interface).mkdir()
            (self.directory / interface / "driver").symlink_to("../../drivers/usbfs")
        (self.directory / "bConfigurationValue").write_text("1")
        self.file = directory / "taken-2-1.json"
        self.loop = StepLoop()
        self.device = open_device(self.loop, self.handle(os.dup(kernel.fd)), self.found(), HostOptions())
        self.bench = DeviceBench(self.device, self.loop)

    def handle(self, fd: int) -> Handle:
        """A descriptor of the same open file as the kernel's."""

        def ioctl(given: int, request: int, argument: int) -> int:
            assert given == fd
            return self.kernel.ioctl(self.kernel.fd, request, argument)

        return Handle(fd, ioctl)

    def found(self) -> SysfsDevice:
        return sysfs_device(ONE, TWO, configuration=1, drivers={0: "usbhid"}, directory=self.directory)

    def request(self, kind: int, request: int, value: int, index: int = 0) -> None:
        assert self.bench.control(SetupPacket(kind, request, value, index, 0)).status is TransferStatus.COMPLETED

    def hand_over(self) -> list[object]:
        """What is done to the device by it."""
        self.kernel.calls.clear()
        given = travelled(self.device.hand_over())
        state, fds = unpack(UsbfsState, given.state), given.descriptors
        loop = StepLoop()
        heir = take_device_over(loop, self.handle(fds["device"]), self.found(), HostOptions(), state, fds["taken"])
        self.device.forget()
        assert self.loop.watched == ()
        self.loop.close()
        self.device, self.loop = heir, loop
        self.bench = DeviceBench(heir, loop)
        loop.run_ready()
        return [call for call in self.kernel.calls if call[0] not in ("GET_CAPABILITIES", "GET_SPEED")]


@pytest.fixture
def heirs(kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heirs:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return Heirs(kernel, tmp_path)


def test_nothing_is_done_to_the_device(heirs: Heirs) -> None:
    heirs.request(0, 9, 1)
    heirs.request(1, 11, 1)  # SET_INTERFACE
    for _ in range(5):
        assert heirs.hand_over() == []
        assert heirs.file.exists()
        [(number, alternate)] = heirs.device._alternates.items()
        assert (number, alternate, heirs.device.configuration, heirs.device.claimed()) == (0, 1, 1, [0])
    heirs.kernel.calls.clear()
    heirs.bench.close()
    assert [call for call in heirs.kernel.calls if call[0] != "RESET"] == [
        ("RELEASEINTERFACE", (0,)),
        ("CONNECT", (0,)),
    ]  # as it was found by the first
    assert not heirs.file.exists()


def test_the_file_of_a_taken_device_stays_locked(heirs: Heirs) -> None:
    heirs.hand_over()
    fd = os.open(heirs.file, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    heirs.bench.close()


def test_transfers_go_on(heirs: Heirs) -> None:
    heirs.request(0, 9, 1)
    got = b""
    for number in range(4):
        transfer = heirs.bench.submit(0x81, TransferType.BULK, 512)
        [urb] = heirs.kernel.inflight
        heirs.kernel.finish(urb, data=b"%d" % number * 512)
        heirs.bench.wait(transfer)
        got += transfer.data
        heirs.hand_over()
    assert got == b"".join(b"%d" % number * 512 for number in range(4))
    heirs.bench.close()


def test_a_transfer_in_flight_is_waited_for(heirs: Heirs) -> None:
    heirs.request(0, 9, 1)
    transfer = heirs.bench.submit(0x81, TransferType.BULK, 512)
    with pytest.raises(NotSettled, match="in flight"):
        heirs.device.hand_over()
    heirs.bench.cancel(transfer)
    heirs.bench.wait(transfer)
    heirs.hand_over()
    heirs.bench.close()


def test_a_device_that_is_gone_is_not_handed_over(heirs: Heirs) -> None:
    heirs.device.gone()
    with pytest.raises(CannotHandOver, match="being unplugged"):
        heirs.device.hand_over()
    heirs.bench.close()
