"""USB Attached SCSI: its descriptors, data with streams and without, errors of each tag."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.virtual.drive import cdb_10, read_10, write_10
from tests.unit.virtual.uas_drive import (
    ABORT_TASK,
    ACA,
    BIG,
    COMPLETE,
    DATA_IN,
    INQUIRY,
    INVALID_UNIT,
    OVERLAPPED,
    QUERY_TASK,
    STATUS,
    TEST_UNIT_READY,
    Answer,
    UasDrive,
    block,
    parse,
)
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.virtual.uas import OWED_LIMIT, TASK_LIMIT

COMPLETED = TransferStatus.COMPLETED


# -- descriptors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("speed", "exponent"), [(Speed.HIGH, None), (Speed.SUPER, 4)])
def test_uas_is_the_second_alternate_setting(
    make_uas: Callable[..., UasDrive], speed: Speed, exponent: int | None
) -> None:
    flash = make_uas(speed=speed).flash
    bulk_only, setting = flash.configurations[0].interfaces
    assert (bulk_only.alternate, bulk_only.protocol) == (0, 0x50)
    assert (setting.number, setting.alternate, setting.class_code, setting.subclass, setting.protocol) == (
        0,
        1,
        8,
        6,
        0x62,
    )
    assert [endpoint.extra for endpoint in setting.endpoints] == [bytes((4, 0x24, pipe, 0)) for pipe in (1, 2, 3, 4)]
    assert [endpoint.is_in for endpoint in setting.endpoints] == [False, True, True, False]
    streams = [endpoint.companion.attributes if endpoint.companion else None for endpoint in setting.endpoints]
    assert streams == ([0, exponent, exponent, exponent] if exponent else [None] * 4)
    assert flash.max_streams == (16 if exponent else 0)


def test_at_full_speed_there_is_only_bulk_only(high: UasDrive) -> None:
    [configuration] = high.flash.describe(Speed.FULL)
    assert [interface.protocol for interface in configuration.interfaces] == [0x50]


# -- data with streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["status data command", "command data status", "data command status"])
def test_transfers_may_come_before_and_after_the_command(uas: UasDrive, content: bytes, order: str) -> None:
    transfers = {}
    for step in order.split():
        if step == "command":
            uas.command(3, read_10(7, 2))
        else:
            transfers[step] = uas.read(3, 1024) if step == "data" else uas.fetch(3)
    assert (transfers["data"].status, transfers["data"].data) == (COMPLETED, block(content, 7, 2))
    assert parse(transfers["status"]) == Answer(3, 3, 0)


def test_sixteen_commands_in_any_order(uas: UasDrive, content: bytes) -> None:
    for tag in range(1, 17):
        uas.command(tag, read_10(tag * 3, 3))
    for tag in (16, 2, 9, *range(3, 9), 1, *range(10, 16)):
        uas.busy(tag)
        assert uas.read(tag, 1536).data == block(content, tag * 3, 3)
        uas.good(tag)


def test_data_in_several_transfers(uas: UasDrive, content: bytes) -> None:
    uas.command(1, read_10(0, 8))
    assert uas.read(1, 1024).data == block(content, 0, 2)
    uas.busy(1)
    assert uas.read(1, 3072).data == block(content, 2, 6)
    uas.good(1)
    uas.command(1, write_10(0, 8))
    uas.write(1, b"a" * 1024)
    uas.busy(1)
    uas.write(1, b"b" * 3072)
    uas.good(1)
    uas.command(2, read_10(0, 8))
    assert uas.read(2, 4096).data == b"a" * 1024 + b"b" * 3072


def test_a_short_answer_is_a_short_packet(uas: UasDrive) -> None:
    transfer = uas.read(5, 512)
    uas.command(5, INQUIRY)
    assert (transfer.status, transfer.actual) == (COMPLETED, 36)
    uas.good(5)


def test_more_data_than_the_command_takes_is_thrown_away(uas: UasDrive, image: Path) -> None:
    uas.command(1, write_10(0, 1))
    transfer = uas.write(1, b"x" * 512 + b"y" * 512)
    assert (transfer.status, transfer.actual) == (COMPLETED, 1024)
    uas.good(1)
    assert image.read_bytes()[:1024] == b"x" * 512 + image.read_bytes()[512:1024]
    assert image.read_bytes()[512:1024] != b"y" * 512


def test_no_data_no_transfer(uas: UasDrive) -> None:
    uas.command(1, TEST_UNIT_READY)
    uas.good(1)
    uas.command(1, read_10(0, 0))
    uas.good(1)


@pytest.mark.parametrize("length", [16, 15, 0])
def test_a_status_transfer_that_is_too_short(uas: UasDrive, length: int) -> None:
    transfer = uas.fetch(1, length)
    uas.command(1, TEST_UNIT_READY)
    assert transfer.status is (COMPLETED if length == 16 else TransferStatus.BABBLE)


@pytest.mark.parametrize("stream_id", [0, 17, 0xFFFF])
@pytest.mark.parametrize("endpoint", [STATUS, DATA_IN])
def test_a_stream_that_the_pipe_has_not(uas: UasDrive, endpoint: int, stream_id: int) -> None:
    assert uas.submit(endpoint, stream_id, 64).status is TransferStatus.ERROR


# -- data without streams ---------------------------------------------------------------------------------------------


def test_the_device_says_whose_data_is_next(high: UasDrive, content: bytes) -> None:
    for tag in (7, 300, 8):
        high.command(tag, read_10(tag, 1))
    assert high.answer(0) == Answer(6, 7)
    assert high.answer(0) is None  # one at a time on a pipe
    assert high.read(0, 512).data == block(content, 7)
    assert high.answer(0) == Answer(3, 7, 0)
    assert high.answer(0) == Answer(6, 300)
    assert high.read(0, 512).data == block(content, 300)
    assert [high.answer(0), high.answer(0)] == [Answer(3, 300, 0), Answer(6, 8)]
    assert high.read(0, 512).data == block(content, 8)
    high.good(8)


def test_both_data_pipes_at_once(high: UasDrive, content: bytes) -> None:
    high.command(1, read_10(0, 1))
    high.command(2, write_10(9, 1))
    assert [high.answer(0), high.answer(0)] == [Answer(6, 1), Answer(7, 2)]
    high.write(0, b"w" * 512)
    high.good(2)
    assert high.read(0, 512).data == block(content, 0)
    high.good(1)


def test_commands_without_data_do_not_wait_for_a_pipe(high: UasDrive) -> None:
    high.command(1, read_10(0, 1))
    assert high.answer(0) == Answer(6, 1)
    high.command(2, TEST_UNIT_READY)
    high.good(2)


def test_an_aborted_command_gives_its_pipe_to_the_next(high: UasDrive, content: bytes) -> None:
    for tag in (1, 2, 3):
        high.command(tag, read_10(tag, 1))
    high.manage(9, ABORT_TASK, 2)  # waits for its turn
    high.manage(10, ABORT_TASK, 1)  # its READ READY has not been fetched, and is not sent any more
    answers = {high.answer(0) for _ in range(3)}
    assert answers == {Answer(4, 9, COMPLETE), Answer(4, 10, COMPLETE), Answer(6, 3)}
    assert high.read(0, 512).data == block(content, 3)
    high.good(3)


def test_more_commands_than_fit(high: UasDrive) -> None:
    for tag in range(1, TASK_LIMIT + 1):
        high.command(tag, read_10(0, 1))
    high.command(1000, TEST_UNIT_READY)
    assert high.answer(0) == Answer(6, 1)
    assert high.answer(0) == Answer(3, 1000, 0x28)


def test_a_driver_that_fetches_no_status_is_not_listened_to_for_ever(high: UasDrive) -> None:
    for tag in range(OWED_LIMIT):
        high.manage(tag, QUERY_TASK, 5)
    waiting = high.send(bytes((5, 0, 0xAA, 0xAA, QUERY_TASK)) + bytes(11))
    assert waiting.status is None
    assert high.answer(0) == Answer(4, 0, COMPLETE)
    assert waiting.status is COMPLETED


# -- errors -----------------------------------------------------------------------------------------------------------


def test_each_tag_has_its_own_sense(uas: UasDrive, content: bytes) -> None:
    pending = uas.read(1, 512)
    uas.command(1, read_10(1 << 20, 1))
    uas.command(2, bytes((0xFF,)) + bytes(15))
    uas.command(3, read_10(5, 1))
    assert uas.read(3, 512).data == block(content, 5)
    assert uas.answer(2) == Answer(3, 2, 2, (5, 0x20, 0))
    assert uas.answer(1) == Answer(3, 1, 2, (5, 0x21, 0))
    uas.good(3)
    assert pending.status is None  # the driver takes it back
    uas.command(4, bytes((0x03, 0, 0, 0, 18, 0)))
    assert uas.read(4, 18).data[2] == 0  # sense that went with a status is not kept
    uas.good(4)


def test_a_logical_unit_that_is_not_there(uas: UasDrive) -> None:
    uas.command(1, TEST_UNIT_READY, lun=1)
    assert uas.answer(1) == Answer(3, 1, 2, (5, 0x25, 0))


def test_a_write_protected_drive(make_uas: Callable[..., UasDrive]) -> None:
    uas = make_uas(readonly=True)
    uas.command(1, write_10(0, 1))
    assert uas.answer(1) == Answer(3, 1, 2, (7, 0x27, 0))


def test_a_read_that_fails_ends_its_data_and_only_its_command(
    uas: UasDrive, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = uas.flash.disk.image
    read_now = image.read_now

    def failing(windows: list[memoryview], offset: int, length: int) -> bool:
        if offset == 512:
            raise OSError(errno.EIO, "made up")
        return read_now(windows, offset, length)

    monkeypatch.setattr(image, "read_now", failing)
    uas.command(1, read_10(1, 1))
    uas.command(2, read_10(2, 1))
    failed = uas.read(1, 512)
    assert (failed.status, failed.actual) == (COMPLETED, 0)
    assert uas.answer(1) == Answer(3, 1, 2, (3, 0x11, 0))
    assert uas.read(2, 512).data == block(content, 2)
    uas.good(2)


def test_a_write_that_fails_in_a_thread(uas: UasDrive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "made up")

    monkeypatch.setattr(uas.flash.disk.image, "write", full)
    uas.command(1, write_10(0, BIG))
    transfer = uas.write(1, bytes(BIG * 512))
    uas.loop.run_ready()
    assert transfer.status is COMPLETED
    assert uas.answer(1) == Answer(3, 1, 2, (7, 0x27, 7))


def test_a_comparison(uas: UasDrive, content: bytes) -> None:
    uas.command(1, cdb_10(0x2F, 0, 2, 2))
    uas.write(1, content[:1024])
    uas.good(1)
    uas.command(1, cdb_10(0x2F, 0, 2, 2))
    uas.write(1, bytes(1024))
    assert uas.answer(1) == Answer(3, 1, 2, (0xE, 0x1D, 0))


def test_parameters_that_are_refused(uas: UasDrive) -> None:
    uas.command(1, bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 4, 0)))
    uas.write(1, bytes(4))
    assert uas.answer(1) == Answer(3, 1, 2, (5, 0x1A, 0))


@pytest.mark.parametrize("attribute", [3, 5, 6, 7])
def test_a_task_attribute_that_is_none(uas: UasDrive, attribute: int) -> None:
    uas.command(1, TEST_UNIT_READY, attribute)
    assert uas.answer(1) == Answer(4, 1, INVALID_UNIT)


def test_there_is_no_auto_contingent_allegiance(uas: UasDrive) -> None:
    uas.command(1, TEST_UNIT_READY, ACA)
    assert uas.answer(1) == Answer(3, 1, 2, (5, 0x49, 0))


@pytest.mark.parametrize(
    "unit",
    [
        bytes((1, 0, 0, 2)),
        bytes((1, 0, 0, 2)) + bytes(27),
        bytes((1, 0, 0, 2)) + bytes(29),
        bytes((1, 0, 0, 2, 0, 0, 4)) + bytes(25),
        bytes((5, 0, 0, 2)) + bytes(11),
        bytes((5, 0, 0, 2)) + bytes(13),
        bytes((3, 0, 0, 2)) + bytes(28),
        bytes((0, 0, 0, 2)) + bytes(28),
    ],
)
def test_an_information_unit_that_is_none(uas: UasDrive, unit: bytes) -> None:
    assert uas.send(unit).status is COMPLETED
    assert uas.answer(2) == Answer(4, 2, INVALID_UNIT)


@pytest.mark.parametrize("unit", [b"", b"\1\0\0", bytes((1, 0, 0, 0)) + bytes(28), bytes((1, 0, 0, 17)) + bytes(28)])
def test_one_without_a_tag_to_answer_halts_the_command_pipe(uas: UasDrive, unit: bytes) -> None:
    uas.command(1, read_10(0, 1))
    assert uas.send(unit).status is TransferStatus.STALL
    assert uas.send(bytes(32)).status is TransferStatus.STALL
    uas.control(2, 1, 0, 0x04)
    assert uas.read(1, 512).status is COMPLETED
    uas.good(1)


def test_additional_cdb_bytes(uas: UasDrive) -> None:
    uas.command(1, TEST_UNIT_READY, extra=2)
    uas.good(1)


def test_a_tag_that_is_used_twice(uas: UasDrive, content: bytes) -> None:
    uas.command(1, read_10(0, 1))
    uas.command(2, read_10(2, 1))
    uas.command(1, read_10(1, 1))
    assert uas.answer(1) == Answer(4, 1, OVERLAPPED)
    uas.busy(1)
    assert uas.read(1, 512).status is None
    assert uas.read(2, 512).data == block(content, 2)  # nobody else is harmed
    uas.good(2)


def test_a_tag_whose_status_was_not_fetched_is_in_use(uas: UasDrive) -> None:
    uas.command(1, TEST_UNIT_READY)
    uas.manage(1, QUERY_TASK, 1)
    assert uas.answer(1) == Answer(4, 1, OVERLAPPED)
    uas.busy(1)
