"""The UAS drive behind the controller: rings, streams, doorbells and a driver with many commands in flight."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.virtual.drive import cdb_10, read_10, write_10
from tests.unit.virtual.uas_drive import HeldLoop
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import ABORT_TASK, CHECK_CONDITION, ORDERED, UasClient, UasError
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.uas_flash import UasFlash

OUT_OF_RANGE = read_10(1 << 20, 1)
BLOCKS = 4096


class Drive:
    """A guest with the drive plugged in, and its client."""

    def __init__(self, image: Path, speed: Speed) -> None:
        self.loop = HeldLoop()
        self.bus = DirectBus(loop=self.loop)
        self.guest = Guest(self.bus)
        self.image = image
        self.speed = speed
        self.plug()

    def plug(self) -> None:
        self.flash = UasFlash(Image(str(self.image)), self.loop, speed=self.speed)
        self.device: UsbDevice = self.guest.plug(self.flash)
        self.client = UasClient(self.device)


@pytest.fixture
def make_drive(image: Path) -> Iterator[Callable[[Speed], Drive]]:
    drives: list[Drive] = []

    def make(speed: Speed) -> Drive:
        drives.append(Drive(image, speed))
        return drives[-1]

    yield make
    for drive in drives:
        drive.loop.holds = False
        while drive.loop.held:
            drive.loop.release()
        drive.guest.close()


@pytest.fixture(params=[Speed.SUPER, Speed.HIGH], ids=["streams", "no streams"])
def drive(request: pytest.FixtureRequest, make_drive: Callable[[Speed], Drive]) -> Drive:
    return make_drive(request.param)


def test_streams_at_superspeed_only(drive: Drive) -> None:
    assert drive.client.streams == (16 if drive.speed is Speed.SUPER else 0)
    assert drive.client.command(bytes((0x12, 0, 0, 0, 36, 0)), 36)[8:16] == b"USBVFIOD"


def test_sixteen_commands_in_flight(drive: Drive, content: bytes) -> None:
    commands = [drive.client.submit(read_10(block, 8), 4096) for block in range(0, 128, 8)]
    for block, command in reversed(list(zip(range(0, 128, 8), commands, strict=True))):
        assert command.result() == content[block * 512 :][:4096]


def test_random_reads_and_writes_give_what_one_after_the_other_would(drive: Drive, image: Path) -> None:
    choose = random.Random(3)
    expected = bytearray(image.read_bytes())
    flying: list[tuple[object, bytes]] = []
    for _ in range(300):
        block, count = choose.randrange(200), choose.choice((1, 2, 8))
        place = slice(block * 512, (block + count) * 512)
        attribute = ORDERED if choose.random() < 0.1 else 0
        if choose.random() < 0.5:
            data = choose.randbytes(count * 512)
            command = drive.client.submit(write_10(block, count), data=data, attribute=attribute)
            expected[place] = data
            flying.append((command, b""))
        else:
            command = drive.client.submit(read_10(block, count), count * 512, attribute=attribute)
            flying.append((command, bytes(expected[place])))
        while len(flying) > 14:
            index = choose.randrange(len(flying))
            done, data = flying.pop(index)
            assert done.result() == data  # type: ignore[attr-defined]
    for done, data in flying:
        assert done.result() == data  # type: ignore[attr-defined]
    assert image.read_bytes() == bytes(expected)


def test_large_transfers_over_many_trbs(drive: Drive, content: bytes) -> None:
    assert drive.client.command(read_10(0, 2048), 1 << 20) == content[: 1 << 20]
    drive.client.command(write_10(2048, 1024), data=content[: 1 << 19])
    assert drive.client.command(read_10(2048, 1024), 1 << 19) == content[: 1 << 19]


def test_an_error_in_the_middle_of_others(drive: Drive, content: bytes) -> None:
    """Taking back the data transfer stops the endpoint under all other streams; none loses or repeats anything."""
    drive.loop.holds = True
    slow = drive.client.submit(write_10(0, 512), data=bytes(512 * 512))
    commands = [drive.client.submit(read_10(600 + number, 1), 512) for number in range(6)]
    for _ in range(5):
        failed = drive.client.submit(OUT_OF_RANGE, 512).wait()
        assert (failed.status, failed.sense[2]) == (CHECK_CONDITION, 5)
    while drive.loop.held:
        drive.loop.release()
    for number, command in enumerate(commands):
        assert command.result() == content[(600 + number) * 512 :][:512]
    slow.result()
    assert drive.image.read_bytes()[: 512 * 512] == bytes(512 * 512)


def test_a_command_is_aborted_and_its_tag_used_again(drive: Drive, content: bytes) -> None:
    drive.loop.holds = True
    writing = drive.client.submit(write_10(0, 512), data=b"w" * 512 * 512)
    blocked = drive.client.submit(read_10(0, 1), 512)
    aborted = drive.client.manage(ABORT_TASK, blocked.tag).wait()
    assert aborted.response == 0
    drive.client.forget(blocked)
    again = drive.client.submit(read_10(1000, 1), 512, tag=blocked.tag)
    assert again.result() == content[512000:512512]
    drive.loop.release()
    writing.result()


def test_unplugged_with_commands_in_flight_and_plugged_in_again(drive: Drive, content: bytes) -> None:
    drive.loop.holds = True
    commands = [drive.client.submit(write_10(0, 512), data=bytes(512 * 512))]
    commands += [drive.client.submit(read_10(0, 1), 512) for _ in range(12)]
    drive.bus.unplug(drive.device.port.port_id)
    drive.device.port.wait_disconnected()
    assert not any(command.done for command in commands)
    drive.loop.holds = False
    while drive.loop.held:
        drive.loop.release()
    drive.device.disable()
    drive.plug()
    assert drive.client.command(read_10(3000, 1), 512) == content[3000 * 512 :][:512]


def test_reset_with_commands_in_flight(drive: Drive, content: bytes) -> None:
    drive.loop.holds = True
    drive.client.submit(write_10(0, 512), data=b"!" * 512 * 512)
    for _ in range(10):
        drive.client.submit(cdb_10(0x35, 0, 0))
    drive.loop.holds = False
    while drive.loop.held:
        drive.loop.release()
    drive.device.reset()
    client = UasClient(drive.device)
    assert client.command(read_10(0, 1), 512) == b"!" * 512
    assert client.command(read_10(2000, 1), 512) == content[2000 * 512 :][:512]


def test_the_driver_goes_back_to_bulk_only(drive: Drive, content: bytes) -> None:
    drive.device.set_interface(0, 0)
    storage = MassStorage(drive.device)
    assert bytes(storage.read(5, 1)) == content[5 * 512 :][:512]
    storage.close()
    client = UasClient(drive.device)
    assert client.command(read_10(5, 1), 512) == content[5 * 512 :][:512]


def test_superspeed_without_streams_is_refused(make_drive: Callable[[Speed], Drive]) -> None:
    drive = make_drive(Speed.SUPER)
    client = UasClient(drive.device, use_streams=False)
    with pytest.raises(DriverError):
        client.submit(bytes(6)).wait(0.5)


def test_sense_is_raised(drive: Drive) -> None:
    with pytest.raises(UasError) as caught:
        drive.client.command(OUT_OF_RANGE, 512)
    assert (caught.value.status, caught.value.sense) == (CHECK_CONDITION, (5, 0x21, 0))
