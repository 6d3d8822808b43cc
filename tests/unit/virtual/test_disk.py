"""Every SCSI command of the disk that reads, writes or changes the medium, and how it is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.virtual.drive import FAILED, PASSED, Drive, cdb_6, cdb_10, cdb_12, cdb_16, read_10, write_10
from usbvfiod_core.virtual.image import Image

Make = Callable[..., Drive]

BLOCKS = 4096
INVALID_OPCODE = (5, 0x20, 0)
OUT_OF_RANGE = (5, 0x21, 0)
INVALID_FIELD = (5, 0x24, 0)
LENGTH_ERROR = (5, 0x1A, 0)
WRITE_PROTECTED = (7, 0x27, 0)
NOT_PRESENT = (2, 0x3A, 0)
CHANGED = (6, 0x28, 0)

TEST_UNIT_READY = bytes(6)
READS = {"6": (0x08, cdb_6), "10": (0x28, cdb_10), "12": (0xA8, cdb_12), "16": (0x88, cdb_16)}
WRITES = {
    "6": (0x0A, cdb_6),
    "10": (0x2A, cdb_10),
    "12": (0xAA, cdb_12),
    "16": (0x8A, cdb_16),
    "and-verify-10": (0x2E, cdb_10),
    "and-verify-12": (0xAE, cdb_12),
    "and-verify-16": (0x8E, cdb_16),
}
VERIFIES = {"10": (0x2F, cdb_10), "12": (0xAF, cdb_12), "16": (0x8F, cdb_16)}
SYNCHRONIZES = {"10": (0x35, cdb_10), "16": (0x91, cdb_16)}

Form = Callable[..., bytes]
Row = tuple[int, Form]


# -- READ, WRITE, VERIFY -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", READS.values(), ids=READS)
def test_read(drive: Drive, content: bytes, row: Row) -> None:
    code, form = row
    for block, count in ((0, 1), (17, 8), (BLOCKS - 3, 3)):
        expected = content[block * 512 : (block + count) * 512]
        assert drive.read(form(code, block, count), count * 512) == (expected, PASSED, 0, False)
    assert drive.refused(drive.read(form(code, BLOCKS - 1, 2), 1024)) == OUT_OF_RANGE
    assert drive.refused(drive.read(form(code, BLOCKS, 1), 512)) == OUT_OF_RANGE


@pytest.mark.parametrize("row", [row for name, row in READS.items() if name != "6"])
def test_reading_nothing_and_protection(drive: Drive, row: Row) -> None:
    code, form = row
    assert drive.command(form(code, 0, 0)) == PASSED
    assert drive.command(form(code, BLOCKS, 0)) == PASSED
    assert drive.refused(drive.read(form(code, 0, 1, 0x20), 512)) == INVALID_FIELD


def test_read_6_of_zero_blocks_is_256(drive: Drive, content: bytes) -> None:
    assert drive.read(cdb_6(0x08, 1, 0), 256 * 512).data == content[512 : 257 * 512]


def test_huge_addresses(drive: Drive) -> None:
    assert drive.refused(drive.read(cdb_16(0x88, (1 << 64) - 1, 0xFFFFFFFF), 512)) == OUT_OF_RANGE
    assert drive.refused(drive.read(cdb_12(0xA8, 0xFFFFFFFF, 0xFFFFFFFF), 512)) == OUT_OF_RANGE


@pytest.mark.parametrize("row", WRITES.values(), ids=WRITES)
def test_write(drive: Drive, image: Path, content: bytes, row: Row) -> None:
    code, form = row
    data = content[::-1][:4096]
    assert drive.write(form(code, 100, 8), data) == (b"", PASSED, 0, False)
    assert image.read_bytes() == content[: 100 * 512] + data + content[108 * 512 :]
    assert drive.refused(drive.write(form(code, BLOCKS - 1, 2), data[:1024])) == OUT_OF_RANGE
    assert len(image.read_bytes()) == len(content)


@pytest.mark.parametrize("row", WRITES.values(), ids=WRITES)
def test_write_on_a_protected_medium(make: Make, image: Path, content: bytes, row: Row) -> None:
    code, form = row
    image.chmod(0o444)
    drive = make(readonly=True)
    assert drive.refused(drive.write(form(code, 0, 1), bytes(512))) == WRITE_PROTECTED
    assert image.read_bytes() == content


@pytest.mark.parametrize("row", VERIFIES.values(), ids=VERIFIES)
def test_verify(drive: Drive, content: bytes, row: Row) -> None:
    code, form = row
    assert drive.command(form(code, 0, 100)) == PASSED
    assert drive.refused(drive.command(form(code, BLOCKS, 1))) == OUT_OF_RANGE
    compare = form(code, 5, 4, 0x02)
    assert drive.write(compare, content[5 * 512 : 9 * 512], transfers=[512]) == (b"", PASSED, 0, False)
    wrong = bytearray(content[5 * 512 : 9 * 512])
    wrong[700] ^= 1
    assert drive.refused(drive.write(compare, bytes(wrong), transfers=[512, 512])) == (0xE, 0x1D, 0)
    assert drive.refused(drive.command(form(code, 0, 1, 0x04))) == INVALID_FIELD


def test_sense_says_which_block(drive: Drive) -> None:
    assert drive.read(read_10(BLOCKS + 5, 1), 512).status == FAILED
    sense = drive.read(bytes((0x03, 0, 0, 0, 18, 0)), 18).data
    assert sense == bytes((0xF0, 0, 5)) + (BLOCKS + 5).to_bytes(4, "big") + bytes((10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0))
    assert drive.read(read_10(BLOCKS + 5, 1), 512).status == FAILED
    sense = drive.read(bytes((0x03, 1, 0, 0, 252, 0)), 20).data
    assert sense == bytes((0x72, 5, 0x21, 0, 0, 0, 0, 12, 0, 10, 0x80, 0)) + (BLOCKS + 5).to_bytes(8, "big")


def test_sense_is_reported_once_and_forgotten_by_the_next_command(drive: Drive) -> None:
    assert drive.command(b"\xff" * 6) == FAILED
    assert drive.sense() == INVALID_OPCODE
    assert drive.sense() == (0, 0, 0)
    assert drive.command(b"\xff" * 6) == FAILED
    assert drive.command(TEST_UNIT_READY) == PASSED
    assert drive.sense() == (0, 0, 0)


@pytest.mark.parametrize("code", [0x01, 0x04, 0x16, 0x1C, 0x24, 0x3B, 0x4D, 0x7F, 0x85, 0x9D, 0xA1, 0xB5, 0xC0, 0xFF])
def test_what_is_not_known_is_refused(drive: Drive, code: int) -> None:
    assert drive.refused(drive.command(bytes((code,)) + bytes(15))) == INVALID_OPCODE


def test_log_sense_is_refused_with_its_data_phase(drive: Drive) -> None:
    assert drive.refused(drive.read(bytes((0x4D, 0, 0x40, 0, 0, 0, 0, 0, 64, 0)), 64)) == INVALID_OPCODE


def test_unknown_service_actions(drive: Drive) -> None:
    assert drive.refused(drive.command(bytes((0x9E, 0x11)) + bytes(14))) == INVALID_OPCODE
    assert drive.refused(drive.command(bytes((0xA3, 0x0D)) + bytes(10))) == INVALID_OPCODE


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts fdatasync."""
    seen: list[int] = []
    real = os.fdatasync

    def count(fd: int) -> None:
        seen.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", count)
    return seen


