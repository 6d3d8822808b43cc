"""A guest's driver, the whole controller, and devices of the host behind it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from usbvfiod_usbfs.backend import UsbfsBackend

from tests.lab.gadgets import Gadget, keyboard, mass_storage
from tests.lab.machine import Machine
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import UasClient

MIB = 1 << 20
CHUNK = 120 << 10  # what Linux asks of a drive at once


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest(DirectBus(loop=StepLoop(virtual_time=False)))
    yield guest
    guest.close()


def plug(guest: Guest, device: HostUsbDevice) -> UsbDevice:
    """Give a device of the host to the guest."""
    return guest.plug(UsbfsBackend().open(str(device.node), HostOptions(), guest.bus.loop))


def copy(guest: Guest, device: HostUsbDevice, image: Path, mebibytes: int) -> None:
    """Write random data over the whole drive, read it back, and compare both with the image."""
    storage = MassStorage(plug(guest, device))
    storage.wait_ready()
    blocks, size = storage.read_capacity()
    assert blocks * size == mebibytes * MIB
    written, read = hashlib.sha256(), hashlib.sha256()
    step = CHUNK // size
    for block in range(0, blocks, step):
        data = os.urandom(min(step, blocks - block) * size)
        written.update(data)
        storage.write(block, data)
    storage.synchronize_cache()
    for block in range(0, blocks, step):
        read.update(storage.read(block, min(step, blocks - block)))
    assert read.hexdigest() == written.hexdigest()
    assert hashlib.sha256(image.read_bytes()).hexdigest() == written.hexdigest()
    with pytest.raises(DriverError):
        storage.read(blocks, 1)  # the gadget stalls, the client recovers
    assert storage.read(0, 1)
    storage.reset_recovery()
    assert storage.read(0, 1)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(2 * MIB))
    return path


@pytest.mark.parametrize("speed", ["high", "super"])
def test_a_drive_is_written_and_read(guest: Guest, image: Path, speed: str) -> None:
    with Gadget([mass_storage(image)], speed=speed) as gadget:
        device = gadget.bind()
        assert device.drivers == {0: "usb-storage"}
        copy(guest, device, image, 2)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_64_mebibytes_are_written_and_read(guest: Guest, image: Path) -> None:
    image.write_bytes(bytes(64 * MIB))
    with Gadget([mass_storage(image)], speed="super") as gadget:
        copy(guest, gadget.bind(), image, 64)


def test_many_commands_over_streams(guest: Guest) -> None:
    image = Path("/exchange/streams.img")
    content = os.urandom(MIB)
    image.write_bytes(content)
    with Machine() as machine:
        client = UasClient(plug(guest, machine.plug_drive(image, "usb-uas")))
        assert client.streams > 1
        reads = [(number * 37 % 120 * 16, 16) for number in range(48)]
        commands = []
        for start, count in reads:
            cdb = bytes((0x28, 0)) + start.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
            commands.append(client.submit(cdb, count * 512))
            if len(commands) == client.streams:
                commands[0].wait()
        for (start, count), command in zip(reads, commands, strict=True):
            assert command.result() == content[start * 512 :][: count * 512]
        data = os.urandom(64 << 10)
        client.command(bytes((0x2A, 0, 0, 0, 0, 64, 0, 0, 128, 0)), data=data)
        assert client.command(bytes((0x28, 0, 0, 0, 0, 64, 0, 0, 128, 0)), len(data)) == data


def test_a_key_is_heard_once(guest: Guest) -> None:
    with Gadget([keyboard()]) as gadget:
        usb = plug(guest, gadget.bind())
        reports = [usb.submit_in(0x81, 8) for _ in range(5)]
        pressed, released = bytes((0, 0, 4, 0, 0, 0, 0, 0)), bytes(8)
        with open(gadget.node("hid"), "wb", buffering=0) as keys:
            keys.write(pressed)
            keys.write(released)
        # The gadget ends a report that fills a packet by an empty one.
        assert [td.result() for td in reports[:4]] == [pressed, b"", released, b""]
        usb.pipe(0x81).cancel(reports[4])
