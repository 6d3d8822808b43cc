"""Isochronous packets through libusb."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from libusb_bench import Bench
from usbvfiod_libusb import status

from usbvfiod_core import TransferStatus, TransferType
from usbvfiod_core.testing.device_bench import WatchedTransfer

ISOCHRONOUS = TransferType.ISOCHRONOUS


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()
    assert all(transfer.closed for transfer in bench.handle.made)


@pytest.mark.parametrize("pieces", [[], [100, 700, 3]])
def test_isochronous_packets_end_each_for_itself(bench: Bench, pieces: list[int]) -> None:
    lengths = [400, 0, 300, 500]
    transfer = WatchedTransfer(0x83, ISOCHRONOUS, sum(lengths), packets=lengths, pieces=pieces)
    bench.transfers.append(transfer)
    bench.device.submit(transfer)
    sent = bench.sent()
    assert (sent.kind, sent.lengths) == ("isochronous", [400, 300, 500])
    sent.data[:] = bytes(each % 251 for each in range(1200))
    sent.end(status.TRANSFER_COMPLETED, 0, packets=[(0, 400), (1, 0), (0, 77)])
    bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 477)
    assert [(each.status, each.actual) for each in transfer.packets] == [
        (TransferStatus.COMPLETED, 400),
        (TransferStatus.MISSED, 0),
        (TransferStatus.ERROR, 0),
        (TransferStatus.COMPLETED, 77),
    ]
    assert transfer.packet_data(transfer.packets[3]) == bytes(each % 251 for each in range(700, 777))


@pytest.mark.parametrize("pieces", [[], [100, 700, 3]])
def test_packets_in_may_have_more_room_than_the_endpoint_fills(bench: Bench, pieces: list[int]) -> None:
    """Linux refuses a packet with room for more than 1024 bytes here; a real controller takes what comes."""
    lengths = [1500, 1024, 3000]
    transfer = WatchedTransfer(0x83, ISOCHRONOUS, sum(lengths), packets=lengths, pieces=pieces)
    bench.transfers.append(transfer)
    bench.device.submit(transfer)
    sent = bench.sent()
    assert sent.lengths == [1024, 1024, 1024]
    data = bytes(each % 251 for each in range(3 * 1024))
    sent.data[: len(data)] = data
    sent.end(status.TRANSFER_COMPLETED, 0, packets=[(0, 1024), (0, 5), (0, 1000)])
    bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 2029)
    found = [transfer.packet_data(packet) for packet in transfer.packets]
    assert found == [data[:1024], data[1024:1029], data[2048:3048]]


def test_packets_without_bytes_are_missed(bench: Bench) -> None:
    transfer = bench.submit_packets(0x03, [b"", b""])
    assert transfer.status is None, "it takes its turn"
    bench.wait(transfer)
    assert [each.status for each in transfer.packets] == [TransferStatus.MISSED] * 2
    assert bench.submit(0x83, ISOCHRONOUS, 100).status is TransferStatus.ERROR, "it has no packets at all"
    assert not bench.handle.submitted


def test_what_goes_out_is_missed_rather_than_lost(bench: Bench) -> None:
    transfer = bench.submit_packets(0x03, [bytes(10), bytes(10)])
    bench.sent().end(status.TRANSFER_COMPLETED, 0, packets=[(status.TRANSFER_ERROR, 0), (0, 10)])
    bench.wait(transfer)
    assert [each.status for each in transfer.packets] == [TransferStatus.MISSED, TransferStatus.COMPLETED]


def test_packets_that_were_cancelled_are_not_taken_for_sent(bench: Bench) -> None:
    bench.handle.cancels = False
    transfer = bench.submit_packets(0x03, [bytes(10), bytes(10)])
    bench.cancel(transfer)
    bench.sent().end(status.TRANSFER_CANCELLED, 0, packets=[(status.TRANSFER_CANCELLED, 10)] * 2)
    bench.handle.cancels = True
    bench.wait(transfer)
    assert transfer.status is TransferStatus.CANCELLED
