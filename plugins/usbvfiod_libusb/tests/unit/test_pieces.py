"""Long transfers of endpoints with an odd packet size, on a host whose Linux refuses them or whose libusb cuts them,
and transfers that are longer than Linux has memory for.

Linux 6.12 makes pieces of 16 KiB of a bulk URB, and refuses it where the host controller wants whole packets in each.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from fake_libusb import FakeTransfer, descriptors
from libusb_bench import Bench
from usbvfiod_libusb import status
from usbvfiod_libusb.pieces import LIMIT, LONG, LONG_PIECE

from usbvfiod_core import TransferStatus, TransferType
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket

BULK, INTERRUPT = TransferType.BULK, TransferType.INTERRUPT
IN, OUT = 0x81, 0x01
COMPLETED, CANCELLED = TransferStatus.COMPLETED, TransferStatus.CANCELLED
ODD = [7, 48, 60, 63, 500, 511]


def odd_bench(packet_size: int, type: TransferType = BULK, alternate: int = 0) -> Bench:
    """A device with endpoints of this packet size in a setting, where those of the other settings have 512 bytes."""
    endpoints = tuple(Endpoint(address, type, packet_size, 1) for address in (IN, OUT))
    even = tuple(Endpoint(address, type, 512, 1) for address in (IN, OUT))
    settings = tuple(
        Interface(0, 0xFF, endpoints=endpoints if number == alternate else even, alternate=number)
        for number in range(2)
    )
    bench = Bench(raw=descriptors([Configuration(settings)]))
    bench.configured()
    return bench


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest) -> Iterator[tuple[Bench, int]]:
    bench = odd_bench(request.param)
    yield bench, request.param
    bench.close()
    assert all(transfer.closed for transfer in bench.handle.made)


def taken_by_linux(native: FakeTransfer, packet_size: int) -> bool:
    """Whether the host's Linux takes it, and libusb makes one URB of it."""
    return len(native.data) <= LIMIT or LIMIT % packet_size == 0


def test_all_of_what_goes_out_is_whole_packets(odd: tuple[Bench, int]) -> None:
    bench, packet_size = odd
    data = os.urandom(5 * LIMIT + 3)
    transfer = bench.submit(OUT, BULK, data, pieces=[1, 4000, 4096])
    natives = list(bench.handle.submitted)
    assert all(taken_by_linux(each, packet_size) for each in natives)
    assert b"".join(bytes(each.data) for each in natives) == data
    assert [len(each.data) % packet_size for each in natives[:-1]] == [0] * (len(natives) - 1)
    for each in natives:
        each.end(status.TRANSFER_COMPLETED, len(each.data))
    bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (COMPLETED, len(data))


@pytest.mark.parametrize("short", [None, 0, 1, LIMIT, LIMIT + 1, 3 * LIMIT])
def test_what_comes_in_ends_with_a_short_packet_anywhere(odd: tuple[Bench, int], short: int | None) -> None:
    bench, packet_size = odd
    length = 4 * LIMIT + 9
    data = os.urandom(length if short is None else short)
    transfer = bench.submit(IN, BULK, length, pieces=[3, 5000])
    behind = bench.submit(IN, BULK, 100)
    at = 0
    while transfer.status is None:
        native, *later = bench.handle.submitted
        assert not later or at + len(native.data) == length, "the rest goes out before it is known whether there is one"
        assert taken_by_linux(native, packet_size)
        assert at + len(native.data) == length or len(native.data) % packet_size == 0
        native.end(status.TRANSFER_COMPLETED, data[at : at + len(native.data)])
        at += len(native.data)
        bench.loop.run_ready()
    assert (transfer.status, transfer.actual, transfer.data) == (COMPLETED, len(data), data)
    bench.sent().end(status.TRANSFER_COMPLETED, b"next")
    bench.wait(behind)
    assert behind.data == b"next"


@pytest.mark.parametrize("address", [IN, OUT])
def test_a_failure_ends_it(odd: tuple[Bench, int], address: int) -> None:
    bench, _ = odd
    transfer = bench.submit(address, BULK, 3 * LIMIT if address == IN else bytes(3 * LIMIT))
    first = bench.handle.submitted[0]
    size = len(first.data)
    first.end(status.TRANSFER_COMPLETED, bytes(size) if address == IN else size)
    bench.loop.run_ready()
    bench.handle.submitted[0].end(status.TRANSFER_STALL)
    bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (TransferStatus.STALL, size)
    assert not bench.handle.submitted


@pytest.mark.parametrize("address", [IN, OUT])
def test_cancelled_it_says_what_was_moved(odd: tuple[Bench, int], address: int) -> None:
    bench, _ = odd
    transfer = bench.submit(address, BULK, 3 * LIMIT if address == IN else bytes(3 * LIMIT))
    behind = bench.submit(address, BULK, 3 * LIMIT if address == IN else bytes(3 * LIMIT))
    first = bench.handle.submitted[0]
    size = len(first.data)
    first.end(status.TRANSFER_COMPLETED, bytes(size) if address == IN else size)
    bench.loop.run_ready()
    bench.cancel(behind)
    bench.cancel(transfer)
    bench.wait(transfer)
    bench.wait(behind)
    assert (transfer.status, transfer.actual) == (CANCELLED, size)
    assert (behind.status, behind.actual) == (CANCELLED, 0)
    assert not bench.handle.submitted


def test_what_is_refused_takes_the_rest_back(odd: tuple[Bench, int]) -> None:
    bench, _ = odd
    bench.handle.submit_errors = [status.ERROR_IO]
    refused = bench.submit(OUT, BULK, bytes(3 * LIMIT))
    assert (refused.status, refused.actual) == (TransferStatus.ERROR, 0)
    transfer = bench.submit(OUT, BULK, b"on it goes")
    bench.sent().end(status.TRANSFER_COMPLETED, 10)
    bench.wait(transfer)
    assert transfer.actual == 10


