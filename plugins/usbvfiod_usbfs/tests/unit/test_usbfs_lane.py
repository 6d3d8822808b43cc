"""The way of transfers through URBs: order, cutting, want of memory, cancellation, races, and the device's end."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest
from fake_usbfs import FakeKernel
from lane_kit import BULK, CUT, LaneKit, result
from usbvfiod_usbfs import ioctl as usbfs
from usbvfiod_usbfs.lane import CUT as LONGEST
from usbvfiod_usbfs.lane import CUT_ONE_PIECE, CUT_WHOLE_PACKETS, SMALLEST_CUT, Lane, bulk_cut
from usbvfiod_usbfs.urb import PATIENCE

from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

COMPLETED, STALL, ERROR = TransferStatus.COMPLETED, TransferStatus.STALL, TransferStatus.ERROR
CANCELLED, DISCONNECTED = TransferStatus.CANCELLED, TransferStatus.DISCONNECTED


@pytest.fixture
def way(kernel: FakeKernel, loop: StepLoop) -> LaneKit:
    return LaneKit(kernel, loop)


# -- one URB ---------------------------------------------------------------------------------------------------------


def test_data_in_one_piece_is_not_copied(way: LaneKit) -> None:
    reading, writing = way.submit(512), way.submit(b"abc" * 100)
    assert reading.status is writing.status is None
    for urb, transfer in zip(way.kernel.inflight, (reading, writing), strict=True):
        start = ctypes.addressof(ctypes.c_char.from_buffer(transfer.windows[0]))
        assert (urb.buffer, urb.length, urb.type, urb.flags) == (start, transfer.length, usbfs.URB_TYPE_BULK, 0)
    way.finish((0, b"x" * 512), (0, None))
    assert (result(reading), reading.data, result(writing)) == ((COMPLETED, 512), b"x" * 512, (COMPLETED, 300))


def test_neighbouring_windows_are_one_piece(way: LaneKit) -> None:
    memory = bytearray(300)
    whole = memoryview(memory)
    windows = [whole[:100], whole[100:101], whole[101:]]
    transfer = Transfer(0x81, BULK, windows, 300, way.ended.append)
    way.lane.start(transfer)
    assert way.kernel.inflight[0].buffer == ctypes.addressof(ctypes.c_char.from_buffer(memory))
    way.finish((0, bytes(range(250))))
    assert (transfer.status, transfer.actual, bytes(memory[:250])) == (COMPLETED, 250, bytes(range(250)))


def test_the_kernel_is_not_asked_for_more_than_it_has(
    kernel: FakeKernel, loop: StepLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaps: list[int] = []
    real = kernel.ioctl

    def ioctl(fd: int, request: int, argument: int) -> int:
        code = real(fd, request, argument)
        if request == usbfs.REAPURBNDELAY:
            reaps.append(code)
        return code

    monkeypatch.setattr(kernel, "ioctl", ioctl)
    way = LaneKit(kernel, loop)
    first, second = way.submit(512), way.submit(512)
    way.finish()
    assert (result(first)[0], second.status, reaps) == (COMPLETED, None, [0, -errno.EAGAIN])
    kernel.finish(kernel.inflight[0])
    way.urbs.reap()
    assert (result(second)[0], reaps) == (COMPLETED, [0, -errno.EAGAIN, 0])


def test_scattered_data_is_put_together_and_taken_apart(way: LaneKit) -> None:
    data = os.urandom(1000)
    writing, reading = way.submit(data, pieces=(1, 500, 3)), way.submit(1000, pieces=(700, 1, 2))
    assert way.kernel.inflight[0].data == data
    way.finish((0, None), (0, data[:701]))
    assert (result(writing), result(reading), reading.data) == ((COMPLETED, 1000), (COMPLETED, 701), data[:701])


def test_memory_that_cannot_be_written_is_read_all_the_same(way: LaneKit) -> None:
    transfer = Transfer(0x02, BULK, [memoryview(b"read-only")], 9, way.ended.append)
    way.lane.start(transfer)
    assert way.kernel.inflight[0].data == b"read-only"


def test_no_data_is_a_transfer_too(way: LaneKit) -> None:
    writing = way.submit(b"")
    assert [(urb.length, urb.buffer) for urb in way.kernel.inflight] == [(0, 0)]
    way.finish()
    assert result(writing) == (COMPLETED, 0)


@pytest.mark.parametrize(
    ("type", "number"), [(TransferType.BULK, usbfs.URB_TYPE_BULK), (TransferType.INTERRUPT, usbfs.URB_TYPE_INTERRUPT)]
)
def test_a_multiple_of_the_packet_size_gets_no_packet_of_its_own(way: LaneKit, type: TransferType, number: int) -> None:
    way.submit(bytes(1024), type=type, stream_id=7)
    urb = way.kernel.inflight[0]
    assert (urb.type, urb.flags, urb.number) == (number, 0, 7)


@pytest.mark.parametrize("pieces", [(), (3, 2)])
def test_control_transfers_carry_their_setup_packet(way: LaneKit, pieces: tuple[int, ...]) -> None:
    out = SetupPacket(0x40, 1, 2, 3, 10)
    writing = way.submit(b"0123456789", endpoint=0, type=TransferType.CONTROL, setup=out, pieces=pieces)
    assert way.kernel.inflight[0].data == out.pack() + b"0123456789"
    way.finish()
    get = SetupPacket(0xC0, 1, 2, 3, 100)
    reading = way.submit(100, endpoint=0, type=TransferType.CONTROL, setup=get, pieces=pieces)
    urb = way.kernel.inflight[0]
    assert (urb.type, urb.endpoint, urb.length, urb.setup) == (usbfs.URB_TYPE_CONTROL, 0, 108, get.pack())
    way.finish((0, b"answer"))
    assert (result(writing), result(reading), reading.data) == ((COMPLETED, 10), (COMPLETED, 6), b"answer")
    nothing = way.submit(b"", endpoint=0, type=TransferType.CONTROL, setup=SetupPacket(0x40, 1, 2, 3, 0))
    way.finish((-errno.EPIPE, None))
    assert result(nothing) == (STALL, 0)


@pytest.mark.parametrize(
    ("code", "status"), [(-errno.EPIPE, STALL), (-errno.EOVERFLOW, TransferStatus.BABBLE), (-errno.EPROTO, ERROR)]
)
def test_what_was_moved_before_an_error_counts(way: LaneKit, code: int, status: TransferStatus) -> None:
    reading = way.submit(1024)
    way.finish((code, b"y" * 512))
    assert (result(reading), reading.data) == ((status, 512), b"y" * 512)


def test_transfers_are_submitted_and_end_in_order(way: LaneKit) -> None:
    transfers = [way.submit(100 + number) for number in range(20)]
    assert [urb.length for urb in way.kernel.inflight] == list(range(100, 120))
    way.finish(*[(0, None)] * 20)
    assert way.ended == transfers


# -- cutting ----------------------------------------------------------------------------------------------------------


def test_long_data_out_is_cut_and_all_in_flight(way: LaneKit) -> None:
    data = os.urandom(3 * CUT + 5)
    writing, after = way.submit(data, pieces=(CUT - 1, CUT)), way.submit(b"after")
    assert [urb.length for urb in way.kernel.inflight] == [CUT, CUT, CUT, 5, 5]
    assert b"".join(urb.data for urb in way.kernel.inflight[:4]) == data
    way.finish(*[(0, None)] * 5)
    assert (result(writing), result(after), way.ended) == ((COMPLETED, len(data)), (COMPLETED, 5), [writing, after])


def test_long_data_in_is_asked_for_piece_by_piece(way: LaneKit) -> None:
    data = os.urandom(2 * CUT + 512)
    reading, after = way.submit(len(data), pieces=(5, CUT)), way.submit(512)
    for start in range(0, len(data), CUT):
        lengths = [urb.length for urb in way.kernel.inflight]
        assert lengths == ([CUT] if start + CUT < len(data) else [512, 512])
        way.finish((0, data[start : start + CUT]))
    assert (result(reading), reading.data) == ((COMPLETED, len(data)), data)
    way.finish((0, b"next"))
    assert (result(after), way.ended) == ((COMPLETED, 4), [reading, after])


@pytest.mark.parametrize("short", [0, 1, CUT - 1])
def test_a_short_packet_ends_a_long_transfer(way: LaneKit, short: int) -> None:
    reading, after = way.submit(3 * CUT), way.submit(512)
    way.finish((0, None))
    way.finish((0, b"z" * short))
    assert result(reading) == (COMPLETED, CUT + short)
    assert [urb.length for urb in way.kernel.inflight] == [512]
    assert after.status is None


@pytest.mark.parametrize("is_in", [True, False])
def test_an_error_ends_a_long_transfer(way: LaneKit, is_in: bool) -> None:
    transfer = way.submit(3 * CUT if is_in else bytes(3 * CUT))
    way.finish((0, None))
    way.finish((-errno.EPIPE, 512))
    assert result(transfer) == (STALL, CUT + 512)
    assert way.kernel.inflight == []


def test_interrupt_transfers_are_never_cut(way: LaneKit) -> None:
    way.submit(3 * CUT, type=TransferType.INTERRUPT)
    assert [urb.length for urb in way.kernel.inflight] == [3 * CUT]


# -- want of memory ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_waits_in_order(way: LaneKit) -> None:
    way.kernel.limit = 3 * SMALLEST_CUT
    transfers = [way.submit(bytes([number]) * SMALLEST_CUT) for number in range(10)]
    seen = []
    while way.kernel.inflight:
        assert len(way.kernel.inflight) <= 3
        seen.append(way.kernel.inflight[0].data[0])
        way.finish()
    assert seen == list(range(10))
    assert way.ended == transfers
    assert {result(each) for each in transfers} == {(COMPLETED, SMALLEST_CUT)}


def test_what_waits_is_tried_again_without_anything_coming_back(way: LaneKit) -> None:
    way.kernel.submit_errors.extend([-errno.ENOMEM] * 3)
    transfer = way.submit(100)
    assert way.kernel.inflight == []
    way.loop.advance(0.1)
    assert len(way.kernel.inflight) == 1
    way.finish()
    assert result(transfer) == (COMPLETED, 100)


def test_there_is_an_end_to_waiting(way: LaneKit) -> None:
    starved: list[int] = []
    way.urbs.starved = lambda: starved.append(1)
    way.kernel.limit = 0
    transfers = [way.submit(100) for _ in range(3)]
    way.loop.advance(PATIENCE - 0.5)
    assert way.ended == []
    assert starved == []
    way.loop.advance(3 * PATIENCE)
    assert [result(each) for each in transfers] == [(ERROR, 0)] * 3
    assert starved
    assert way.ended == transfers


def test_memory_is_given_in_turn(way: LaneKit) -> None:
    """An endpoint that always has more does not take all of it, though it is the one whose URBs come back."""
    way.kernel.limit = 2 * SMALLEST_CUT
    mine = [way.submit(bytes(SMALLEST_CUT)) for _ in range(12)]
    theirs = []
    for endpoint, lane in enumerate([Lane(way.urbs, CUT, 512), Lane(way.urbs, CUT, 512)], 3):
        for _ in range(4):
            transfer = WatchedTransfer(endpoint, BULK, bytes(SMALLEST_CUT))
            lane.start(transfer)
            theirs.append(transfer)
    for _ in range(16):
        way.finish()
    assert {result(transfer) for transfer in theirs} == {(COMPLETED, SMALLEST_CUT)}
    while way.kernel.inflight:
        way.finish()
    assert {result(transfer) for transfer in mine} == {(COMPLETED, SMALLEST_CUT)}


def test_pieces_are_smaller_where_memory_is_short(way: LaneKit) -> None:
    way.kernel.limit = SMALLEST_CUT
    data = os.urandom(CUT)
    writing, reading = way.submit(data), None
    received = []
    while way.kernel.inflight:
        received.append(way.kernel.inflight[0].data)
        way.finish()
    assert (result(writing), b"".join(received)) == ((COMPLETED, CUT), data)
    reading = way.submit(CUT)
    for start in range(0, CUT, SMALLEST_CUT):
        way.finish((0, data[start : start + SMALLEST_CUT]))
    assert (result(reading), reading.data) == ((COMPLETED, CUT), data)


@pytest.mark.parametrize("limit", [16 << 20, SMALLEST_CUT, CUT + 48])
@pytest.mark.parametrize("packet_size", [0, 7, 8, 48, 60, 64, 512, 1000, 1024, 1027, 2047])
def test_pieces_are_whole_packets(kernel: FakeKernel, loop: StepLoop, packet_size: int, limit: int) -> None:
    """A piece that ends with a part of a packet ends the transfer for the device; asked for, it is a babble."""
    way = LaneKit(kernel, loop, packet_size)
    kernel.limit = limit
    data = os.urandom(2 * CUT + 5)
    sent, asked = way.submit(data), []
    while kernel.inflight:
        asked.append(kernel.inflight[0].data)
        way.finish()
    assert (result(sent), b"".join(asked)) == ((COMPLETED, len(data)), data)
    assert [len(piece) % max(packet_size, 1) for piece in asked[:-1]] == [0] * (len(asked) - 1)
    assert len(asked) > 2
    reading, start = way.submit(len(data)), 0
    while kernel.inflight:
        size = kernel.inflight[0].length
        assert start + size == len(data) or not size % max(packet_size, 1)
        way.finish((0, data[start : start + size]))
        start += size
    assert (result(reading), reading.data) == ((COMPLETED, len(data)), data)


@pytest.mark.parametrize(
    ("capabilities", "packet_size", "cut"),
    [
        (0, 512, CUT_ONE_PIECE),
        (0, 48, CUT_ONE_PIECE),
        (usbfs.CAP_BULK_SCATTER_GATHER, 0, LONGEST),
        (usbfs.CAP_BULK_SCATTER_GATHER, 64, LONGEST),
        (usbfs.CAP_BULK_SCATTER_GATHER, 1024, LONGEST),
        (usbfs.CAP_BULK_SCATTER_GATHER, 48, CUT_WHOLE_PACKETS),
        (usbfs.CAP_BULK_SCATTER_GATHER, 1000, CUT_WHOLE_PACKETS),
        (usbfs.CAP_BULK_SCATTER_GATHER | usbfs.CAP_NO_PACKET_SIZE_LIM, 1000, LONGEST),
    ],
)
def test_how_far_transfers_are_cut(capabilities: int, packet_size: int, cut: int) -> None:
    """Linux refuses scattered memory in pieces that are not whole packets where the host controller minds."""
    assert bulk_cut(capabilities, packet_size) == cut


@pytest.mark.parametrize("type", [TransferType.CONTROL, TransferType.INTERRUPT])
def test_only_bulk_transfers_are_cut_for_want_of_memory(way: LaneKit, type: TransferType) -> None:
    way.kernel.submit_errors.extend([-errno.ENOMEM] * 3)
    length = 2 * SMALLEST_CUT
    setup = SetupPacket(0xC0, 1, 0, 0, length) if type is TransferType.CONTROL else None
    transfer = way.submit(length, type=type, endpoint=0 if setup else 0x81, setup=setup)
    way.loop.advance(0.1)
    assert len(way.kernel.inflight) == 1
    way.finish((0, b"x" * length))
    assert (result(transfer), transfer.data) == ((COMPLETED, length), b"x" * length)


def test_a_suspended_device_is_tried_again(way: LaneKit) -> None:
    way.kernel.submit_errors.extend([-errno.EHOSTUNREACH])
    transfer = way.submit(100)
    way.loop.advance(0.05)
    way.finish()
    assert result(transfer) == (COMPLETED, 100)


@pytest.mark.parametrize("code", [-errno.ENOENT, -errno.EINVAL, -errno.EBUSY])
def test_what_is_refused_ends_at_once(way: LaneKit, code: int) -> None:
    way.kernel.submit_errors.append(code)
    refused = way.submit(100)
    assert result(refused) == (ERROR, 0)
    way.submit(100)
    assert len(way.kernel.inflight) == 1


@pytest.mark.parametrize("type", [BULK, TransferType.INTERRUPT])
@pytest.mark.parametrize("data", [0, 1, 700, b"", bytes(700)], ids=str)
def test_an_endpoint_of_size_0_moves_nothing(way: LaneKit, type: TransferType, data: bytes | int) -> None:
    """Linux takes no URB for it, not even an empty one."""
    way.kernel.submit_errors.append(-errno.EMSGSIZE)
    assert result(way.submit(data, type=type)) == (ERROR, 0)
    assert way.lane.idle


def test_what_is_refused_half_way_takes_the_first_half_back(way: LaneKit) -> None:
    way.kernel.submit_errors.extend([0, -errno.ENOENT])
    transfer = way.submit(bytes(2 * CUT))
    way.loop.run_ready()
    assert result(transfer) == (ERROR, 0)
    assert way.kernel.inflight == []


# -- cancellation -----------------------------------------------------------------------------------------------------


def test_a_cancelled_transfer_says_what_was_moved(way: LaneKit) -> None:
    transfer = way.submit(100)
    urb = way.kernel.inflight[0]
    way.kernel.finish(urb, -errno.ENOENT, b"half")
    way.lane.stop(transfer)
    way.loop.run_ready()
    assert (result(transfer), transfer.data) == ((CANCELLED, 4), b"half")


@pytest.mark.parametrize(
    ("is_in", "moved", "status"),
    [(True, 13, COMPLETED), (True, 65, COMPLETED), (True, 64, CANCELLED), (True, 0, CANCELLED), (False, 13, CANCELLED)],
)
def test_a_short_packet_ends_what_is_cancelled_in_the_same_moment(
    kernel: FakeKernel, loop: StepLoop, is_in: bool, moved: int, status: TransferStatus
) -> None:
    """Linux says "cancelled" of an URB that had just ended. What the device sends next is for the next transfer."""
    way = LaneKit(kernel, loop, 64)
    transfer = way.submit(128 if is_in else bytes(128))
    kernel.finish(kernel.inflight[0], -errno.ENOENT, bytes(moved) if is_in else moved)
    way.lane.stop(transfer)
    loop.run_ready()
    assert result(transfer) == (status, moved)


def test_what_is_done_may_win_the_race(way: LaneKit) -> None:
    transfer = way.submit(100)
    way.kernel.finish(way.kernel.inflight[0], 0, b"whole")
    way.lane.stop(transfer)
    assert transfer.status is None
    way.loop.run_ready()
    assert result(transfer) == (COMPLETED, 5)
    way.lane.stop(transfer)
    assert transfer.completions == 1


def test_a_waiting_transfer_is_cancelled_without_the_kernel(way: LaneKit) -> None:
    way.kernel.limit = 100
    transfers = [way.submit(100) for _ in range(3)]
    way.lane.stop(transfers[1])
    assert result(transfers[1]) == (CANCELLED, 0)
    way.finish()
    way.finish()
    assert [each.status for each in transfers] == [COMPLETED, CANCELLED, COMPLETED]


@pytest.mark.parametrize("is_in", [True, False])
def test_the_rest_of_a_cancelled_transfer_is_not_sent(way: LaneKit, is_in: bool) -> None:
    transfer = way.submit(3 * CUT if is_in else bytes(3 * CUT))
    way.kernel.finish(way.kernel.inflight[0])
    way.lane.stop(transfer)
    way.loop.run_ready()
    assert result(transfer) == (CANCELLED, CUT)
    assert way.kernel.inflight == []


def test_the_kernel_may_cancel_too_and_that_is_an_error(way: LaneKit) -> None:
    transfer = way.submit(100)
    way.finish((-errno.ENOENT, 0))
    assert result(transfer) == (ERROR, 0)
