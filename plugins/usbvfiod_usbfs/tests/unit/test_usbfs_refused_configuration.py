"""A configuration that the device, or the host's bus, refuses: Linux then has none at all (usb_set_configuration)."""

from __future__ import annotations

import ctypes
import errno

import pytest
from fake_usbfs import FakeKernel, sysfs_device
from usbvfiod_usbfs import ioctl as usbfs
from usbvfiod_usbfs.device import open_device

from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.conformance.enumeration import set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

COMPLETED, STALL = TransferStatus.COMPLETED, TransferStatus.STALL
IN = Endpoint(0x81, 2, 512)
ONE = Configuration((Interface(0, 255, endpoints=(IN,)), Interface(0, 255, endpoints=(IN,), alternate=1)))
TWO = Configuration((Interface(0, 255), Interface(1, 255)), value=2)


class Host:
    """Linux with a device that refuses the configurations whose values are in `refused`, each as often."""

    def __init__(self, kernel: FakeKernel, configuration: int | None, *refused: int, code: int = -errno.EPIPE) -> None:
        self.kernel = kernel
        self.configuration = configuration
        self.refused = list(refused)
        self.code = code
        kernel.respond = kernel.finish
        device = sysfs_device(ONE, TWO, configuration=configuration)
        loop = StepLoop()
        self.bench = DeviceBench(open_device(loop, kernel.handle(self.ioctl), device, HostOptions()), loop)

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        if request == usbfs.SUBMITURB and self.configuration is None:
            return -errno.ENOENT
        code = self.kernel.ioctl(fd, request, argument)
        if request == usbfs.SETCONFIGURATION:
            (value,) = usbfs.UINT.unpack(ctypes.string_at(argument, usbfs.UINT.size))
            self.configuration = value
            if value in self.refused:
                self.refused.remove(value)
                self.configuration = None
                return self.code
        if request == usbfs.DISCONNECT_CLAIM and self.configuration is None:
            return -errno.EINVAL
        return code

    def read(self) -> TransferStatus | None:
        transfer = self.bench.submit(0x81, TransferType.BULK, 8)
        self.bench.wait(transfer)
        return transfer.status

    def sets(self) -> list[int]:
        """The configurations that were asked for since the last time."""
        calls, self.kernel.calls = self.kernel.calls, []
        return [values[0] for name, values in calls if name == "SETCONFIGURATION"]


@pytest.mark.parametrize("code", [-errno.EPIPE, -errno.ETIMEDOUT, -errno.ENOSPC])
def test_the_former_one_goes_on(kernel: FakeKernel, caplog: pytest.LogCaptureFixture, code: int) -> None:
    host = Host(kernel, 1, 2, code=code)
    assert set_configuration(host.bench, 1).status is COMPLETED
    assert host.bench.control(SetupPacket(1, 11, 1, 0, 0)).status is COMPLETED
    assert set_configuration(host.bench, 2).status is STALL
    assert host.sets() == [2, 1]
    assert host.read() is COMPLETED
    assert set_configuration(host.bench, 1).status is COMPLETED
    assert host.read() is COMPLETED
    assert not [message for message in caplog.messages if "without interface" in message]
    assert host.bench.events.notes == []
    host.bench.close()


def test_the_former_one_is_set_when_the_guest_wants_it(kernel: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    host = Host(kernel, 1, 2, 1)
    assert set_configuration(host.bench, 2).status is STALL
    assert host.sets() == [2, 1]
    assert host.read() is TransferStatus.ERROR
    assert set_configuration(host.bench, 1).status is COMPLETED
    assert host.sets() == [1]
    assert host.read() is COMPLETED
    assert not [message for message in caplog.messages if "without interface" in message]
    host.bench.close()


def test_without_a_former_one_there_is_none(kernel: FakeKernel) -> None:
    host = Host(kernel, None, 1, 1)
    assert [set_configuration(host.bench, 1).status for _ in range(3)] == [STALL, STALL, COMPLETED]
    assert host.sets() == [1, 1, 1]
    assert host.read() is COMPLETED
    host.bench.close()
