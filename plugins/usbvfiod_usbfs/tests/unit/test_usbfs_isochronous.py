"""Isochronous packets through URBs."""

from __future__ import annotations

import errno
import os

import pytest
from fake_usbfs import FakeKernel, urbs_of
from usbvfiod_usbfs import ioctl as usbfs
from usbvfiod_usbfs.isochronous import IsochronousLane

from usbvfiod_core.host.packets import LEAD
from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType

COMPLETED, MISSED, CANCELLED = TransferStatus.COMPLETED, TransferStatus.MISSED, TransferStatus.CANCELLED
ISOCHRONOUS = TransferType.ISOCHRONOUS
MICROFRAME = 0.000125


class Way:
    """A lane on a kernel; eight packets of 192 bytes in a millisecond."""

    def __init__(self, kernel: FakeKernel, loop: StepLoop, interval: float = MICROFRAME, longest: int = 0) -> None:
        self.kernel, self.loop = kernel, loop
        self.urbs = urbs_of(kernel, loop)
        self.lane = IsochronousLane(self.urbs, loop, interval, longest)
        self.ended: list[Transfer] = []

    def submit(self, *packets: int, is_in: bool = True) -> WatchedTransfer:
        data = sum(packets) if is_in else os.urandom(sum(packets))
        transfer = WatchedTransfer(0x84 if is_in else 0x05, ISOCHRONOUS, data, packets=packets)
        transfer.on_complete = self.ended.append
        self.lane.start(transfer)
        return transfer

    @property
    def counts(self) -> list[int]:
        """Packets of each URB in flight."""
        return [len(urb.packets) for urb in self.kernel.inflight]

    def finish(self, status: int = 0, code: int = 0) -> None:
        """End the oldest URB, all its packets alike."""
        urb = self.kernel.inflight[0]
        self.kernel.finish_packets(urb, [(0 if code else length, code) for length, _, _ in urb.packets], status)
        self.loop.run_ready()


@pytest.fixture
def way(kernel: FakeKernel, loop: StepLoop) -> Way:
    return Way(kernel, loop)


def test_packets_of_a_millisecond_share_an_urb(way: Way) -> None:
    transfers = [way.submit(192) for _ in range(64)]
    assert way.kernel.inflight == [], "what else this turn of the loop brings is waited for"
    way.loop.run_ready()
    assert way.counts == [8] * 8
    urb = way.kernel.inflight[0]
    assert (urb.type, urb.flags, urb.endpoint) == (usbfs.URB_TYPE_ISO, usbfs.URB_ISO_ASAP, 0x84)
    while way.kernel.inflight:
        way.finish()
    assert way.ended == transfers
    for index, transfer in enumerate(transfers):
        assert (transfer.status, transfer.actual, transfer.faults) == (COMPLETED, 192, [])
        assert (transfer.packets[0].status, transfer.packets[0].actual) == (COMPLETED, 192)
        assert transfer.data == bytes([index % 8]) * 192


@pytest.mark.parametrize(
    ("interval", "packets"), [(MICROFRAME, 8), (2 * MICROFRAME, 4), (0.001, 1), (0.004, 1), (MICROFRAME / 100, 128)]
)
def test_how_many_share_one_depends_on_the_interval(
    kernel: FakeKernel, loop: StepLoop, interval: float, packets: int
) -> None:
    assert IsochronousLane(urbs_of(kernel, loop), loop, interval).group == packets


def test_neighbouring_packets_are_not_copied(way: Way) -> None:
    memory = bytearray(16 * 100)
    for index in range(16):
        transfer = Transfer(
            0x84, ISOCHRONOUS, [memoryview(memory)[index * 100 : index * 100 + 100]], 100, way.ended.append
        )
        transfer.packets = [IsochronousPacket(0, 100)]
        way.lane.start(transfer)
    way.loop.run_ready()
    start = usbfs.address_of(memory)[0]
    assert [urb.buffer for urb in way.kernel.inflight] == [start, start + 800]


def test_data_out_goes_with_its_packets(way: Way) -> None:
    transfers = [way.submit(size, is_in=False) for size in (192, 0, 100, 1, 192, 192, 7, 8)]
    way.loop.advance(LEAD)
    (urb,) = way.kernel.inflight
    assert [length for length, _, _ in urb.packets] == [192, 0, 100, 1, 192, 192, 7, 8]
    assert urb.data == b"".join(transfer.read() for transfer in transfers)
    way.finish()
    assert [(each.status, each.actual) for each in transfers] == [(COMPLETED, each.length) for each in transfers]


