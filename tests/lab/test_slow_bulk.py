"""A low-speed device with bulk endpoints, at the kernel's usbip-host and at Debian's usbredirect."""

from __future__ import annotations

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbredir.backend import UsbredirBackend

from tests.lab.exporting import Host
from tests.lab.machine import Machine
from tests.lab.redirected import redirected
from tests.lab.stock_redirect import Redirect
from usbvfiod_core import Backend, Device, Speed, TransferStatus, TransferType
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.conformance.enumeration import set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface

pytestmark = pytest.mark.long
"""With peers in Python it is a test of every run."""


class SlowBulk:
    """Makes the device and keeps it. USB 2.0 5.8.3 does not allow it, some are so, and every Linux makes interrupt
    endpoints of them."""

    device: FakeDevice

    def __call__(self, loop: StepLoop) -> Device:
        endpoints = tuple(Endpoint(each, TransferType.BULK, 8) for each in (BULK_IN, BULK_OUT))
        self.device = FakeDevice(Speed.LOW, configurations=[Configuration((Interface(0, 0xFF, endpoints=endpoints),))])
        self.device.auto_out.add(BULK_OUT)
        return self.device


def test_it_works_for_guests_that_take_its_endpoints_for_either(machine: Machine) -> None:
    made = SlowBulk()
    with redirected(machine, made) as (device, there):

        def check(backend: Backend, address: str) -> None:
            loop = StepLoop(virtual_time=False)
            bench = DeviceBench(open_device(backend, address, {}, loop), loop, submit_limit=1.0)
            assert bench.device.speed is Speed.LOW
            assert set_configuration(bench, 1).status is TransferStatus.COMPLETED
            for type in (TransferType.INTERRUPT, TransferType.BULK):
                reads = [bench.submit(BULK_IN, type, 8) for _ in range(2)]
                there.call(lambda: made.device.answers(BULK_IN, b"8 bytes!", b"few"))
                write = bench.submit(BULK_OUT, type, type.name[:4].encode())
                bench.wait(*reads, write)
                assert [each.data for each in reads] == [b"8 bytes!", b"few"]
                assert write.status is TransferStatus.COMPLETED
            assert made.device.received.pop(BULK_OUT) == [b"INTE", b"BULK"]
            bench.close()

        with Host() as host, host.export(device) as exported:
            check(UsbipBackend(), exported.address)
        with Redirect(device) as redirect:
            check(UsbredirBackend(), redirect.address)
