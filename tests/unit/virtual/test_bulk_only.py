"""Bulk-only transport 1.0: wrappers, the thirteen cases, reset recovery, data phases in pieces, cancellation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.virtual.drive import (
    BULK_IN,
    BULK_OUT,
    CBW,
    CBW_SIGNATURE,
    FAILED,
    PASSED,
    PHASE_ERROR,
    Drive,
    cdb_10,
    read_10,
    write_10,
)
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

Make = Callable[..., Drive]

TEST_UNIT_READY = bytes(6)
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))
NEW = bytes(range(256)) * 2


def test_get_max_lun(drive: Drive) -> None:
    transfer = drive.bench.control(SetupPacket(0xA1, 0xFE, 0, 0, 1))
    assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, b"\0")


@pytest.mark.parametrize(
    "setup",
    [
        SetupPacket(0xA1, 0xFE, 1, 0, 1),
        SetupPacket(0xA1, 0xFE, 0, 1, 1),
        SetupPacket(0xA1, 0xFE, 0, 0, 2),
        SetupPacket(0x21, 0xFF, 1, 0, 0),
        SetupPacket(0x21, 0xFF, 0, 5, 0),
        SetupPacket(0xA1, 0xFD, 0, 0, 1),
        SetupPacket(0xC0, 0xFE, 0, 0, 1),
    ],
)
def test_malformed_class_requests_stall(drive: Drive, setup: SetupPacket) -> None:
    assert drive.bench.control(setup).status is TransferStatus.STALL


# -- the thirteen cases (6.7) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stalls", [False, True], ids=["fills", "stalls"])
class TestThirteenCases:
    """Numbered as in table 6.1: what the host expects (Hn, Hi, Ho), what the device intends (Dn, Di, Do)."""

    def test_1_hn_equals_dn(self, make: Make, stalls: bool) -> None:
        assert make(stalls=stalls).read(TEST_UNIT_READY, 0) == (b"", PASSED, 0, False)

    def test_2_hn_less_than_di(self, make: Make, stalls: bool) -> None:
        assert make(stalls=stalls).read(read_10(0, 1), 0) == (b"", PHASE_ERROR, 0, False)

    def test_3_hn_less_than_do(self, make: Make, image: Path, content: bytes, stalls: bool) -> None:
        assert make(stalls=stalls).write(write_10(0, 1), b"") == (b"", PHASE_ERROR, 0, False)
        assert image.read_bytes() == content

    def test_4_hi_greater_than_dn(self, make: Make, stalls: bool) -> None:
        outcome = make(stalls=stalls).read(TEST_UNIT_READY, 512)
        assert outcome == (b"" if stalls else bytes(512), PASSED, 512, stalls)

    def test_4_for_a_command_that_fails(self, make: Make, stalls: bool) -> None:
        drive = make(stalls=stalls)
        outcome = drive.read(read_10(1 << 30, 2), 1024)
        assert outcome == (b"" if stalls else bytes(1024), FAILED, 1024, stalls)
        assert drive.sense() == (5, 0x21, 0)

    def test_5_hi_greater_than_di(self, make: Make, content: bytes, stalls: bool) -> None:
        outcome = make(stalls=stalls).read(read_10(3, 1), 2000, transfers=[512, 512])
        fill = b"" if stalls else bytes(2000 - 512)
        assert outcome == (content[3 * 512 : 4 * 512] + fill, PASSED, 2000 - 512, stalls)

    def test_5_with_a_short_packet(self, make: Make, stalls: bool) -> None:
        drive = make(stalls=stalls)
        drive.send(INQUIRY, 255, to_driver=True)
        transfer = drive.submit_in(255)
        assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 36 if stalls else 255)
        assert drive.is_halted(BULK_IN) == stalls
        assert drive.status() == (PASSED, 255 - 36)

    def test_6_hi_equals_di(self, make: Make, content: bytes, stalls: bool) -> None:
        assert make(stalls=stalls).read(read_10(1, 2), 1024) == (content[512:1536], PASSED, 0, False)

    def test_7_hi_less_than_di(self, make: Make, content: bytes, stalls: bool) -> None:
        assert make(stalls=stalls).read(read_10(0, 2), 600) == (content[:600], PHASE_ERROR, 0, False)

    def test_8_hi_against_do(self, make: Make, image: Path, content: bytes, stalls: bool) -> None:
        outcome = make(stalls=stalls).read(write_10(0, 1), 512)
        assert outcome == (b"" if stalls else bytes(512), PHASE_ERROR, 512, stalls)
        assert image.read_bytes() == content

    def test_9_ho_greater_than_dn(self, make: Make, stalls: bool) -> None:
        assert make(stalls=stalls).write(TEST_UNIT_READY, NEW) == (b"", PASSED, 512, stalls)

    def test_10_ho_against_di(self, make: Make, stalls: bool) -> None:
        assert make(stalls=stalls).write(read_10(0, 1), NEW) == (b"", PHASE_ERROR, 512, stalls)

    def test_11_ho_greater_than_do(self, make: Make, image: Path, content: bytes, stalls: bool) -> None:
        outcome = make(stalls=stalls).write(write_10(2, 1), NEW + NEW, transfers=[512])
        assert outcome == (b"", PASSED, 512, stalls)
        assert image.read_bytes() == content[:1024] + NEW + content[1536:]

    def test_12_ho_equals_do(self, make: Make, image: Path, content: bytes, stalls: bool) -> None:
        assert make(stalls=stalls).write(write_10(2, 1), NEW) == (b"", PASSED, 0, False)
        assert image.read_bytes() == content[:1024] + NEW + content[1536:]

    def test_13_ho_less_than_do(self, make: Make, image: Path, content: bytes, stalls: bool) -> None:
        outcome = make(stalls=stalls).write(write_10(2, 2), NEW)
        assert outcome == (b"", PHASE_ERROR, 512, stalls)
        assert image.read_bytes() == content

    def test_the_next_command_works_after_each(self, make: Make, content: bytes, stalls: bool) -> None:
        drive = make(stalls=stalls)
        for cdb in (TEST_UNIT_READY, read_10(0, 2), write_10(1 << 20, 2), INQUIRY, b"\xff" * 10):
            for length in (0, 1, 36, 512, 1024, 1500):
                drive.read(cdb, length)
                drive.write(cdb, bytes(length))
                assert drive.read(read_10(8, 1), 512) == (content[4096:4608], PASSED, 0, False)


# -- wrappers that are not valid (6.2, 6.6.1) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapper",
    [
        CBW.pack(CBW_SIGNATURE, 1, 0, 0, 0, 6, b"")[:30],
        CBW.pack(CBW_SIGNATURE, 1, 0, 0, 0, 6, b"") + b"\0",
        CBW.pack(CBW_SIGNATURE + 1, 1, 0, 0, 0, 6, b""),
        CBW.pack(CBW_SIGNATURE, 1, 0, 0x01, 0, 6, b""),
        CBW.pack(CBW_SIGNATURE, 1, 0, 0, 0x10, 6, b""),
        CBW.pack(CBW_SIGNATURE, 1, 0, 0, 0, 0, b""),
        CBW.pack(CBW_SIGNATURE, 1, 0, 0, 0, 17, b""),
        CBW.pack(CBW_SIGNATURE, 1, 0, 0, 0, 0x86, b""),
        b"",
        bytes(512),
    ],
    ids=["short", "long", "signature", "flags", "lun", "length-0", "length-17", "length-bits", "empty", "data"],
)
def test_an_invalid_wrapper_halts_both_endpoints_until_reset_recovery(drive: Drive, wrapper: bytes) -> None:
    waiting = drive.submit_in(13)
    drive.submit_out(wrapper)
    assert waiting.status is TransferStatus.STALL
    for _ in range(2):
        assert drive.is_halted(BULK_IN)
        assert drive.is_halted(BULK_OUT)
        assert drive.submit_in(13).status is TransferStatus.STALL
        assert drive.submit_out(bytes(31)).status is TransferStatus.STALL
        drive.clear_halt(BULK_IN)  # alone it does not help
        drive.clear_halt(BULK_OUT)
    drive.recover()
    assert drive.command(TEST_UNIT_READY) == PASSED


def test_the_endpoints_stay_halted_over_a_bulk_only_reset(drive: Drive) -> None:
    drive.submit_out(b"nonsense")
    assert drive.control(0x21, 0xFF) is TransferStatus.COMPLETED
    assert drive.is_halted(BULK_IN)
    assert drive.is_halted(BULK_OUT)


def test_a_port_reset_recovers_as_well(drive: Drive) -> None:
    drive.submit_out(b"nonsense")
    drive.bench.reset()
    drive.configure()
    assert drive.command(TEST_UNIT_READY) == PASSED


def test_another_logical_unit_is_refused_by_scsi(drive: Drive) -> None:
    assert drive.refused(drive.read(TEST_UNIT_READY, 0, lun=1)) == (5, 0x25, 0)
    outcome = drive.read(INQUIRY, 36, lun=3)
    assert (outcome.status, outcome.data[0]) == (PASSED, 0x7F)


def test_a_wrapper_in_scattered_memory(drive: Drive) -> None:
    drive.tag = 7
    drive.submit_out(CBW.pack(CBW_SIGNATURE, 7, 36, 0x80, 0, 6, INQUIRY), pieces=[1, 15, 5])
    data = drive.submit_in(36, [10, 20])
    assert data.data[8:16] == b"USBVFIOD"
    status = drive.submit_in(13, [4, 8])
    assert status.data[4:8] == b"\7\0\0\0"


@pytest.mark.parametrize("length", [0, 12])
def test_a_status_transfer_that_is_too_small_babbles(drive: Drive, length: int) -> None:
    drive.send(TEST_UNIT_READY, 0, to_driver=False)
    transfer = drive.submit_in(length)
    assert (transfer.status, transfer.actual) == (TransferStatus.BABBLE, length)
    assert drive.command(TEST_UNIT_READY) == PASSED


def test_a_status_transfer_may_be_larger(drive: Drive) -> None:
    drive.send(TEST_UNIT_READY, 0, to_driver=False)
    assert drive.submit_in(512).actual == 13


# -- data phases in pieces -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stalls", [False, True])
@pytest.mark.parametrize("transfers", [[], [512], [1], [100, 400, 12, 0, 512], [4096] * 15])
@pytest.mark.parametrize("pieces", [(), (1,), (3, 0, 7)])
def test_a_data_phase_of_many_transfers(
    make: Make, content: bytes, transfers: list[int], pieces: tuple[int, ...], stalls: bool
) -> None:
    drive = make(stalls=stalls)
    length = 128 * 512
    fitting = pieces if min([*transfers, length - sum(transfers)]) > sum(pieces) else ()
    outcome = drive.read(read_10(9, 128), length, transfers=[size for size in transfers if size], pieces=fitting)
    assert outcome == (content[9 * 512 : 137 * 512], PASSED, 0, False)
    data = content[::-1][:length]
    assert drive.write(write_10(9, 128), data, transfers=transfers, pieces=fitting) == (b"", PASSED, 0, False)
    assert drive.read(read_10(9, 128), length).data == data


def test_transfers_submitted_ahead_wait_for_their_turn(drive: Drive, content: bytes) -> None:
    status = drive.submit_in(512)  # the data
    rest = drive.submit_in(512)
    last = drive.submit_in(13)
    assert (status.status, rest.status) == (None, None)
    drive.send(read_10(0, 2), 1024, to_driver=True)
    assert [each.actual for each in (status, rest, last)] == [512, 512, 13]
    assert status.data + rest.data == content[:1024]
    second = drive.submit_out(drive.cbw(TEST_UNIT_READY, 0, to_driver=False))
    third = drive.submit_out(drive.cbw(TEST_UNIT_READY, 0, to_driver=False))
    assert second.status is TransferStatus.COMPLETED
    assert third.status is None  # a command before the status of the last one was read
    assert drive.submit_in(13).data[4] == drive.tag - 1
    assert drive.submit_in(13).data[4] == drive.tag
    assert third.status is not None


def test_a_zero_length_transfer_moves_nothing(drive: Drive, content: bytes) -> None:
    drive.send(read_10(0, 1), 512, to_driver=True)
    empty = drive.submit_in(0)
    assert (empty.status, empty.actual) == (TransferStatus.COMPLETED, 0)
    assert drive.submit_in(512).data == content[:512]
    assert drive.status() == (PASSED, 0)


def test_a_transfer_larger_than_the_data_phase_ends_short(drive: Drive, content: bytes) -> None:
    drive.send(read_10(0, 1), 512, to_driver=True)
    assert drive.submit_in(4096).data == content[:512]
    assert drive.status() == (PASSED, 0)


# -- halts and cancellation in every state ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", [BULK_IN, BULK_OUT])
def test_a_halt_set_by_the_driver(drive: Drive, address: int) -> None:
    assert drive.control(2, 3, 0, address) is TransferStatus.COMPLETED
    assert drive.bench.submit(address, TransferType.BULK, bytes(31) if address < 0x80 else 13).status is (
        TransferStatus.STALL
    )
    drive.clear_halt(address)
    assert drive.command(TEST_UNIT_READY) == PASSED


def test_cancel_before_a_command(drive: Drive) -> None:
    transfer = drive.submit_in(13)
    drive.bench.cancel(transfer)
    assert (transfer.status, transfer.actual) == (TransferStatus.CANCELLED, 0)
    assert drive.command(TEST_UNIT_READY) == PASSED


def test_cancel_while_the_other_endpoint_is_awaited(drive: Drive, content: bytes) -> None:
    drive.send(write_10(0, 1), 512, to_driver=False)
    transfer = drive.submit_in(13)
    drive.bench.cancel(transfer)
    assert transfer.status is TransferStatus.CANCELLED
    assert drive.submit_out(content[:512]).status is TransferStatus.COMPLETED
    assert drive.status() == (PASSED, 0)


def test_recovery_in_the_middle_of_a_data_phase(drive: Drive) -> None:
    drive.send(read_10(0, 4), 2048, to_driver=True)
    assert drive.submit_in(512).actual == 512
    drive.recover()
    assert drive.command(TEST_UNIT_READY) == PASSED
    drive.send(write_10(0, 4), 2048, to_driver=False)
    drive.recover()
    assert drive.command(TEST_UNIT_READY) == PASSED
    drive.send(TEST_UNIT_READY, 0, to_driver=False)
    drive.recover()
    assert drive.command(TEST_UNIT_READY) == PASSED


@pytest.mark.parametrize("configuration", [0, 1])
def test_setting_a_configuration_ends_what_waits(drive: Drive, configuration: int) -> None:
    drive.send(cdb_10(0x28, 0, 1), 512, to_driver=True)
    drive.submit_in(100)
    transfer = drive.submit_out(bytes(31))
    assert transfer.status is None
    assert drive.control(0, 9, configuration) is TransferStatus.COMPLETED
    assert transfer.status is TransferStatus.ERROR
    drive.configure()
    assert drive.command(TEST_UNIT_READY) == PASSED