@pytest.mark.parametrize("row", SYNCHRONIZES.values(), ids=SYNCHRONIZES)
def test_synchronize_cache(drive: Drive, flushes: list[int], row: Row) -> None:
    code, form = row
    assert drive.command(form(code, 0, 0)) == PASSED
    assert drive.command(form(code, 10, 20)) == PASSED
    assert len(flushes) == 2
    assert drive.refused(drive.command(form(code, BLOCKS, 1))) == OUT_OF_RANGE


def test_forced_unit_access_flushes_before_the_status(drive: Drive, flushes: list[int]) -> None:
    assert drive.write(write_10(0, 1), bytes(512)).status == PASSED
    assert not flushes
    assert drive.write(write_10(0, 1, 0x08), bytes(512)).status == PASSED
    assert len(flushes) == 1
    assert drive.write(cdb_10(0x2E, 0, 1), bytes(512)).status == PASSED
    assert len(flushes) == 2


def test_without_write_cache_every_write_is_flushed(drive: Drive, flushes: list[int]) -> None:
    page = bytes((0x08, 18)) + bytes(18)
    assert drive.write(bytes((0x15, 0x10, 0, 0, 24, 0)), bytes(4) + page).status == PASSED
    flushes.clear()
    assert drive.write(write_10(0, 1), bytes(512)).status == PASSED
    assert len(flushes) == 1


