"""Devices of every class at a guest's class drivers, from Debian's usbredirect, which waits for us or comes to us. The
tests are those of devices of this host."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from redir_replaced import Exchange, Replaced

from tests.lab import test_devices as devices
from tests.lab.conftest import machine
from tests.lab.machine import Machine
from tests.lab.passing import Pass, Passed
from tests.lab.stock_redirect import Redirect
from tests.lab.test_devices import check_storage, exchange_image, rw_10
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.uas import UasClient

__all__ = ["machine"]

WAITS, COMES = "waits", "comes"
"""What usbredirect does: `--as` and `--to`."""
BOTH = pytest.mark.parametrize("direction", [WAITS, COMES])
ONE = pytest.mark.parametrize("direction", [WAITS])


@pytest.fixture
def passed(direction: str, tmp_path: Path) -> Iterator[Pass]:
    """Pass a device through."""
    with ExitStack() as stack:

        def give(device: HostUsbDevice, *options: str) -> Passed:
            there = stack.enter_context(Redirect(device, comes=direction == COMES))
            return stack.enter_context(Passed("usbredir", device, tmp_path, *options, address=there.address))

        yield give


@pytest.mark.parametrize(
    ("direction", "mebibytes"),
    [
        (WAITS, 2),
        (COMES, 1),
        *(pytest.param(each, 64, marks=[pytest.mark.long, pytest.mark.timeout(900)]) for each in (WAITS, COMES)),
    ],
)
def test_a_drive_both_ways(passed: Pass, machine: Machine, mebibytes: int) -> None:
    image, digest = exchange_image(mebibytes)
    device = machine.plug_drive(image, controller="ehci")
    try:
        disk = MassStorage(passed(device).device, pipelined=False)
        with suppress(ScsiError):
            disk.test_unit_ready()  # usbredirect has reset it
        written = check_storage(disk, digest, mebibytes)
        assert hashlib.sha256(image.read_bytes()).hexdigest() == written
    finally:
        machine.unplug(device)
        image.unlink()


@BOTH
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_drive_whose_server_is_replaced(passed: Pass, machine: Machine, tmp_path: Path) -> None:
    """usbredirect keeps its connection, and notices nothing."""
    image, _ = exchange_image(2)
    device = machine.plug_drive(image, controller="ehci")
    try:
        given = passed(device)
        disk = MassStorage(given.device, pipelined=False)
        with suppress(ScsiError):
            disk.test_unit_ready()  # usbredirect has reset it
        work = Exchange(disk, 4096)
        work()
        with Replaced(given.server, tmp_path / "control.sock") as replaced:
            for _ in range(10):
                replaced.upgrade(work)
            work.compare()
            given.bus.close()
    finally:
        machine.unplug(device)
        image.unlink()


@BOTH
@pytest.mark.long  # streams of a host in Python are a test of every run: tests/unit
def test_uas_with_streams(passed: Pass, machine: Machine) -> None:
    image, digest = exchange_image(2)
    device = machine.plug_drive(image, "usb-uas", controller="xhci")
    try:
        client = UasClient(passed(device).device)
        assert client.streams
        client.device.driver.timeout = 60.0
        read = hashlib.sha256()
        for first in range(0, 4096, 1024):
            commands = [client.submit(rw_10(0x28, block, 128), 65536) for block in range(first, first + 1024, 128)]
            for command in commands:
                read.update(command.result())
        assert read.hexdigest() == digest
        data = random.Random(7).randbytes(1 << 18)
        pieces = [(block, data[block * 512 : block * 512 + 65536]) for block in range(0, 512, 128)]
        for command in [client.submit(rw_10(0x2A, block, 128), data=piece) for block, piece in pieces]:
            command.result()
        client.command(bytes((0x35,)).ljust(10, b"\0"))
        assert image.read_bytes()[: 1 << 18] == data
    finally:
        machine.unplug(device)
        image.unlink()


@pytest.mark.parametrize("direction", [WAITS, pytest.param(COMES, marks=pytest.mark.long)])
def test_a_keyboard(passed: Pass, machine: Machine) -> None:
    devices.test_a_keyboard(passed, machine, "xhci")


@ONE
@pytest.mark.long
def test_a_tablet(passed: Pass, machine: Machine) -> None:
    devices.test_a_tablet(passed, machine)


@pytest.mark.long
@pytest.mark.parametrize(("direction", "kibibytes"), [(WAITS, 1024), (COMES, 64)])
def test_a_serial_port(passed: Pass, kibibytes: int) -> None:
    devices.test_a_serial_port_both_ways_through_open_and_close(passed, kibibytes)


@pytest.mark.long
@pytest.mark.parametrize(("direction", "mebibytes"), [(WAITS, 8), (COMES, 1)])
def test_a_network_adapter(passed: Pass, mebibytes: int) -> None:
    devices.test_a_network_adapter(passed, mebibytes)


@BOTH
@pytest.mark.long
def test_a_printer(passed: Pass) -> None:
    devices.test_a_printer(passed)


@BOTH
@pytest.mark.long
def test_sound(passed: Pass, machine: Machine) -> None:
    devices.test_sound(passed, machine)


@BOTH
@pytest.mark.long
@pytest.mark.parametrize("speed", ["high", "super"])
def test_a_drive_recovers_from_stalls_and_resets(passed: Pass, tmp_path: Path, speed: str) -> None:
    devices.test_a_drive_recovers_from_stalls_and_resets(passed, tmp_path, speed)


@ONE
@pytest.mark.long
@pytest.mark.parametrize("speed", ["full", "high", "super"])
def test_source_and_sink(passed: Pass, speed: str) -> None:
    devices.test_source_and_sink(passed, speed)


@ONE
@pytest.mark.long
def test_media_transfer(passed: Pass, machine: Machine, tmp_path: Path) -> None:
    devices.test_media_transfer(passed, machine, tmp_path)


@ONE
@pytest.mark.long
def test_a_smartcard(passed: Pass, machine: Machine) -> None:
    devices.test_a_smartcard(passed, machine)
