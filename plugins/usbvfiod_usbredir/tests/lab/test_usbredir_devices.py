"""Devices behind Debian's usbredirect: a `usbvfiod` process gives them to a guest, whose driver uses them for real."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.guest_classes import endpoint
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.stock_redirect import Redirect
from tests.lab.test_devices import check_storage, exchange_image, rw_10
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.usb.transfer import TransferType


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.mark.parametrize("mebibytes", [2, pytest.param(64, marks=pytest.mark.long)])
def test_a_drive_both_ways(machine: Machine, tmp_path: Path, mebibytes: int) -> None:
    image, digest = exchange_image(mebibytes)
    device = machine.plug_drive(image, controller="ehci")
    try:
        with Redirect(device) as there, Passed("usbredir", device, tmp_path, address=there.address) as given:
            disk = MassStorage(given.device, pipelined=False)
            with suppress(ScsiError):
                disk.test_unit_ready()  # usbredirect has reset it
            written = check_storage(disk, digest, mebibytes)
            assert hashlib.sha256(image.read_bytes()).hexdigest() == written
    finally:
        machine.unplug(device)
        image.unlink()


@pytest.mark.long  # streams of a host in Python are a test of every run: tests/unit
def test_uas_with_streams(machine: Machine, tmp_path: Path) -> None:
    image, digest = exchange_image(2)
    device = machine.plug_drive(image, "usb-uas", controller="xhci")
    try:
        with Redirect(device) as there, Passed("usbredir", device, tmp_path, address=there.address) as given:
            client = UasClient(given.device)
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


def test_a_keyboard(machine: Machine, tmp_path: Path) -> None:
    device = machine.plug("usb-kbd")
    try:
        with Redirect(device) as there, Passed("usbredir", device, tmp_path, address=there.address) as given:
            guest = given.device
            assert guest.configuration is not None
            address = endpoint(guest.configuration.interfaces[0], TransferType.INTERRUPT, is_in=True).address
            for _ in range(3):
                tds = [guest.submit_in(address, 8) for _ in range(2)]
                machine.press("a")
                assert [td.result()[2] for td in tds] == [4, 0]
    finally:
        machine.unplug(device)