def test_packets_in_may_have_more_room_than_the_endpoint_fills(kernel: FakeKernel, loop: StepLoop) -> None:
    """Linux refuses an URB with such a packet, and with it its neighbours; a real controller takes what comes."""
    way = Way(kernel, loop, longest=192)
    transfers = [way.submit(size) for size in (192, 300, 64, 192, 1000, 192, 192, 193)]
    way.loop.advance(LEAD)
    (urb,) = kernel.inflight
    rooms = [length for length, _, _ in urb.packets]
    assert rooms == [192, 192, 64, 192, 192, 192, 192, 192]
    way.finish()
    assert [(each.status, each.actual) for each in transfers] == [(COMPLETED, room) for room in rooms]
    assert [each.data for each in transfers] == [bytes([index]) * room for index, room in enumerate(rooms)]


def test_a_packet_out_that_is_too_long_fails_by_itself(kernel: FakeKernel, loop: StepLoop) -> None:
    way = Way(kernel, loop, longest=192)
    sizes = (192, 193, 64, 192, 192, 192, 192, 192)
    transfers = [way.submit(size, is_in=False) for size in sizes]
    way.loop.advance(LEAD)
    while kernel.inflight:
        way.finish()
    assert [each.status for each in transfers] == [COMPLETED if size <= 192 else TransferStatus.ERROR for size in sizes]


def test_without_packets_there_is_nothing_to_send(way: Way) -> None:
    assert way.submit().status is TransferStatus.ERROR


def test_a_transfer_may_have_more_packets_than_an_urb(way: Way) -> None:
    transfer = way.submit(*[64] * 300)
    way.loop.run_ready()
    assert way.counts == [8] * 37, "the last four wait for more, or until little is in flight"
    while way.kernel.inflight:
        way.finish()
        way.loop.advance(LEAD)
    assert (transfer.status, transfer.actual, transfer.completions) == (COMPLETED, 300 * 64, 1)


def test_the_first_urb_waits_for_the_second(way: Way) -> None:
    way.submit(192)
    way.loop.run_ready()
    assert way.counts == []
    way.loop.advance(LEAD)
    assert way.counts == [1]


def test_what_fills_no_urb_waits_while_enough_is_in_flight(way: Way) -> None:
    for _ in range(24 + 3):
        way.submit(192)
    way.loop.run_ready()
    assert way.counts == [8, 8, 8]
    way.finish()
    assert way.counts == [8, 8]
    way.finish()
    assert way.counts == [8, 3], "sent before it runs dry"


def test_results_are_of_each_packet(way: Way) -> None:
    transfers = [way.submit(192) for _ in range(16)]
    way.loop.run_ready()
    codes = [0, -errno.EXDEV, -errno.EPROTO, -errno.EOVERFLOW, -errno.ECOMM, 0, 0, -errno.EILSEQ]
    urb = way.kernel.inflight[0]
    way.kernel.finish_packets(urb, [(0 if code else 100, code) for code in codes], -errno.EXDEV)
    way.loop.run_ready()
    ended = [(each.status, each.packets[0].status, each.actual) for each in transfers[:8]]
    statuses = [
        COMPLETED,
        MISSED,
        TransferStatus.ERROR,
        TransferStatus.BABBLE,
        TransferStatus.OVERRUN,
        COMPLETED,
        COMPLETED,
        TransferStatus.ERROR,
    ]
    assert ended == [(COMPLETED, status, 0 if code else 100) for status, code in zip(statuses, codes, strict=True)]


def test_what_shares_an_urb_with_a_cancelled_packet_has_missed_its_time(way: Way) -> None:
    transfers = [way.submit(192) for _ in range(24)]
    way.loop.run_ready()
    way.lane.stop(transfers[10])
    way.loop.run_ready()
    assert [each.status for each in transfers[:8]] == [None] * 8
    assert transfers[10].status is CANCELLED
    others = [each for each in transfers[8:16] if each is not transfers[10]]
    assert {(each.status, each.packets[0].status, each.actual) for each in others} == {(COMPLETED, MISSED, 0)}


def test_all_can_be_cancelled_newest_first(way: Way) -> None:
    transfers = [way.submit(192) for _ in range(29)]
    way.loop.run_ready()
    for transfer in reversed(transfers):
        way.lane.stop(transfer)
    way.loop.advance(0.1)
    assert [each.completions for each in transfers] == [1] * 29
    assert {each.status for each in transfers} == {CANCELLED}
    assert way.lane.idle


