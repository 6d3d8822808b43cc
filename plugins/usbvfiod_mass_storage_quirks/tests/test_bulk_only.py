"""A bulk-only drive in read-only mode, in the hands of a driver that behaves and of one that does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from usbvfiod_mass_storage_quirks.wrappers import CommandBlockWrapper, CommandStatusWrapper

from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError

Drive = Callable[..., UsbDevice]

pytestmark = pytest.mark.usefixtures("unchanged")

IN, OUT = 0x81, 0x02
DATA_PROTECT, ILLEGAL_REQUEST = 7, 5
STALL = 6
"""Completion code of a stalled transfer (xHCI table 6-90)."""


def cdb(text: str) -> bytes:
    return bytes.fromhex(text)


def refused(storage: MassStorage, command: str, length: int = 0, data: bytes = b"") -> tuple[int, int, int]:
    """The sense with which a command fails."""
    with pytest.raises(ScsiError) as error:
        storage.command(cdb(command), length, data)
    return error.value.key, error.value.code, error.value.qualifier


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("stalls", ["false", "true"])
def test_it_is_read(drive: Drive, pipelined: bool, stalls: str) -> None:
    storage = MassStorage(drive(stalls=stalls), pipelined=pipelined)
    assert storage.read_capacity() == (2048, 512)
    assert storage.inquiry().vendor == "USBVFIOD"
    assert bytes(storage.read(7, 2)) == bytes((0, 0, 0, 7)) * 128 + bytes((0, 0, 0, 8)) * 128
    storage.test_unit_ready()
    storage.synchronize_cache()


WRITES = [
    ("0a0000010100", 512),  # WRITE(6)
    ("2a000000000100000100", 512),  # WRITE(10)
    ("aa0000000001000000010000", 512),  # WRITE(12)
    ("8a000000000000000001000000010000", 512),  # WRITE(16)
    ("2e000000000100000100", 512),  # WRITE AND VERIFY(10)
    ("8e000000000000000001000000010000", 512),
    ("41000000000100000100", 512),  # WRITE SAME(10)
    ("93000000000000000001000000010000", 512),
    ("42000000000000001800", 24),  # UNMAP
    ("040000000000", 0),  # FORMAT UNIT
    ("48030000000000000000", 0),  # SANITIZE
    ("150000000400", 4),  # MODE SELECT(6)
    ("55000000000000000800", 8),
    ("89000000000000000001000000010000", 1024),  # COMPARE AND WRITE
    ("3b020000000000010000", 256),  # WRITE BUFFER
    ("3f000000000100020800", 520),  # WRITE LONG(10)
    ("4c000000000000000400", 4),  # LOG SELECT
    ("5f000000000000001800", 24),  # PERSISTENT RESERVE OUT
    ("b50000000000000000040000", 4),  # SECURITY PROTOCOL OUT
    ("070000000000", 4),  # REASSIGN BLOCKS
    ("9f110000000000000001000002080000", 520),  # WRITE LONG(16)
    ("7f0000000000001800 0b".replace(" ", ""), 512),  # WRITE(32), the beginning of it
]


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize(("command", "length"), WRITES, ids=lambda value: str(value)[:4])
def test_what_writes_is_refused_as_write_protected(drive: Drive, command: str, length: int, pipelined: bool) -> None:
    storage = MassStorage(drive(), pipelined=pipelined)
    assert refused(storage, command, data=b"\xff" * length) == (DATA_PROTECT, 0x27, 0)
    storage.test_unit_ready()
    assert bytes(storage.read(1, 1)) == bytes((0, 0, 0, 1)) * 128


@pytest.mark.parametrize("command", ["c0", "d9", "e7", "ff", "02", "06", "20", "7d", "a1", "85", "9e0f", "a306", "a4"])
@pytest.mark.parametrize("way", ["in", "out", "none"])
def test_what_is_not_known_is_no_command(drive: Drive, command: str, way: str) -> None:
    storage = MassStorage(drive())
    length, data = (96, b"") if way == "in" else (0, b"x" * 96) if way == "out" else (0, b"")
    sense = refused(storage, command.ljust(24, "0"), length, data)
    assert sense in ((ILLEGAL_REQUEST, 0x20, 0), (DATA_PROTECT, 0x27, 0))
    assert (sense[0] == DATA_PROTECT) == (command == "a4")
    storage.test_unit_ready()


@pytest.mark.parametrize(
    ("command", "data"),
    [
        ("2f020000000100000100", b"x" * 512),  # VERIFY(10) with data
        ("00" * 6, b"x" * 31),  # TEST UNIT READY with data
        ("28000000000100000100", b"x" * 512),  # READ(10), the other way round
    ],
)
def test_a_command_that_reads_has_no_data_for_the_device(drive: Drive, command: str, data: bytes) -> None:
    storage = MassStorage(drive())
    assert refused(storage, command, data=data) == (ILLEGAL_REQUEST, 0x24, 0)


def test_verifying_without_data_is_reading(drive: Drive) -> None:
    MassStorage(drive()).command(cdb("2f000000000100000100"))


def test_the_guest_is_told_that_it_is_write_protected(drive: Drive) -> None:
    storage = MassStorage(drive())
    assert storage.command(cdb("1a003f00c000"), 192)[2] & 0x80
    assert storage.command(cdb("5a003f00000000000800"), 8)[3] & 0x80


def test_without_the_mode_it_is_not_write_protected(drive: Drive) -> None:
    storage = MassStorage(drive(readonly=False))
    assert not storage.command(cdb("1a003f00c000"), 192)[2] & 0x80
    storage.write(1, bytes((0, 0, 0, 1)) * 128)


def test_sense_in_descriptor_format_and_only_once(drive: Drive) -> None:
    storage = MassStorage(drive())
    status, residue = storage.transact(cdb("2a000000000100000100"), 512, is_in=False)
    assert (status, residue) == (1, 512)
    assert storage.command(cdb("030100001200"), 18) == bytes.fromhex("7207270000000000")
    assert storage.request_sense() == (0, 0, 0)


def test_sense_is_forgotten_by_the_next_command(drive: Drive) -> None:
    storage = MassStorage(drive())
    storage.transact(cdb("2a000000000100000100"), 512, is_in=False)
    storage.test_unit_ready()
    assert storage.request_sense() == (0, 0, 0)


def test_a_refused_command_that_gives_data_gives_zeros(drive: Drive) -> None:
    storage = MassStorage(drive())
    storage.buffer[:100] = b"x" * 100
    assert storage.transact(cdb("c0" + "00" * 9), 96, is_in=True) == (1, 96)
    assert bytes(storage.buffer[:100]) == bytes(96) + b"xxxx"


# -- wrappers that are none -------------------------------------------------------------------------------------------


class Raw:
    """Transfers as they are, without a protocol."""

    def __init__(self, usb: UsbDevice) -> None:
        self.usb = usb

    def out(self, data: bytes) -> bool:
        """Whether it is taken, and not stalled."""
        try:
            self.usb.bulk_out(OUT, data)
        except DriverError as error:
            if error.completion_code != STALL:
                raise
            self.usb.pipe(OUT).flush()
            return False
        return True

    def status(self) -> CommandStatusWrapper | None:
        """None if it is stalled."""
        try:
            return CommandStatusWrapper.unpack(self.usb.bulk_in(IN, 13))
        except DriverError as error:
            if error.completion_code != STALL:
                raise
            self.usb.pipe(IN).flush()
            return None

    def recover(self) -> None:
        self.usb.control_out(0x21, 0xFF, 0, 0)
        self.usb.clear_halt(IN)
        self.usb.clear_halt(OUT)

    def works(self) -> bool:
        return self.out(wrapper("00" * 6)) and self.status() == (1, 0, 0)


def wrapper(command: str, length: int = 0, is_in: bool = False) -> bytes:
    data = cdb(command)
    return CommandBlockWrapper(1, length, is_in, 0, len(data), data).pack()


WRITE = "2a000000000100000100"

MALFORMED = {
    "signature": b"USBD" + wrapper(WRITE, 512)[4:],
    "short": wrapper(WRITE, 512)[:30],
    "long": wrapper(WRITE, 512) + b"\0",
    "two at once": wrapper("00" * 6) + wrapper(WRITE, 512),
    "of a packet": wrapper("00" * 6).ljust(1024, b"\0") + wrapper(WRITE, 512),
    "no command": wrapper(WRITE, 512)[:14] + b"\0" + wrapper(WRITE, 512)[15:],
    "long command": wrapper(WRITE, 512)[:14] + b"\x11" + wrapper(WRITE, 512)[15:],
    "flags": wrapper("00" * 6)[:12] + b"\x01" + wrapper("00" * 6)[13:],
    "unit": wrapper("00" * 6)[:13] + b"\x10" + wrapper("00" * 6)[14:],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_wrapper_that_is_none_halts_the_transport_until_it_is_recovered(drive: Drive, name: str) -> None:
    raw = Raw(drive())
    assert not raw.out(MALFORMED[name])
    raw.usb.clear_halt(OUT)
    assert not raw.out(wrapper("00" * 6))
    assert raw.status() is None
    raw.recover()
    assert raw.works()


def test_a_wrapper_in_two_halves(drive: Drive) -> None:
    raw = Raw(drive())
    assert not raw.out(wrapper(WRITE, 512)[:16])
    raw.usb.clear_halt(OUT)
    assert not raw.out(wrapper(WRITE, 512)[16:])
    raw.recover()
    assert raw.works()


def test_a_wrapper_in_the_place_of_data_is_data(drive: Drive) -> None:
    raw = Raw(drive())
    assert raw.out(wrapper("00" * 6, 31))
    assert raw.out(wrapper(WRITE, 512))
    status = raw.status()
    assert status is not None
    assert status.status == 1
    assert raw.out(wrapper(WRITE, 512))
    assert raw.out(bytes(512))
    status = raw.status()
    assert status is not None
    assert (status.status, status.residue) == (1, 512)
    assert raw.works()


@pytest.mark.parametrize("request_type", [0x40, 0x20, 0x41, 0x21, 0x22, 0x00, 0x23])
@pytest.mark.parametrize("request_", [0, 1, 7, 0x51, 0xFE])
def test_requests_that_no_reading_driver_sends(drive: Drive, request_type: int, request_: int) -> None:
    usb = drive()
    if (request_type, request_) != (0, 1):
        with pytest.raises(DriverError):
            usb.control_out(request_type, request_, 0, 0, b"12345678")
        with pytest.raises(DriverError):
            usb.control_in(request_type | 0x80, request_ ^ 1, 0, 0, 8)
    assert MassStorage(usb).max_lun() == 0
