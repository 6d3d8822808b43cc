"""Devices of every class at a guest's class drivers, from another host: a server imports them from the kernel's
usbip-host, over networks that are near, far, and lose packets. The tests are those of devices of this host."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import test_devices as devices
from tests.lab.conftest import machine
from tests.lab.exporting import Host
from tests.lab.far import NETWORKS
from tests.lab.machine import Machine
from tests.lab.passing import Pass, Passed
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.mass_storage import MassStorage

__all__ = ["machine"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.long] if way else []) for name, way in NETWORKS.items()],
)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with Host() as host, host.network(*NETWORKS[request.param]):
        yield host


@pytest.fixture
def backend() -> str:
    return "usbip"


@pytest.fixture
def passed(host: Host, tmp_path: Path) -> Iterator[Pass]:
    """Export a device and pass it through; afterwards the lab's drivers must have it back."""
    with ExitStack() as stack:

        def give(device: HostUsbDevice, *options: str) -> Passed:
            drivers = device.drivers

            def check() -> None:
                if device.present():
                    assert device.drivers == drivers

            stack.callback(check)
            exported = stack.enter_context(host.export(device))
            return stack.enter_context(Passed("usbip", device, tmp_path, *options, address=f"usbip:{exported.address}"))

        yield give


def check_drive(passed: Pass, machine: Machine, mebibytes: int) -> None:
    """A drive read and written whole, with the same data on both sides."""
    image, digest = devices.exchange_image(mebibytes)
    device = machine.plug_drive(image)
    try:
        disk = MassStorage(passed(device).device, pipelined=False)
        disk.wait_ready()  # usbip-host has reset it, which it tells once
        written = devices.check_storage(disk, digest, mebibytes)
        assert hashlib.sha256(image.read_bytes()).hexdigest() == written
    finally:
        machine.unplug(device)
        image.unlink()


def test_a_drive(passed: Pass, machine: Machine) -> None:
    check_drive(passed, machine, 1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_64_mebibytes(passed: Pass, machine: Machine) -> None:
    check_drive(passed, machine, 64)


@pytest.mark.long
@pytest.mark.parametrize("speed", ["high", "super"])
def test_a_drive_recovers_from_stalls_and_resets(passed: Pass, tmp_path: Path, speed: str) -> None:
    devices.test_a_drive_recovers_from_stalls_and_resets(passed, tmp_path, speed)


@pytest.mark.long
def test_uas(host: Host, machine: Machine, tmp_path: Path) -> None:
    """At high speed, without streams. The driver there may have been in the middle of a command when usbip-host took
    the drive from it, and QEMU's gives the answer to that to whoever asks first, until it is reset."""
    with ExitStack() as stack:

        def give(device: HostUsbDevice, *options: str) -> Passed:
            exported = stack.enter_context(host.export(device))
            address = f"usbip:{exported.address}?reset=always"
            return stack.enter_context(Passed("usbip", device, tmp_path, *options, address=address))

        devices.test_uas(give, machine, "usbip")


@pytest.mark.long
def test_a_serial_port(passed: Pass) -> None:
    devices.test_a_serial_port_both_ways_through_open_and_close(passed, 64)


@pytest.mark.long
def test_a_keyboard(passed: Pass, machine: Machine) -> None:
    devices.test_a_keyboard(passed, machine, "xhci")


@pytest.mark.long
def test_a_network_adapter(passed: Pass) -> None:
    devices.test_a_network_adapter(passed, 1)


@pytest.mark.long
def test_a_printer(passed: Pass) -> None:
    devices.test_a_printer(passed)


@pytest.mark.long
@pytest.mark.parametrize("speed", ["full", "high", "super"])
def test_source_and_sink(passed: Pass, speed: str) -> None:
    devices.test_source_and_sink(passed, speed)


def test_sound(passed: Pass, machine: Machine) -> None:
    devices.test_sound(passed, machine)
