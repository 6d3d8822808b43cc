"""Settings and configurations of a device at the kernel's usbip-host and at Debian's usbredirect: what a reset and a
refusal leave there is not what the guest is told."""

from __future__ import annotations

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbredir.backend import UsbredirBackend

from tests.lab.exporting import Host
from tests.lab.machine import Machine
from tests.lab.redirected import redirected
from tests.lab.stock_redirect import Redirect
from usbvfiod_core import Backend, Device, Speed, Transfer, TransferStatus, TransferType
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.conformance.enumeration import set_configuration, set_interface
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint

pytestmark = pytest.mark.long
"""With peers in Python it is a test of every run."""

COMPLETED, STALL = TransferStatus.COMPLETED, TransferStatus.STALL
FIRST, SECOND = 0x01, 0x02
"""Endpoints OUT of the settings 0 and 1."""


def choosy(loop: StepLoop) -> Device:
    """Refuses its configuration 2."""
    settings = (
        Interface(0, 0xFF, endpoints=(bulk_endpoint(end, Speed.HIGH),), alternate=alternate)
        for alternate, end in enumerate((FIRST, SECOND))
    )
    configurations = [Configuration(tuple(settings)), Configuration((Interface(0, 0xFF),), value=2)]
    device = FakeDevice(Speed.HIGH, configurations=configurations)
    device.auto_out |= {FIRST, SECOND}

    def answer(transfer: Transfer) -> bytes | TransferStatus:
        assert transfer.setup is not None
        refused = transfer.setup.value == 2 or device.standard_request(transfer.setup, b"") is None
        return STALL if refused else b""

    device.answers_request(0, 9, answer)
    return device


def check(backend: Backend, address: str) -> None:
    loop = StepLoop(virtual_time=False)
    bench = DeviceBench(open_device(backend, address, {}, loop), loop, submit_limit=1.0)

    def write(endpoint: int) -> TransferStatus | None:
        transfer = bench.submit(endpoint, TransferType.BULK, b"data")
        bench.wait(transfer)
        return transfer.status

    assert set_configuration(bench, 1).status is COMPLETED
    for _ in range(2):
        assert set_interface(bench, 0, 1).status is COMPLETED
        assert write(SECOND) is COMPLETED
        bench.reset()
        assert set_configuration(bench, 1).status is COMPLETED
        assert write(FIRST) is COMPLETED
        assert write(SECOND) is TransferStatus.ERROR
        assert set_configuration(bench, 2).status is STALL
        assert set_configuration(bench, 1).status is COMPLETED
        assert write(FIRST) is COMPLETED
    assert bench.events.disconnections == 0
    bench.close()


def test_resets_and_refusals(machine: Machine) -> None:
    with redirected(machine, choosy) as (device, _):
        with Host() as host, host.export(device) as exported:
            check(UsbipBackend(), exported.address)
        with Redirect(device) as redirect:
            check(UsbredirBackend(), redirect.address)
