"""What the disk says about itself: INQUIRY and its pages, capacities, mode pages, supported operations."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.virtual.drive import FAILED, PASSED, Drive
from usbvfiod_core.virtual.operations import OPERATIONS, Operation

Make = Callable[..., Drive]

BLOCKS = 4096
INVALID_FIELD = (5, 0x24, 0)
INVALID_PARAMETER = (5, 0x26, 0)
LENGTH_ERROR = (5, 0x1A, 0)


def inquiry(page: int | None = None, length: int = 255) -> bytes:
    return bytes((0x12, page is not None, page or 0)) + length.to_bytes(2, "big") + b"\0"


def answer(drive: Drive, cdb: bytes, length: int) -> bytes:
    """The data of a command, without what fills up the data phase."""
    outcome = drive.read(cdb, length)
    assert outcome.status == PASSED
    assert not any(outcome.data[length - outcome.residue :])
    return outcome.data[: length - outcome.residue]


# -- INQUIRY -----------------------------------------------------------------------------------------------------------


def test_standard_inquiry(drive: Drive) -> None:
    data = answer(drive, inquiry(), 255)
    assert len(data) == 36 == data[4] + 5
    assert data[:4] == bytes((0, 0x80, 6, 2))
    assert data[8:] == b"USBVFIODFlash Drive     0100"
    assert answer(drive, inquiry(length=5), 5) == data[:5]
    assert answer(drive, inquiry(length=0), 0) == b""


def test_inquiry_pages(make: Make) -> None:
    drive = make(serial="AB-12 x")
    pages = answer(drive, inquiry(0x00), 255)
    assert pages == bytes((0, 0, 0, 6, 0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2))
    for code in pages[4:]:
        page = answer(drive, inquiry(code), 255)
        assert page[:2] == bytes((0, code))
        assert int.from_bytes(page[2:4], "big") == len(page) - 4
    assert answer(drive, inquiry(0x80), 255)[4:] == b"AB-12 x"


def test_inquiry_refused(drive: Drive) -> None:
    assert drive.refused(drive.read(inquiry(0x85), 255)) == INVALID_FIELD
    assert drive.refused(drive.read(bytes((0x12, 0, 0x80, 0, 36, 0)), 36)) == INVALID_FIELD


def test_identification(make: Make, tmp_path: Path) -> None:
    page = answer(make(serial="S1"), inquiry(0x83), 255)
    designators, rest = [], page[4:]
    while rest:
        designators.append((rest[0] & 0x0F, rest[1] & 0x0F, rest[4 : 4 + rest[3]]))
        rest = rest[4 + rest[3] :]
    (ascii_set, vendor, name), (binary, naa, local) = designators
    assert (ascii_set, vendor, name) == (2, 1, b"USBVFIODFlash Drive     S1")
    assert (binary, naa, len(local), local[0] >> 4) == (1, 3, 8, 3)


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_limits(make: Make, block_size: int) -> None:
    page = answer(make(block_size=block_size), inquiry(0xB0), 255)
    assert len(page) == 64
    assert page[4] & 1
    assert int.from_bytes(page[6:8], "big") * block_size == 4096
    assert int.from_bytes(page[12:16], "big") * block_size == 1 << 20
    assert int.from_bytes(page[20:24], "big") * block_size == 1 << 30
    assert int.from_bytes(page[24:28], "big") == 255
    assert int.from_bytes(page[36:44], "big") * block_size == 32 << 20


def test_it_does_not_rotate_and_can_unmap(drive: Drive) -> None:
    assert answer(drive, inquiry(0xB1), 255)[4:6] == b"\0\1"
    assert answer(drive, inquiry(0xB2), 255)[5:7] == bytes((0xE4, 2))


def test_a_protected_disk_does_not_offer_to_unmap(make: Make) -> None:
    drive = make(readonly=True)
    assert not any(answer(drive, inquiry(0xB2), 255)[4:])
    assert not any(answer(drive, inquiry(0xB0), 255)[20:])
    assert not answer(drive, bytes((0x9E, 0x10)) + bytes(11) + b"\x20\0\0", 32)[14]


# -- capacities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [512, 4096])
def test_capacities(make: Make, block_size: int) -> None:
    drive = make(block_size=block_size)
    last = BLOCKS * 512 // block_size - 1
    short = last.to_bytes(4, "big") + block_size.to_bytes(4, "big")
    assert answer(drive, bytes((0x25,)) + bytes(9), 8) == short
    long = answer(drive, bytes((0x9E, 0x10)) + bytes(11) + b"\x20\0\0", 32)
    assert long[:12] == last.to_bytes(8, "big") + block_size.to_bytes(4, "big")
    assert block_size << long[13] == 4096
    assert long[14] == 0xC0
    formats = answer(drive, bytes((0x23, 0, 0, 0, 0, 0, 0, 0, 252, 0)), 252)
    assert formats == bytes((0, 0, 0, 8)) + (last + 1).to_bytes(4, "big") + b"\2" + block_size.to_bytes(3, "big")


def test_bytes_behind_the_last_block_are_no_part_of_the_disk(make: Make, image: Path, content: bytes) -> None:
    os.truncate(image, 512 * 10 + 300)
    drive = make()
    assert answer(drive, bytes((0x25,)) + bytes(9), 8)[:4] == (9).to_bytes(4, "big")
    assert drive.read(bytes((0x28, 0, 0, 0, 0, 10, 0, 0, 1, 0)), 512).status == FAILED
    assert drive.write(bytes((0x2A, 0, 0, 0, 0, 9, 0, 0, 1, 0)), bytes(512)).status == PASSED
    assert image.read_bytes() == content[: 512 * 9] + bytes(512) + content[512 * 10 : 512 * 10 + 300]


def test_a_disk_of_more_than_two_tebibytes(make: Make, image: Path) -> None:
    blocks = (1 << 32) + 10
    os.truncate(image, blocks * 512)
    drive = make()
    assert answer(drive, bytes((0x25,)) + bytes(9), 8)[:4] == b"\xff" * 4
    assert answer(drive, bytes((0x9E, 0x10)) + bytes(11) + b"\x20\0\0", 32)[:8] == (blocks - 1).to_bytes(8, "big")
    end = bytes((0x8A, 0)) + (blocks - 1).to_bytes(8, "big") + (1).to_bytes(4, "big") + b"\0\0"
    assert drive.write(end, b"\x77" * 512).status == PASSED
    assert answer(drive, b"\x88" + end[1:], 512) == b"\x77" * 512


def test_report_luns(drive: Drive) -> None:
    def cdb(select: int) -> bytes:
        return bytes((0xA0, 0, select, 0, 0, 0, 0, 0, 1, 0, 0, 0))

    assert answer(drive, cdb(0), 256) == bytes((0, 0, 0, 8)) + bytes(12)
    assert answer(drive, cdb(2), 256) == bytes((0, 0, 0, 8)) + bytes(12)
    assert answer(drive, cdb(1), 256) == bytes(8)
    assert drive.refused(drive.read(cdb(3), 256)) == INVALID_FIELD


# -- mode pages --------------------------------------------------------------------------------------------------------


def sense_6(page: int, *, flags: int = 0x08, subpage: int = 0, length: int = 192) -> bytes:
    return bytes((0x1A, flags, page, subpage, length, 0))


def sense_10(page: int, *, flags: int = 0x08, subpage: int = 0, length: int = 192) -> bytes:
    return bytes((0x5A, flags, page, subpage, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"


def pages(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        found[data[0]] = data[2 : 2 + data[1]]
        data = data[2 + data[1] :]
    return found


def test_mode_sense(drive: Drive) -> None:
    six = answer(drive, sense_6(0x3F), 192)
    assert six[:4] == bytes((len(six) - 1, 0, 0x10, 0))
    ten = answer(drive, sense_10(0x3F), 192)
    assert ten[:8] == (len(ten) - 2).to_bytes(2, "big") + bytes((0, 0x10, 0, 0, 0, 0))
    assert six[4:] == ten[8:]
    found = pages(six[4:])
    assert {code: len(page) for code, page in found.items()} == {0x01: 10, 0x08: 18, 0x0A: 10, 0x1C: 10}
    assert found[0x08][0] == 0x04
    assert answer(drive, sense_6(0x08), 192)[4:] == bytes((0x08, 18)) + found[0x08]
    assert answer(drive, sense_6(0x3F, length=4), 4) == six[:4]
    assert answer(drive, sense_6(0x3F, subpage=0xFF), 192) == six


def test_mode_sense_with_block_descriptors(drive: Drive) -> None:
    six = answer(drive, sense_6(0x08, flags=0), 192)
    assert six[3] == 8
    assert six[4:12] == BLOCKS.to_bytes(4, "big") + b"\0" + (512).to_bytes(3, "big")
    long = answer(drive, sense_10(0x08, flags=0x10), 192)
    assert (long[4], long[6:8]) == (1, b"\0\x10")
    assert long[8:24] == BLOCKS.to_bytes(8, "big") + bytes(4) + (512).to_bytes(4, "big")


@pytest.mark.parametrize(("control", "caching"), [(0x00, 0x04), (0x40, 0x04), (0x80, 0x04)])
def test_page_control(drive: Drive, control: int, caching: int) -> None:
    assert pages(answer(drive, sense_6(control | 0x3F), 192)[4:])[0x08][0] == caching


def test_changeable_values(drive: Drive) -> None:
    found = pages(answer(drive, sense_6(0x7F), 192)[4:])
    assert {code for code, page in found.items() if any(page)} == {0x08}


def test_mode_sense_refused(drive: Drive) -> None:
    assert drive.refused(drive.read(sense_6(0xFF), 192)) == (5, 0x39, 0)
    assert drive.refused(drive.read(sense_6(0x02), 192)) == INVALID_FIELD
    assert drive.refused(drive.read(sense_10(0x08, subpage=1), 192)) == INVALID_FIELD


def test_a_protected_disk_says_so(make: Make) -> None:
    drive = make(readonly=True)
    assert answer(drive, sense_6(0x3F), 192)[2] == 0x90
    assert answer(drive, sense_10(0x3F), 192)[3] == 0x90


def select_6(data: bytes, flags: int = 0x10) -> bytes:
    return bytes((0x15, flags, 0, 0, len(data), 0))


def select_10(data: bytes, flags: int = 0x10) -> bytes:
    return bytes((0x55, flags, 0, 0, 0, 0, 0)) + len(data).to_bytes(2, "big") + b"\0"


CACHE_OFF = bytes((0x08, 18)) + bytes(18)
CACHE_ON = bytes((0x08, 18, 0x04)) + bytes(17)


def test_mode_select_of_the_write_cache(drive: Drive) -> None:
    def write_cache() -> int:
        return pages(answer(drive, sense_6(0x08), 192)[4:])[0x08][0]

    for data in (bytes(4) + CACHE_OFF, bytes(4) + CACHE_ON):
        assert drive.write(select_6(data), data).status == PASSED
        assert write_cache() == data[6]
    data = bytes(8) + CACHE_OFF
    assert drive.write(select_10(data), data).status == PASSED
    assert write_cache() == 0
    assert pages(answer(drive, sense_6(0x88), 192)[4:])[0x08][0] == 0x04  # the default is what it was


def test_mode_select_takes_what_mode_sense_gave(drive: Drive) -> None:
    six = answer(drive, sense_6(0x3F, flags=0), 192)
    assert drive.write(select_6(six), b"\0" + six[1:]).status == PASSED
    ten = answer(drive, sense_10(0x3F, flags=0x10), 192)
    assert drive.write(select_10(ten), b"\0\0" + ten[2:]).status == PASSED
    assert drive.write(select_10(b""), b"").status == PASSED


@pytest.mark.parametrize(
    ("data", "sense"),
    [
        (bytes(3), LENGTH_ERROR),
        (bytes((0, 0, 0, 8)) + bytes(4), LENGTH_ERROR),
        (bytes(4) + CACHE_ON[:-1], LENGTH_ERROR),
        (bytes(4) + bytes((0x02, 10)) + bytes(10), INVALID_PARAMETER),
        (bytes(4) + bytes((0x08, 17)) + bytes(17), INVALID_PARAMETER),
        (bytes(4) + bytes((0x08, 18, 0x05)) + bytes(17), INVALID_PARAMETER),
        (bytes(4) + bytes((0x0A, 10, 1)) + bytes(9), INVALID_PARAMETER),
        (bytes((0, 0, 0, 8)) + bytes(5) + (4096).to_bytes(3, "big"), INVALID_PARAMETER),
        (bytes((0, 0, 0, 8)) + b"\0\0\0\1\0" + (512).to_bytes(3, "big"), INVALID_PARAMETER),
        (bytes((0, 0, 0, 4)) + bytes(4), INVALID_PARAMETER),
        (bytes(4) + CACHE_OFF + bytes((0x0A, 10, 1)) + bytes(9), INVALID_PARAMETER),
    ],
)
def test_mode_select_refused(drive: Drive, data: bytes, sense: tuple[int, int, int]) -> None:
    assert drive.refused(drive.write(select_6(data), data)) == sense
    assert pages(answer(drive, sense_6(0x08), 192)[4:])[0x08][0] == 0x04


def test_mode_select_flags(drive: Drive) -> None:
    data = bytes(4) + CACHE_OFF
    assert drive.refused(drive.write(select_6(data, 0x00), data)) == INVALID_FIELD
    assert drive.refused(drive.write(select_6(data, 0x11), data)) == INVALID_FIELD
    assert drive.refused(drive.write(bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0)), bytes(512))) == INVALID_FIELD


# -- REPORT SUPPORTED OPERATION CODES ----------------------------------------------------------------------------------


def supported(option: int, code: int = 0, action: int = 0, length: int = 4096) -> bytes:
    return bytes((0xA3, 0x0C, option, code)) + action.to_bytes(2, "big") + length.to_bytes(4, "big") + b"\0\0"


@pytest.mark.parametrize(("flag", "size"), [(0, 8), (0x80, 20)])
def test_all_operations(drive: Drive, flag: int, size: int) -> None:
    data = answer(drive, supported(flag), 4096)
    assert int.from_bytes(data[:4], "big") == len(data) - 4 == len(OPERATIONS) * size
    rows = [data[start : start + size] for start in range(4, len(data), size)]
    assert {row[0] for row in rows} >= {0x00, 0x03, 0x12, 0x28, 0x2A, 0x35, 0x88, 0x8A, 0x9E, 0xA0, 0xA3}
    lengths = {0x00: 6, 0x20: 10, 0x40: 10, 0x80: 16, 0xA0: 12}
    assert all(int.from_bytes(row[6:8], "big") == lengths[row[0] & 0xE0] for row in rows)
    assert [row[0] for row in rows if row[5] & 1] == [0x9E, 0xA3]


@pytest.mark.parametrize("operation", OPERATIONS, ids=[row.name for row in OPERATIONS])
def test_each_operation_is_as_the_table_says(drive: Drive, operation: Operation) -> None:
    option = 1 if operation.action is None else 2
    data = answer(drive, supported(option, operation.code, operation.action or 0), 4096)
    assert data[1] == 3
    usage = data[4:]
    assert len(usage) == int.from_bytes(data[2:4], "big")
    assert usage[0] == operation.code
    drive.read(operation.code.to_bytes(1, "big") + bytes((operation.action or 0,)) + bytes(14), 512)
    assert drive.sense() != (5, 0x20, 0)


def test_operations_that_are_not_there(drive: Drive) -> None:
    assert answer(drive, supported(1, 0x4D), 4096) == bytes((0, 1, 0, 0))
    assert answer(drive, supported(3, 0x4D), 4096) == bytes((0, 1, 0, 0))
    assert answer(drive, supported(2, 0x9E, 0x12), 4096) == bytes((0, 1, 0, 0))
    assert answer(drive, supported(3, 0x9E, 0x10), 4096)[1] == 3
    assert answer(drive, supported(0x83, 0x28), 4096)[1] == 0x83
    assert drive.refused(drive.read(supported(1, 0x9E), 4096)) == INVALID_FIELD
    assert drive.refused(drive.read(supported(2, 0x28), 4096)) == INVALID_FIELD
    assert drive.refused(drive.read(supported(4), 4096)) == INVALID_FIELD
