"""UAS: which commands wait for which, and task management."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.virtual.drive import cdb_16, read_10, write_10
from tests.unit.virtual.uas_drive import (
    ABORT_TASK,
    ABORT_TASK_SET,
    BIG,
    CLEAR_TASK_SET,
    COMPLETE,
    HEAD_OF_QUEUE,
    INCORRECT_UNIT,
    NEXUS_RESET,
    NOT_SUPPORTED,
    ORDERED,
    QUERY_TASK,
    QUERY_TASK_SET,
    SUCCEEDED,
    SYNCHRONIZE,
    TEST_UNIT_READY,
    UNIT_RESET,
    Answer,
    UasDrive,
    block,
)
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.virtual.uas import TASK_LIMIT

COMPLETED = TransferStatus.COMPLETED


# -- order ------------------------------------------------------------------------------------------------------------


def test_overlapping_writes_take_effect_in_order(uas: UasDrive, image: Path) -> None:
    uas.loop.holds = True
    uas.command(1, write_10(0, BIG))
    uas.command(2, write_10(10, 1))
    uas.command(3, write_10(1000, 1))
    uas.command(4, read_10(10, 1))
    first, second, third = uas.write(1, b"1" * BIG * 512), uas.write(2, b"2" * 512), uas.write(3, b"3" * 512)
    fourth = uas.read(4, 512)
    assert (second.status, third.status, fourth.status) == (None, COMPLETED, None)
    uas.good(3)
    uas.loop.release()
    assert [each.status for each in (first, second, fourth)] == [COMPLETED] * 3
    assert fourth.data == b"2" * 512
    for tag in (1, 2, 4):
        uas.good(tag)
    content = image.read_bytes()
    assert content[: BIG * 512] == b"1" * 5120 + b"2" * 512 + b"1" * (BIG * 512 - 5632)


def test_a_write_waits_for_an_earlier_read_of_its_blocks(uas: UasDrive, content: bytes) -> None:
    uas.command(1, read_10(0, 4))  # its data has not been asked for
    uas.command(2, write_10(3, 1))
    written = uas.write(2, b"n" * 512)
    assert written.status is None
    assert uas.read(1, 2048).data == block(content, 0, 4)
    assert written.status is COMPLETED


def test_reads_do_not_wait_for_each_other(uas: UasDrive, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    uas.loop.holds = True
    monkeypatch.setattr(uas.flash.disk.image, "read_now", lambda *_: False)
    transfers = []
    for tag in range(1, 17):
        uas.command(tag, read_10(0, tag))
        transfers.append(uas.read(tag, tag * 512))
    assert len(uas.loop.held) == 16
    for index in (15, 3, 0):
        uas.loop.release(index)
    done = [tag for tag, transfer in enumerate(transfers, 1) if transfer.status is COMPLETED]
    assert done == [1, 4, 16]
    for tag in done:
        assert transfers[tag - 1].data == block(content, 0, tag)
        uas.good(tag)


def test_a_flush_waits_for_the_writes_before_it_only(uas: UasDrive) -> None:
    uas.loop.holds = True
    uas.command(1, write_10(0, BIG))
    uas.write(1, bytes(BIG * 512))
    uas.command(2, SYNCHRONIZE)
    uas.command(3, write_10(2000, 1))
    uas.write(3, bytes(512))
    uas.good(3)
    assert len(uas.loop.held) == 1
    uas.loop.release()
    uas.good(1)
    assert len(uas.loop.held) == 1  # now the flush
    uas.command(4, write_10(0, 1))
    uas.write(4, bytes(512))
    uas.good(4)
    uas.loop.release()
    uas.good(2)


def test_forced_unit_access_flushes_before_its_status(uas: UasDrive) -> None:
    uas.loop.holds = True
    uas.command(1, write_10(0, 1, 8))
    assert uas.write(1, bytes(512)).status is COMPLETED
    uas.busy(1)
    uas.loop.release()
    uas.good(1)


@pytest.mark.parametrize("parameters", [True, False])
def test_unmapping_waits_for_all_and_all_for_it(uas: UasDrive, content: bytes, parameters: bool) -> None:
    uas.command(1, read_10(100, 1))
    if parameters:
        uas.command(2, bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0)))
        listed = (100).to_bytes(8, "big") + (1).to_bytes(4, "big") + bytes(4)
        assert uas.write(2, bytes((0, 22, 0, 16, 0, 0, 0, 0)) + listed).status is None
    else:
        uas.command(2, cdb_16(0x93, 100, 1, 1))
    uas.command(3, read_10(100, 1))
    after = uas.read(3, 512)
    uas.loop.run_ready()
    assert after.status is None
    assert uas.read(1, 512).data == block(content, 100)
    uas.loop.run_ready()
    assert after.data == bytes(512)
    for tag in (1, 2, 3):
        uas.good(tag)


def test_an_ordered_command_is_a_barrier(uas: UasDrive) -> None:
    uas.command(1, read_10(0, 1))
    uas.command(2, TEST_UNIT_READY, ORDERED)
    uas.command(3, TEST_UNIT_READY)
    uas.busy(2)
    uas.busy(3)
    uas.read(1, 512)
    for tag in (1, 2, 3):
        uas.good(tag)


def test_the_head_of_the_queue_passes_what_waits(uas: UasDrive, content: bytes) -> None:
    uas.loop.holds = True
    uas.command(1, write_10(0, BIG))
    running = uas.write(1, b"1" * BIG * 512)
    uas.command(2, write_10(BIG - 1, 2))
    uas.write(2, b"2" * 1024)
    uas.command(3, write_10(BIG, 2), HEAD_OF_QUEUE)
    assert uas.write(3, b"3" * 1024).status is COMPLETED
    uas.good(3)
    uas.busy(2)
    assert running.status is None
    uas.loop.release()
    uas.good(1)
    uas.good(2)
    uas.command(4, read_10(BIG - 1, 3))
    assert uas.read(4, 1536).data == b"2" * 1024 + b"3" * 512


def test_a_long_queue_of_the_same_block(high: UasDrive) -> None:
    """No recursion as deep as the queue."""
    for tag in range(1, TASK_LIMIT):
        high.command(tag, TEST_UNIT_READY, ORDERED)
    high.command(TASK_LIMIT, TEST_UNIT_READY, ORDERED)
    for tag in range(1, TASK_LIMIT + 1):
        high.good(tag)
    high.command(1, read_10(0, 1))
    for tag in range(2, TASK_LIMIT + 1):
        high.command(tag, TEST_UNIT_READY, ORDERED)
    assert high.answer(0) == Answer(6, 1)
    high.read(0, 512)
    for tag in range(1, TASK_LIMIT + 1):
        high.good(tag)


# -- task management --------------------------------------------------------------------------------------------------


def test_abort_task(uas: UasDrive, content: bytes) -> None:
    data = uas.read(2, 512)
    uas.bench.cancel(data)
    uas.command(1, read_10(0, 1))
    uas.command(2, read_10(1, 1))
    uas.manage(3, ABORT_TASK, 1)
    assert uas.answer(3) == Answer(4, 3, COMPLETE)
    assert uas.read(1, 512).status is None
    uas.busy(1)
    assert uas.read(2, 512).data == block(content, 1)
    uas.good(2)
    uas.manage(3, ABORT_TASK, 1)  # one that is over
    assert uas.answer(3) == Answer(4, 3, COMPLETE)


def test_abort_waits_for_the_thread_and_so_does_what_comes_after(uas: UasDrive) -> None:
    uas.loop.holds = True
    uas.command(1, write_10(0, BIG))
    data = uas.write(1, b"1" * BIG * 512)
    uas.manage(2, ABORT_TASK, 1)
    uas.busy(2)
    uas.command(1, write_10(0, 1))
    later = uas.write(1, b"2" * 512)
    assert (data.status, later.status) == (None, None)
    uas.loop.release()
    assert (data.status, later.status) == (COMPLETED, COMPLETED)
    assert uas.answer(2) == Answer(4, 2, COMPLETE)
    uas.good(1)
    uas.command(3, read_10(0, 1))
    assert uas.read(3, 512).data == b"2" * 512


@pytest.mark.parametrize("function", [ABORT_TASK_SET, CLEAR_TASK_SET, UNIT_RESET, NEXUS_RESET])
def test_functions_that_end_all(uas: UasDrive, function: int) -> None:
    uas.loop.holds = True
    uas.command(1, write_10(0, BIG))
    uas.write(1, bytes(BIG * 512))
    for tag in range(2, 16):
        uas.command(tag, write_10(0, 1), ORDERED)
        uas.write(tag, b"never" * 102 + b"!!")
    uas.manage(16, function)
    uas.busy(16)
    assert len(uas.loop.held) == 1
    uas.loop.release()
    assert uas.answer(16) == Answer(4, 16, COMPLETE)
    for tag in range(1, 16):
        uas.busy(tag)
    uas.command(1, TEST_UNIT_READY)
    attention = {UNIT_RESET: (6, 0x29, 3), NEXUS_RESET: (6, 0x29, 7)}.get(function)
    if attention is not None:
        assert uas.answer(1) == Answer(3, 1, 2, attention)
        uas.command(1, TEST_UNIT_READY)
    uas.good(1)
    uas.command(2, read_10(0, 1))
    for each in uas.bench.transfers:
        if each.status is None:
            uas.bench.cancel(each)
    assert uas.read(2, 512).data == bytes(512)


def test_query(uas: UasDrive) -> None:
    uas.command(1, read_10(0, 1))
    for function, managed, code in (
        (QUERY_TASK, 1, SUCCEEDED),
        (QUERY_TASK, 2, COMPLETE),
        (QUERY_TASK_SET, 0, SUCCEEDED),
        (0x40, 0, NOT_SUPPORTED),
        (0x82, 0, NOT_SUPPORTED),
        (0x00, 0, NOT_SUPPORTED),
    ):
        uas.manage(5, function, managed)
        assert uas.answer(5) == Answer(4, 5, code)
    uas.manage(5, ABORT_TASK_SET)
    assert uas.answer(5) == Answer(4, 5, COMPLETE)
    uas.manage(5, QUERY_TASK_SET)
    assert uas.answer(5) == Answer(4, 5, COMPLETE)


def test_task_management_of_a_unit_that_is_not_there(uas: UasDrive) -> None:
    uas.manage(1, ABORT_TASK, 2, lun=3)
    assert uas.answer(1) == Answer(4, 1, INCORRECT_UNIT)


def test_a_unit_reset_restores_the_mode_pages(uas: UasDrive) -> None:
    uas.flash.disk.mode.write_cache = False
    uas.manage(1, UNIT_RESET)
    assert uas.answer(1) == Answer(4, 1, COMPLETE)
    assert uas.flash.disk.mode.write_cache