def test_a_full_kernel_is_waited_for(odd: tuple[Bench, int]) -> None:
    bench, packet_size = odd
    bench.handle.submit_errors = [status.ERROR_NO_MEM] * 3
    data = os.urandom(2 * LIMIT)
    transfer = bench.submit(OUT, BULK, data)
    pieces = -(-len(data) // (LIMIT - LIMIT % packet_size))
    assert bench.loop.run_until(lambda: len(bench.handle.submitted) == pieces, PATIENCE)
    assert b"".join(bytes(each.data) for each in bench.handle.submitted) == data
    for each in list(bench.handle.submitted):
        each.end(status.TRANSFER_COMPLETED, len(each.data))
    bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (COMPLETED, len(data))


def test_the_end_of_the_device_ends_all() -> None:
    bench = odd_bench(60)
    transfers = [bench.submit(IN, BULK, 3 * LIMIT) for _ in range(3)]
    bench.close_device()
    bench.wait(*transfers)
    assert [transfer.status for transfer in transfers] == [TransferStatus.DISCONNECTED] * 3
    bench.close()


@pytest.mark.parametrize(("packet_size", "type"), [(512, BULK), (64, BULK), (8, BULK), (60, INTERRUPT), (0, BULK)])
def test_others_go_as_they_are(packet_size: int, type: TransferType) -> None:
    bench = odd_bench(packet_size, type)
    transfer = bench.submit(OUT, type, bytes(3 * LIMIT))
    assert [len(each.data) for each in bench.handle.submitted] == [3 * LIMIT]
    bench.sent().end(status.TRANSFER_COMPLETED, 3 * LIMIT)
    bench.wait(transfer)
    bench.close()


def test_the_setting_says_how_large_packets_are() -> None:
    bench = odd_bench(60, alternate=1)
    for setting, odd in itertools.islice(itertools.cycle(((0, False), (1, True))), 5):
        bench.control(SetupPacket(0x01, 11, setting, 0, 0))
        transfer = bench.submit(OUT, BULK, bytes(2 * LIMIT))
        assert (len(bench.handle.submitted) > 1) is odd
        for each in list(bench.handle.submitted):
            each.end(status.TRANSFER_COMPLETED, len(each.data))
        bench.wait(transfer)
    bench.close()


# -- longer than Linux has memory for --------------------------------------------------------------------------------


@pytest.fixture
def even() -> Iterator[Bench]:
    bench = odd_bench(512)
    yield bench
    bench.close()
    assert all(transfer.closed for transfer in bench.handle.made)


def test_what_is_longer_than_the_hosts_memory_goes_out_in_turn(even: Bench) -> None:
    """A program in the guest sends a kernel of 20 MiB at once; usbfs has 16 MiB, and libusb says NO_MEM for ever."""
    data = os.urandom(LONG_PIECE) * 20 + b"end"
    transfer = even.submit(OUT, BULK, data, pieces=[1, 4096, LONG])
    behind = even.submit(OUT, BULK, b"behind")
    taken = bytearray()
    while even.handle.submitted:
        assert sum(len(each.data) for each in even.handle.submitted) <= LONG + len(b"behind")
        native = even.handle.submitted[0]
        taken += native.data
        native.end(status.TRANSFER_COMPLETED, len(native.data))
        even.loop.run_ready()
    even.wait(transfer, behind)
    assert taken == data + b"behind"
    assert [(each.status, each.actual) for each in (transfer, behind)] == [(COMPLETED, len(data)), (COMPLETED, 6)]


@pytest.mark.parametrize("sent", [0, 100, LONG_PIECE, LONG_PIECE + 1, LONG + 1])
def test_what_comes_in_may_end_before_its_room(even: Bench, sent: int) -> None:
    data = os.urandom(sent)
    transfer = even.submit(IN, BULK, LONG + 1)
    behind = even.submit(IN, BULK, 100)
    at = 0
    while transfer.status is None:
        native = even.sent(0)
        size = len(native.data)
        native.end(status.TRANSFER_COMPLETED, data[at : at + size])
        at += size
        even.loop.run_ready()
    assert (transfer.status, transfer.actual, transfer.data) == (COMPLETED, sent, data)
    even.sent().end(status.TRANSFER_COMPLETED, b"next")
    even.wait(behind)
    assert behind.data == b"next"


@pytest.mark.parametrize("address", [IN, OUT])
def test_one_that_is_too_long_is_cancelled(even: Bench, address: int) -> None:
    transfer = even.submit(address, BULK, 2 * LONG if address == IN else bytes(2 * LONG))
    first = even.sent(0)
    first.end(status.TRANSFER_COMPLETED, bytes(LONG_PIECE) if address == IN else LONG_PIECE)
    even.loop.run_ready()
    even.cancel(transfer)
    even.wait(transfer)
    assert (transfer.status, transfer.actual) == (CANCELLED, LONG_PIECE)
    assert not even.handle.submitted


def test_others_of_the_endpoint_go_as_they_are_before_and_after(even: Bench) -> None:
    for size in (LONG, LONG + 1, LONG):
        transfer = even.submit(OUT, BULK, bytes(size))
        assert (len(even.sent(0).data) == LONG) is (size == LONG)
        while transfer.status is None:
            native = even.sent(0)
            native.end(status.TRANSFER_COMPLETED, len(native.data))
            even.loop.run_ready()
        assert (transfer.status, transfer.actual) == (COMPLETED, size)