def test_what_was_done_before_it_was_cancelled_counts(way: Way) -> None:
    transfers = [way.submit(192) for _ in range(16)]
    way.loop.run_ready()
    urb = way.kernel.inflight[0]
    way.kernel.finish_packets(urb, [(192, 0)] * 3 + [(0, -errno.EXDEV)] * 5, -errno.ENOENT)
    for transfer in reversed(transfers):
        way.lane.stop(transfer)
    way.loop.run_ready()
    assert [each.status for each in transfers] == [COMPLETED] * 3 + [CANCELLED] * 13


def test_want_of_memory_keeps_the_order(way: Way) -> None:
    way.kernel.limit = 2 * 8 * 192
    transfers = [way.submit(192) for _ in range(64)]
    way.loop.run_ready()
    assert way.counts == [8, 8]
    while way.kernel.inflight:
        way.finish()
    assert way.ended == transfers
    assert {each.status for each in transfers} == {COMPLETED}


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_urbs_are_smaller_where_memory_in_one_piece_is(way: Way, room: int) -> None:
    """Linux has no memory in one piece for eight large packets, although little of it is in use."""
    way.kernel.limit = room * 192
    transfers = [way.submit(192) for _ in range(64)]
    way.loop.run_ready()
    fits = 4 if room > 3 else 2 if room > 1 else 1
    while way.kernel.inflight:
        assert len(way.kernel.inflight[0].packets) <= fits
        way.finish()
    assert way.lane.group == fits
    assert way.ended == transfers
    assert {each.status for each in transfers} == {COMPLETED}


def test_urbs_stay_as_they_are_where_memory_comes_back(way: Way) -> None:
    way.kernel.limit = 9 * 192
    transfers = [way.submit(192) for _ in range(32)]
    way.loop.run_ready()
    assert way.counts == [8]
    while way.kernel.inflight:
        way.finish()
    assert way.lane.group == 8
    assert {each.status for each in transfers} == {COMPLETED}


def test_a_suspended_device_makes_no_smaller_urbs(way: Way) -> None:
    way.kernel.submit_errors.extend([-errno.EHOSTUNREACH] * 3)
    transfers = [way.submit(192) for _ in range(16)]
    way.loop.advance(1)
    assert way.counts == [8, 8]
    while way.kernel.inflight:
        way.finish()
    assert {each.status for each in transfers} == {COMPLETED}


@pytest.mark.parametrize(
    ("code", "status"), [(-errno.ENOENT, TransferStatus.ERROR), (-errno.ENODEV, TransferStatus.DISCONNECTED)]
)
def test_what_is_refused_ends(way: Way, code: int, status: TransferStatus) -> None:
    way.kernel.submit_errors.extend([code] * 8)
    transfers = [way.submit(192) for _ in range(64)]
    way.loop.run_ready()
    assert {(each.status, each.packets[0].status) for each in transfers} == {(status, status)}


@pytest.mark.parametrize("is_in", [True, False])
@pytest.mark.parametrize("length", [0, 1, 192])
def test_an_endpoint_of_size_0_moves_nothing_and_holds_nothing_up(way: Way, length: int, is_in: bool) -> None:
    """Linux takes no URB for an endpoint whose wMaxPacketSize is 0, not even one of empty packets."""
    way.kernel.submit_errors.extend([-errno.EMSGSIZE] * 2)
    transfers = [way.submit(length, is_in=is_in) for _ in range(16)]
    way.loop.run_ready()
    assert {(each.status, each.actual) for each in transfers} == {(TransferStatus.ERROR, 0)}
    assert not any(each.faults for each in transfers)
    assert way.lane.idle


def test_when_the_device_goes_everything_ends(way: Way) -> None:
    transfers = [way.submit(192) for _ in range(20)]
    way.loop.run_ready()
    way.kernel.unplug()
    way.loop.advance(0.1)
    assert {each.status for each in transfers} <= {TransferStatus.DISCONNECTED}


def test_nothing_is_sent_during_an_operation(way: Way) -> None:
    way.urbs.pause()
    transfers = [way.submit(192) for _ in range(20)]
    way.loop.advance(0.1)
    assert way.counts == []
    way.urbs.watch()
    way.loop.run_ready()
    while way.kernel.inflight:
        way.finish()
        way.loop.advance(LEAD)
    assert {each.status for each in transfers} == {COMPLETED}
