"""Bulk-only drives of recordings: commands in any order, with any tag, in data phases of any shape."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import FAILED, MassStorage, ScsiError
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.virtual.replay import Replay, ReplayOptions, open_replay

PHRASE = "(replayed): command"
IN, OUT = Endpoint(0x83, 2, 512), Endpoint(0x04, 2, 512)
BULK_ONLY = Interface(0, 8, 6, 0x50, (IN, OUT))
DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AC, 0x0100)
BLOCK = 512
STALLED = -32


def block(number: int) -> bytes:
    return bytes([number]) * BLOCK


def read_10(first: int, count: int) -> bytes:
    return pack(">BBIBHB", 0x28, 0, first, 0, count, 0)


def write_10(first: int, count: int) -> bytes:
    return pack(">BBIBHB", 0x2A, 0, first, 0, count, 0)


INQUIRY = b"\x12\0\0\0\x24\0"
IDENTITY = b"\0\x80\x06\x02\x1f\0\0\0Recorded" + b"Drive of a test ".ljust(16) + b"1.23"
READ_CAPACITY = b"\x25" + bytes(9)
READY = bytes(6)
REQUEST_SENSE = b"\x03\0\0\0\x12\0"
ATTENTION = b"\x70\0\x06\0\0\0\0\x0a\0\0\0\0\x28\0\0\0\0\0"


class Recorded(Conversation):
    """A drive and its driver, as they were recorded."""

    def __init__(self, *interfaces: Interface) -> None:
        super().__init__()
        self.enumerate(DEVICE, Configuration(interfaces or (BULK_ONLY,)))
        self.request(SetupPacket(0xA1, 0xFE, 0, 0, 1), b"\0")
        self.tag = 0x1000

    def command(
        self, command: bytes, data: bytes = b"", *, sent: bool = False, status: int = 0, asked: int | None = None
    ) -> None:
        self.tag += 1
        length = len(data) if asked is None else asked
        flags = 0 if sent else 0x80
        self.write(OUT.address, pack("<4sIIBBB16s", b"USBC", self.tag, length, flags, 0, len(command), command))
        if sent:
            self.write(OUT.address, data)
        elif length:
            self.read(IN.address, data, asked=length, status=0 if data else STALLED)
        self.read(IN.address, pack("<4sIIB", b"USBS", self.tag, length - len(data), status), asked=13)


@pytest.fixture
def plug(tmp_path: Path, usb_guest: Guest, usb_plug: Callable[..., UsbDevice]) -> Callable[[Recorded], MassStorage]:
    def plug(talk: Recorded) -> MassStorage:
        options = from_text(ReplayOptions, {"capture": str(talk.write_to(tmp_path / "drive.pcapng"))})
        device = usb_plug(open_replay(options, usb_guest.bus.loop))
        device.set_configuration(1)
        return MassStorage(device)

    return plug


@pytest.fixture
def drive(plug: Callable[[Recorded], MassStorage]) -> MassStorage:
    talk = Recorded()
    talk.command(INQUIRY, IDENTITY)
    talk.command(READY, status=1)
    talk.command(REQUEST_SENSE, ATTENTION)
    talk.command(READY)
    talk.command(READ_CAPACITY, pack(">II", 99, BLOCK))
    talk.command(read_10(0, 4), b"".join(map(block, range(4))))
    talk.command(read_10(8, 1), block(8))
    talk.command(write_10(20, 2), block(20) + block(21), sent=True)
    return plug(talk)


def test_it_answers_as_it_was_recorded_in_any_order(drive: MassStorage) -> None:
    assert drive.max_lun() == 0
    assert drive.read_capacity() == (100, BLOCK)
    found = drive.inquiry()
    assert (found.vendor, found.product, found.revision) == ("Recorded", "Drive of a test", "1.23")
    assert drive.command(read_10(8, 1), BLOCK) == block(8)
    assert drive.command(read_10(0, 4), 4 * BLOCK) == b"".join(map(block, range(4)))
    assert drive.command(INQUIRY, 36) == IDENTITY


def test_failures_come_in_their_order_with_their_sense(drive: MassStorage) -> None:
    with pytest.raises(ScsiError) as caught:
        drive.test_unit_ready()
    assert (caught.value.key, caught.value.code) == (6, 0x28)
    for _ in range(3):
        drive.test_unit_ready()


def test_blocks_that_were_read_are_read_in_any_pieces(drive: MassStorage, caplog: pytest.LogCaptureFixture) -> None:
    assert drive.command(read_10(1, 2), 2 * BLOCK) == block(1) + block(2)
    read_16 = pack(">BBQIBB", 0x88, 0, 3, 1, 0, 0)
    assert drive.command(read_16, BLOCK) == block(3)
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_blocks_that_were_not_fail_and_are_named(drive: MassStorage, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with pytest.raises(ScsiError) as caught:
            drive.command(read_10(2, 4), 4 * BLOCK)
        assert (caught.value.key, caught.value.code) == (3, 0x11)
    (told,) = [each.getMessage() for each in caplog.records if PHRASE in each.getMessage()]
    assert "command 28 00 00 00 00 02 00 00 04 00 fails: block 4 was never read; the closest that was: 28 00" in told


def test_commands_that_were_not_fail_and_the_next_is_answered(
    drive: MassStorage, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ScsiError) as caught:
        drive.command(b"\x1a\0\x3f\0\xc0\0", 192)
    assert (caught.value.key, caught.value.code) == (5, 0x20)
    assert "command 1a 00 3f 00 c0 00 fails: it was never recorded; the closest that was: " in caplog.text
    with pytest.raises(ScsiError):
        drive.command(write_10(50, 1), data=block(1))
    assert drive.command(INQUIRY, 36) == IDENTITY


def test_what_is_written_is_compared(drive: MassStorage, caplog: pytest.LogCaptureFixture) -> None:
    drive.command(write_10(20, 2), data=block(20) + block(21))
    assert PHRASE not in caplog.text
    for _ in range(2):
        drive.command(write_10(20, 2), data=block(20) + block(22))
    (told,) = [each.getMessage() for each in caplog.records if PHRASE in each.getMessage()]
    assert "comes with other data than were recorded, from byte 512 on" in told


def test_a_short_answer_is_short_and_has_a_residue(plug: Callable[[Recorded], MassStorage]) -> None:
    talk = Recorded()
    talk.command(INQUIRY, IDENTITY, asked=96)
    talk.command(b"\x1a" + bytes(5), b"", asked=192, status=1)
    drive = plug(talk)
    status, residue = drive.transact(INQUIRY, 96, is_in=True)
    assert (status, residue) == (0, 60)
    assert drive.transact(b"\x1a" + bytes(5), 192, is_in=True) == (FAILED, 192)
    assert drive.command(INQUIRY, 36) == IDENTITY


def test_reset_recovery_and_a_reset_of_the_port(drive: MassStorage) -> None:
    drive.reset_recovery()
    assert drive.command(INQUIRY, 36) == IDENTITY


def test_uas_is_not_offered_where_bulk_only_was_recorded(plug: Callable[[Recorded], MassStorage]) -> None:
    talk = Recorded(BULK_ONLY, Interface(0, 8, 6, 0x62, (IN, OUT), alternate=1))
    talk.command(INQUIRY, IDENTITY)
    drive = plug(talk)
    assert [each.alternate for each in drive.device.configurations[0].interfaces] == [0]
    assert drive.inquiry().vendor == "Recorded"


def test_data_that_were_cut_are_zeros_and_no_blocks(tmp_path: Path, usb_guest: Guest) -> None:
    talk = Recorded()
    talk.command(read_10(0, 1), block(7))
    path = tmp_path / "cut.pcapng"
    path.write_bytes(talk.file(snap_length=64 + 100))
    replay = open_replay(from_text(ReplayOptions, {"capture": str(path)}), usb_guest.bus.loop)
    assert isinstance(replay, Replay)
    device = usb_guest.plug(replay)
    device.set_configuration(1)
    assert MassStorage(device).command(read_10(0, 1), BLOCK) == bytes([7]) * 100 + bytes(BLOCK - 100)