def test_a_flush_that_fails(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fail)
    assert drive.refused(drive.command(cdb_10(0x35, 0, 0))) == (3, 0x0C, 0)
    monkeypatch.undo()
    # Linux has told of the failure, and dropped the data.
    assert drive.refused(drive.command(cdb_10(0x35, 0, 0))) == (3, 0x0C, 0)
    assert drive.write(write_10(0, 1), bytes(512)).status == PASSED
    assert drive.write(write_10(0, 1, 0x08), bytes(512)).status == FAILED


@pytest.mark.parametrize("zeros", [b"", bytes(512)])
def test_without_write_cache_filled_blocks_are_flushed(drive: Drive, flushes: list[int], zeros: bytes) -> None:
    page = bytes((0x08, 18)) + bytes(18)
    assert drive.write(bytes((0x15, 0x10, 0, 0, 24, 0)), bytes(4) + page).status == PASSED
    flushes.clear()
    if zeros:
        assert drive.write(cdb_10(0x41, 0, 1), zeros).status == PASSED
    else:
        listed = bytes((0, 22, 0, 16, 0, 0, 0, 0)) + bytes(8) + (1).to_bytes(4, "big") + bytes(4)
        assert drive.write(bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0)), listed).status == PASSED
    assert len(flushes) == 1


# -- errors of the image -----------------------------------------------------------------------------------------------


