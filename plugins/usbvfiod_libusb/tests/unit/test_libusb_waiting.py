"""Transfers for which the host's kernel has no memory now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from usbvfiod_libusb.waiting import MEMORY_PATIENCE, Waiting

from usbvfiod_core import Transfer, TransferStatus, TransferType
from usbvfiod_core.testing.loop import StepLoop


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop()
    yield loop
    loop.close()


def test_those_behind_a_slow_device_wait_as_long_as_one_after_the_other_goes(loop: StepLoop) -> None:
    """Only when nothing has gone for a while, one fails; that so many are before it is not its fault."""
    has_room = False
    sent: list[Transfer] = []
    ended: list[Transfer] = []
    gave_up: list[None] = []

    def send(transfer: Transfer) -> bool:
        nonlocal has_room
        if has_room:
            has_room = False
            sent.append(transfer)
            return True
        return False

    waiting = Waiting(loop, send, lambda: gave_up.append(None))
    transfers = [Transfer(1, TransferType.BULK, [], 0, ended.append) for _ in range(6)]
    for transfer in transfers:
        waiting.start(transfer)
    for _ in range(5):
        loop.advance(0.9 * MEMORY_PATIENCE)
        has_room = True
    loop.advance(0.9 * MEMORY_PATIENCE)
    assert (sent, ended, gave_up) == (transfers[:5], [], [])
    loop.advance(0.9 * MEMORY_PATIENCE)
    assert ended == transfers[5:]
    assert (transfers[5].status, len(gave_up)) == (TransferStatus.ERROR, 1)
    assert not waiting
