"""Endpoints that the other end reads ahead, while the guest does not ask."""

from __future__ import annotations

from typing import Any, cast

import pytest
from usbvfiod_usbredir.exchange import Exchange
from usbvfiod_usbredir.messages import StartBulkReceiving, StopBulkReceiving
from usbvfiod_usbredir.pushed import ENOUGH, IDLE, MOST_KEPT, MOST_UNDER_WAY, Pushed
from usbvfiod_usbredir.spec import Status

from usbvfiod_core import Transfer, TransferStatus, TransferType
from usbvfiod_core.remote import PeerError
from usbvfiod_core.testing.loop import StepLoop

SIZE = 64
BEGIN, STOP = StartBulkReceiving(0, SIZE, 0x81, 8), StopBulkReceiving(0, 0x81)


class Rig:
    """The endpoint, with what the other end is told, and what the guest has got."""

    paused = False
    """As `Exchange.paused`."""

    def __init__(self, *, keeps: bool) -> None:
        self.loop = StepLoop()
        self.told: list[object] = []
        self.pushed = Pushed(self.loop, cast(Exchange, self), BEGIN, STOP, SIZE, keeps=keeps)
        self.got: list[bytes] = []

    def tell(self, message: Any) -> None:
        """As `Exchange.tell`."""
        self.told.append(message)

    def read(self) -> Transfer:
        """A transfer of one packet."""
        memory = bytearray(SIZE)

        def over(transfer: Transfer) -> None:
            if transfer.status is TransferStatus.COMPLETED:
                self.got.append(bytes(memory[: transfer.actual]))

        transfer = Transfer(0x81, TransferType.BULK, [memoryview(memory)], SIZE, over)
        self.pushed.start(transfer)
        return transfer

    def come(self, first: int, count: int) -> None:
        """Packets of the device, by their numbers."""
        for number in range(first, first + count):
            self.pushed.came(0, number.to_bytes(4, "big").ljust(SIZE, b"."))

    @property
    def numbers(self) -> list[int]:
        """Of the packets that the guest has got."""
        return [int.from_bytes(each[:4], "big") for each in self.got]


def test_bulk_data_waits_in_the_device_while_nobody_asks() -> None:
    rig = Rig(keeps=True)
    rig.read()
    rig.come(0, ENOUGH + 1)
    assert rig.told == [BEGIN]
    rig.come(ENOUGH + 1, 100)  # some had been read before it heard of it
    assert rig.told == [BEGIN, STOP]
    for _ in range(ENOUGH + 99):
        rig.read()
    assert rig.told == [BEGIN, STOP]
    rig.read()
    assert rig.told == [BEGIN, STOP, BEGIN]
    assert rig.numbers == list(range(ENOUGH + 101))
    rig.read()
    rig.come(5000, 1)
    assert rig.numbers[-1] == 5000


def test_reports_that_nobody_asks_for_are_the_newest() -> None:
    rig = Rig(keeps=False)
    rig.read()
    rig.come(0, 3 * MOST_KEPT)
    for _ in range(MOST_KEPT):
        rig.read()
    assert rig.told == [BEGIN]
    assert rig.numbers == [0, *range(2 * MOST_KEPT, 3 * MOST_KEPT)]


def test_who_goes_on_sending_breaks_the_rules() -> None:
    rig = Rig(keeps=True)
    rig.read()
    with pytest.raises(PeerError, match="after it was told to stop"):
        rig.come(0, ENOUGH + MOST_UNDER_WAY + 2)


def test_who_does_not_come_back_is_not_waited_for() -> None:
    """It is told once, also where there was too much before."""
    for count in (1, ENOUGH + 10):
        rig = Rig(keeps=True)
        rig.read()
        rig.come(0, count)
        for _ in range(max(count - 1, 0)):
            rig.read()
        waiting = rig.read()
        rig.pushed.stop(waiting)
        assert waiting.status is TransferStatus.CANCELLED
        rig.loop.run_until(lambda: False, 2 * IDLE)
        assert rig.told.count(STOP) - rig.told.count(BEGIN) == 0
        rig.read()
        assert rig.told[-1] == BEGIN


@pytest.mark.parametrize("keeps", [True, False])
def test_an_end_that_stops_by_itself_has_cancelled_nothing(keeps: bool) -> None:
    rig = Rig(keeps=keeps)
    waiting = rig.read()
    rig.pushed.told(Status.CANCELLED)
    assert waiting.status is TransferStatus.ERROR