def _failing(code: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_read_error_is_a_medium_error(drive: Drive, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", _failing(errno.EIO))
    outcome = drive.read(read_10(7, 2), 1024)
    assert outcome == (bytes(1024), FAILED, 1024, False)
    monkeypatch.undo()
    assert drive.sense() == (3, 0x11, 0)
    assert drive.read(read_10(0, 2), 1024).data == content[:1024]


@pytest.mark.parametrize(
    ("code", "sense"),
    [
        (errno.EIO, (3, 0x0C, 0)),
        (errno.ENOSPC, (7, 0x27, 7)),
        (errno.EDQUOT, (7, 0x27, 7)),
        (errno.EPERM, (7, 0x27, 0)),
    ],
)
@pytest.mark.parametrize("count", [2, 1024])
def test_a_write_error(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, code: int, sense: tuple[int, int, int], count: int
) -> None:
    monkeypatch.setattr(os, "pwritev", _failing(code))
    outcome = drive.write(write_10(0, count), bytes(count * 512))
    assert (outcome.status, outcome.residue) == (FAILED, count * 512)
    monkeypatch.undo()
    assert drive.sense() == sense
    assert drive.write(write_10(0, 1), bytes(512)).status == PASSED


def test_an_image_truncated_under_us(drive: Drive, image: Path, content: bytes) -> None:
    os.truncate(image, 1000 * 512 + 100)
    assert drive.read(read_10(998, 2), 1024).data == content[998 * 512 : 1000 * 512]
    outcome = drive.read(read_10(998, 4), 2048, transfers=[1024])
    assert outcome == (content[998 * 512 : 1000 * 512] + bytes(1024), FAILED, 1024, False)
    assert drive.sense() == (3, 0x11, 0)
    assert drive.write(write_10(BLOCKS - 1, 1), b"\xaa" * 512).status == PASSED
    assert os.path.getsize(image) == len(content)
    assert drive.read(read_10(2000, 1), 512).data == bytes(512)


# -- UNMAP and WRITE SAME ----------------------------------------------------------------------------------------------


def unmap(*ranges: tuple[int, int]) -> bytes:
    listed = b"".join(block.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for block, count in ranges)
    return (len(listed) + 6).to_bytes(2, "big") + len(listed).to_bytes(2, "big") + bytes(4) + listed


def unmap_cdb(data: bytes, flags: int = 0) -> bytes:
    return bytes((0x42, flags, 0, 0, 0, 0, 0)) + len(data).to_bytes(2, "big") + b"\0"


def test_unmap(drive: Drive, image: Path, content: bytes) -> None:
    data = unmap((8, 16), (100, 1), (0, 0))
    assert drive.write(unmap_cdb(data), data) == (b"", PASSED, 0, False)
    expected = bytearray(content)
    expected[8 * 512 : 24 * 512] = bytes(16 * 512)
    expected[100 * 512 : 101 * 512] = bytes(512)
    assert image.read_bytes() == bytes(expected)
    assert drive.command(unmap_cdb(b"")) == PASSED


def test_unmap_refused(drive: Drive, image: Path, content: bytes) -> None:
    beyond = unmap((0, 1), (BLOCKS - 1, 2))
    assert drive.refused(drive.write(unmap_cdb(beyond), beyond)) == OUT_OF_RANGE
    assert drive.refused(drive.write(unmap_cdb(bytes(7)), bytes(7))) == LENGTH_ERROR
    data = unmap((0, 1))
    assert drive.refused(drive.write(unmap_cdb(data, 1), data)) == INVALID_FIELD
    many = unmap(*[(0, 1)] * 256)
    assert drive.refused(drive.write(unmap_cdb(many), many)) == INVALID_FIELD
    assert image.read_bytes() == content


def test_unmap_of_more_than_the_limit(make: Make, image: Path) -> None:
    os.truncate(image, 2 << 30)
    drive = make()
    limit = (1 << 30) // 512
    at, beyond = unmap((5, limit)), unmap((5, limit + 1))
    assert drive.write(unmap_cdb(at), at).status == PASSED
    assert drive.refused(drive.write(unmap_cdb(beyond), beyond)) == (5, 0x26, 0)


def test_unmap_on_a_protected_medium(make: Make, image: Path, content: bytes) -> None:
    data = unmap((0, 1))
    drive = make(readonly=True)
    assert drive.refused(drive.write(unmap_cdb(data), data)) == WRITE_PROTECTED
    for cdb in (cdb_10(0x41, 0, 1), cdb_16(0x93, 0, 1), cdb_16(0x93, 0, 1, 1)):
        assert drive.refused(drive.write(cdb, bytes(512) if cdb[1] != 1 else b"")) == WRITE_PROTECTED
    assert image.read_bytes() == content


@pytest.mark.parametrize("row", [(0x41, cdb_10), (0x93, cdb_16)], ids=["10", "16"])
@pytest.mark.parametrize("flags", [0, 0x08], ids=["", "unmap"])
@pytest.mark.parametrize("block", [bytes(512), bytes(range(256)) * 2], ids=["zeros", "pattern"])
def test_write_same(drive: Drive, image: Path, content: bytes, row: Row, flags: int, block: bytes) -> None:
    code, form = row
    assert drive.write(form(code, 3, 3000, flags), block) == (b"", PASSED, 0, False)
    assert image.read_bytes() == content[: 3 * 512] + block * 3000 + content[3003 * 512 :]


def test_write_same_without_data(drive: Drive, image: Path, content: bytes) -> None:
    assert drive.command(cdb_16(0x93, 1, 2, 0x01)) == PASSED
    assert image.read_bytes() == content[:512] + bytes(1024) + content[1536:]


@pytest.mark.parametrize("flags", [0x20, 0x10, 0x02, 0x04])
def test_write_same_refused(drive: Drive, flags: int) -> None:
    for code, form in ((0x41, cdb_10), (0x93, cdb_16)):
        assert drive.refused(drive.write(form(code, 0, 1, flags), bytes(512))) == INVALID_FIELD
        assert drive.refused(drive.write(form(code, 0, 0), bytes(512))) == INVALID_FIELD
        assert drive.refused(drive.write(form(code, BLOCKS - 1, 2), bytes(512))) == OUT_OF_RANGE
    assert drive.refused(drive.write(cdb_16(0x93, 0, 1 << 20), bytes(512))) == INVALID_FIELD


def test_zeroing_where_no_hole_can_be(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usbvfiod_core.virtual.image._fallocate", lambda *_: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EOPNOTSUPP)
    path = tmp_path / "i"
    path.write_bytes(content)
    image = Image(str(path))
    image.fill(bytes(512), 512, 3 << 19)
    image.close()
    assert path.read_bytes() == content[:512] + bytes(3 << 19) + content[512 + (3 << 19) :]


# -- ejecting ----------------------------------------------------------------------------------------------------------


def start_stop(flags: int) -> bytes:
    return bytes((0x1B, 0, 0, 0, flags, 0))


def test_eject_and_load(drive: Drive, content: bytes) -> None:
    assert drive.command(start_stop(0x02)) == PASSED
    assert drive.refused(drive.command(TEST_UNIT_READY)) == NOT_PRESENT
    assert drive.refused(drive.read(read_10(0, 1), 512)) == NOT_PRESENT
    assert drive.refused(drive.write(write_10(0, 1), bytes(512))) == NOT_PRESENT
    assert drive.read(bytes((0x12, 0, 0, 0, 36, 0)), 36).status == PASSED
    assert drive.sense() == NOT_PRESENT
    assert drive.read(bytes((0x1A, 0, 0x3F, 0, 192, 0)), 192).status == PASSED
    formats = drive.read(bytes((0x23, 0, 0, 0, 0, 0, 0, 0, 12, 0)), 12).data
    assert formats[8] == 3
    assert drive.command(start_stop(0x03)) == PASSED
    assert drive.read(bytes((0x12, 0, 0, 0, 36, 0)), 36).status == PASSED
    assert drive.refused(drive.command(TEST_UNIT_READY)) == CHANGED
    assert drive.command(TEST_UNIT_READY) == PASSED
    assert drive.read(read_10(0, 1), 512).data == content[:512]


def test_an_attention_is_taken_by_request_sense(drive: Drive) -> None:
    drive.command(start_stop(0x02))
    drive.command(start_stop(0x03))
    assert drive.sense() == CHANGED
    assert drive.command(TEST_UNIT_READY) == PASSED


def test_prevented_removal(drive: Drive) -> None:
    assert drive.command(bytes((0x1E, 0, 0, 0, 1, 0))) == PASSED
    assert drive.refused(drive.command(start_stop(0x02))) == (5, 0x53, 2)
    assert drive.command(TEST_UNIT_READY) == PASSED
    assert drive.command(bytes((0x1E, 0, 0, 0, 0, 0))) == PASSED
    assert drive.command(start_stop(0x02)) == PASSED


def test_a_reset_forgets_the_prevention_but_not_the_ejection(drive: Drive) -> None:
    drive.command(bytes((0x1E, 0, 0, 0, 1, 0)))
    drive.bench.reset()
    drive.configure()
    assert drive.command(start_stop(0x02)) == PASSED
    drive.bench.reset()
    drive.configure()
    assert drive.refused(drive.command(TEST_UNIT_READY)) == NOT_PRESENT


def test_stopping_flushes_and_changes_nothing(drive: Drive, flushes: list[int]) -> None:
    for flags in (0x00, 0x01, 0x10, 0x30):
        assert drive.command(start_stop(flags)) == PASSED
    assert len(flushes) == 4
    assert drive.command(TEST_UNIT_READY) == PASSED


def test_a_fixed_disk_cannot_be_ejected(make: Make) -> None:
    drive = make(removable=False)
    assert drive.refused(drive.command(start_stop(0x02))) == INVALID_FIELD
    assert drive.refused(drive.command(bytes((0x1E, 0, 0, 0, 1, 0)))) == INVALID_FIELD
    assert drive.read(bytes((0x12, 0, 0, 0, 36, 0)), 36).data[1] == 0
