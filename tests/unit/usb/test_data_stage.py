"""How a data stage ends for which the driver has less room than its request says."""

from __future__ import annotations

import pytest

from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.usb.data_stage import answer, fit, received
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

COMPLETED, BABBLE = TransferStatus.COMPLETED, TransferStatus.BABBLE
SETUP_IN, SETUP_OUT = SetupPacket(0xC0, 1, 2, 3, 100), SetupPacket(0x40, 1, 2, 3, 100)


def control(setup: SetupPacket, data: bytes | int) -> WatchedTransfer:
    return WatchedTransfer(0, TransferType.CONTROL, data, setup=setup)


@pytest.mark.parametrize(
    ("sent", "room", "packet", "expected"),
    [
        (18, 18, 64, (COMPLETED, 18)),
        (18, 64, 64, (COMPLETED, 18)),
        (0, 0, 64, (COMPLETED, 0)),
        (18, 8, 8, (COMPLETED, 8)),
        (18, 16, 8, (COMPLETED, 16)),
        (18, 17, 8, (BABBLE, 17)),
        (18, 8, 64, (BABBLE, 8)),
        (200, 64, 64, (COMPLETED, 64)),
        (65, 64, 64, (COMPLETED, 64)),
        (200, 65, 64, (BABBLE, 65)),
        (200, 64, 512, (BABBLE, 64)),
        (1024, 512, 512, (COMPLETED, 512)),
        (18, 0, 8, (BABBLE, 0)),
        (18, 0, 64, (BABBLE, 0)),
        (18, 0, 512, (COMPLETED, 0)),
    ],
)
def test_what_is_moved(sent: int, room: int, packet: int, expected: tuple[TransferStatus, int]) -> None:
    assert received(sent, room, packet) == expected
    transfer = control(SETUP_IN, room)
    answer(transfer, bytes(range(200))[:sent], packet)
    limited = received(min(sent, 100), room, packet)  # a device sends at most wLength
    assert ((transfer.status, transfer.actual), transfer.faults) == (limited, [])
    assert transfer.data == bytes(range(transfer.actual))


@pytest.mark.parametrize("room", [0, 1, 64, 99])
def test_a_short_in_transfer_is_whole_for_the_host(room: int) -> None:
    transfer = control(SETUP_IN, room)
    ended: list[Transfer] = []
    transfer.on_complete = ended.append
    fit(transfer, 64)
    assert (transfer.length, len(transfer.windows[0]), transfer.setup) == (100, 100, SETUP_IN)
    transfer.complete(COMPLETED, transfer.write(bytes(range(80))))
    assert ended == [transfer]
    assert (transfer.status, transfer.actual) == received(80, room, 64)
    assert (transfer.length, transfer.data, transfer.faults) == (room, bytes(range(transfer.actual)), [])


@pytest.mark.parametrize("status", [each for each in TransferStatus if each is not COMPLETED])
def test_what_went_wrong_stays_so(status: TransferStatus) -> None:
    transfer = control(SETUP_IN, 7)
    fit(transfer, 64)
    transfer.write(bytes(range(64)))
    transfer.complete(status, 64)
    assert (transfer.status, transfer.actual, transfer.data) == (status, 7, bytes(range(7)))


@pytest.mark.parametrize("room", [0, 99])
def test_a_short_out_transfer_says_how_long_it_is(room: int) -> None:
    transfer = control(SETUP_OUT, bytes(room))
    fit(transfer, 64)
    assert transfer.setup == SetupPacket(0x40, 1, 2, 3, room)
    transfer.complete(COMPLETED, room)
    assert (transfer.setup, transfer.actual, transfer.faults) == (SETUP_OUT, room, [])


@pytest.mark.parametrize("length", [0, 4, 64])
@pytest.mark.parametrize("pieces", [[], [3, 50]])
def test_more_room_than_the_request_says_is_not_the_devices_business(length: int, pieces: list[int]) -> None:
    for setup in (SetupPacket(0xC0, 1, 2, 3, length), SetupPacket(0x40, 1, 2, 3, length)):
        data = bytes(range(100))
        transfer = WatchedTransfer(0, TransferType.CONTROL, 100 if setup.is_in else data, setup=setup, pieces=pieces)
        fit(transfer, 64)
        assert (transfer.length, sum(map(len, transfer.windows)), transfer.setup) == (length, length, setup)
        if setup.is_in:
            transfer.complete(COMPLETED, transfer.write(data[:length]))
            assert transfer.data == data[:length]
        else:
            assert transfer.read() == data[:length]
            transfer.complete(COMPLETED, length)
        moved = length if setup.is_in else 100
        assert (transfer.status, transfer.actual, transfer.length, transfer.faults) == (COMPLETED, moved, 100, [])


@pytest.mark.parametrize("setup", [SETUP_IN, SETUP_OUT])
def test_a_whole_transfer_is_left_alone(setup: SetupPacket) -> None:
    transfer = control(setup, 100 if setup.is_in else bytes(100))
    before = transfer.on_complete, transfer.windows, transfer.setup
    fit(transfer, 64)
    assert (transfer.on_complete, transfer.windows, transfer.setup) == before
