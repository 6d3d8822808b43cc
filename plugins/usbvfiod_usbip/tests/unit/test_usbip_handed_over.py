"""An imported device that goes on in another process: the connection, its numbers, and what may still be answered."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from usbvfiod_usbip import device
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbip.options import UsbipOptions

from tests.handed_over import Relay
from tests.lab.usbip import Server, Urb
from tests.lab.usbip_devices import BULK_IN, BULK_OUT, INTERRUPT_IN, Fault, SourceSink
from tests.lab.usbip_exporter import Exporter
from usbvfiod_core import CannotHandOver, Handover, NotSettled, TransferStatus, TransferType
from usbvfiod_core.remote.tls import TlsLink
from usbvfiod_core.state import StateError
from usbvfiod_core.testing.conformance.enumeration import set_configuration, set_interface
from usbvfiod_core.testing.limits import PATIENCE, wait_until

COMPLETED, CANCELLED = TransferStatus.COMPLETED, TransferStatus.CANCELLED
BULK, INTERRUPT = TransferType.BULK, TransferType.INTERRUPT


class Far(SourceSink):
    """The device that was imported last."""

    last: Far

    def __init__(self) -> None:
        super().__init__("high")
        Far.last = self
        self.late: list[tuple[Urb, Server]] = []
        self.keeps = False
        """Whether transfers are left to the test, but for control transfers."""
        self.unlinkings = 0

    def submit(self, urb: Urb, server: Server) -> None:
        if self.keeps and urb.address & 0x7F:
            self.late.append((urb, server))
        else:
            super().submit(urb, server)

    def unlinked(self, urb: Urb) -> None:
        self.unlinkings += 1


class Rig(Relay):
    """A device that was imported from `exporter`."""

    def __init__(self, exporter: Exporter, **options: Any) -> None:
        super().__init__(UsbipBackend, f"{exporter.host}/1-1", UsbipOptions(**options))
        self.exporter = exporter
        self.far = Far.last
        assert set_configuration(self.bench, 1).status is COMPLETED


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter({"1-1": Far}) as exporter:
        yield exporter


@pytest.fixture
def rig(exporter: Exporter) -> Iterator[Rig]:
    rig = Rig(exporter)
    yield rig
    rig.bench.close()
    assert rig.loop.watched == ()
    assert Far.last is rig.far, "nothing was imported a second time"


def test_every_byte_arrives_once(rig: Rig) -> None:
    chance = random.Random(3)
    sent = b""
    for _ in range(25):
        waiting = [rig.bench.submit(INTERRUPT_IN, INTERRUPT, 64) for _ in range(2)]
        rig.far.faults[BULK_IN].append(Fault("drop"))
        waiting.append(rig.bench.submit(BULK_IN, BULK, 4096))
        data = chance.randbytes(chance.randrange(1, 100_000))
        out = rig.bench.submit(BULK_OUT, BULK, data)
        rig.bench.wait(out)
        sent += data
        for transfer in waiting[::-1]:
            rig.bench.cancel(transfer)
        rig.bench.wait(*waiting)
        rig.hand_over()
        back = rig.bench.submit(BULK_IN, BULK, 2048)
        rig.bench.wait(back)
        assert (back.status, back.actual) == (COMPLETED, 2048)
    assert b"".join(rig.far.received[BULK_OUT]) == sent


def test_what_was_set_is_known(rig: Rig) -> None:
    assert set_interface(rig.bench, 1, 1).status is COMPLETED
    rig.hand_over()
    rig.far.requests.clear()
    rig.bench.reset()  # which puts the setting back
    assert bytes.fromhex("010b000001000000") in rig.far.requests


def test_an_answer_that_comes_late_is_no_news_to_the_next_one(rig: Rig) -> None:
    """The server has not heard of an unlinking, and answers with data."""
    rig.far.keeps = True
    transfer = rig.bench.submit(BULK_IN, BULK, 1024)
    rig.loop.run_ready()
    wait_until(lambda: bool(rig.far.late), "the server has not heard of the transfer")
    rig.bench.cancel(transfer)
    rig.bench.wait(transfer)
    rig.far.keeps = False
    rig.hand_over()
    again = rig.bench.submit(BULK_IN, BULK, 1024)
    rig.bench.wait(again)
    assert (again.status, again.actual) == (COMPLETED, 1024)


# -- what waits for the device ----------------------------------------------------------------------------------------


def waiting(rig: Rig, endpoint: int, type: TransferType, length: int) -> tuple[Urb, Server]:
    """A transfer that waits at the device, as a keyboard's does, and was taken back to the guest's ring."""
    rig.far.keeps = True
    transfer = rig.bench.submit(endpoint, type, length)
    rig.loop.run_ready()
    wait_until(lambda: bool(rig.far.late), "the server has not heard of the transfer")
    rig.device.take_back(transfer)
    rig.bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (CANCELLED, 0)
    return rig.far.late.pop()


@pytest.mark.parametrize(("endpoint", "type"), [(INTERRUPT_IN, INTERRUPT), (BULK_IN, BULK)])
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_nothing_that_is_read_gets_lost(rig: Rig, endpoint: int, type: TransferType, moment: str) -> None:
    """What the device says before the old process has settled, when nobody reads, and when the new one does."""
    urb, server = waiting(rig, endpoint, type, 64)
    if moment == "before":
        server.complete(urb, b"a key")
        rig.loop.advance(0.05)
    rig.settle()
    if moment == "between":
        server.complete(urb, b"a key")
    rig.hand_over()
    again, behind = rig.bench.submit(endpoint, type, 64), rig.bench.submit(endpoint, type, 64)
    if moment == "after":
        server.complete(urb, b"a key")
    rig.bench.wait(again)
    assert (again.status, again.data) == (COMPLETED, b"a key")
    assert not behind.completions
    wait_until(lambda: bool(rig.far.late), "the server has not heard of the transfer behind it")
    server.complete(rig.far.late.pop()[0], b"another")
    rig.bench.wait(behind)
    assert (behind.status, behind.data) == (COMPLETED, b"another")
    assert rig.far.unlinkings == 0


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("largest", [4, 1024])
def test_nothing_is_written_twice(exporter: Exporter, answered: bool, largest: int) -> None:
    """Three transfers, in pieces of 4 KiB or whole, of which the device has taken some when they are taken back."""
    rig = Rig(exporter, largest=largest)
    try:
        data = [random.Random(number).randbytes(10_000) for number in range(3)]
        rig.far.keeps = True
        transfers = [rig.bench.submit(BULK_OUT, BULK, each) for each in data]
        pieces = 9 if largest == 4 else 3
        assert rig.loop.run_until(lambda: len(rig.far.late) == pieces, PATIENCE)
        urbs, rig.far.late = rig.far.late, []
        for urb, server in urbs[:2]:
            server.complete(urb)
        rig.loop.advance(0.05)
        for transfer in transfers[::-1]:
            if transfer.status is None:
                rig.device.take_back(transfer)
        rig.bench.wait(*transfers)
        if answered:
            for urb, server in urbs[2:]:
                server.complete(urb)
        rig.hand_over()
        again = [
            rig.bench.submit(BULK_OUT, BULK, whole[transfer.actual :])
            for transfer, whole in zip(transfers, data, strict=True)
            if transfer.actual < len(whole)
        ]
        rig.loop.advance(0.05)
        if not answered:
            for urb, server in urbs[2:]:
                server.complete(urb)
        rig.bench.wait(*again)
        assert {each.status for each in again} == {COMPLETED}
        assert b"".join(urb.data for urb, _ in urbs) == b"".join(data)
        assert (rig.far.late, rig.far.unlinkings) == ([], 0), "nothing was sent again"
    finally:
        rig.bench.close()


def test_nothing_gets_lost_either_if_nobody_takes_the_place(rig: Rig) -> None:
    urb, server = waiting(rig, INTERRUPT_IN, INTERRUPT, 64)
    rig.settle()
    server.complete(urb, b"a key")
    rig.device.go_on()
    again = rig.bench.submit(INTERRUPT_IN, INTERRUPT, 64)
    rig.bench.wait(again)
    assert (again.status, again.data, rig.far.unlinkings) == (COMPLETED, b"a key", 0)


def test_what_no_transfer_wants_is_taken_back_after_a_moment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "READERS", 0.05)
    waiting(rig, INTERRUPT_IN, INTERRUPT, 64)
    rig.hand_over()
    assert rig.loop.run_until(lambda: rig.far.unlinkings == 1, PATIENCE)
    rig.far.keeps = False
    again = rig.bench.submit(INTERRUPT_IN, INTERRUPT, 64)
    rig.bench.wait(again)
    assert (again.status, again.actual) == (COMPLETED, 64)


def test_a_setting_changes_what_is_read(rig: Rig) -> None:
    waiting(rig, INTERRUPT_IN, INTERRUPT, 64)
    rig.far.keeps = False
    assert set_interface(rig.bench, 1, 1).status is COMPLETED
    assert rig.far.unlinkings == 1


def test_what_comes_in_between_is_read_by_whoever_goes_on(rig: Rig) -> None:
    """The old one, if the new one does not; it reads nothing before it is told so."""
    rig.settle()
    given = rig.told()
    rig.exporter.server.disconnect()
    rig.loop.advance(0.2)
    assert rig.bench.events.disconnections == 0
    for fd in given.descriptors.values():
        os.close(fd)
    rig.device.go_on()
    assert rig.loop.run_until(lambda: rig.bench.events.disconnections == 1, PATIENCE)


def test_it_cannot_be_told_while_transfers_are_in_flight(rig: Rig) -> None:
    rig.far.faults[BULK_IN].append(Fault("drop"))
    transfer = rig.bench.submit(BULK_IN, BULK, 512)
    with pytest.raises(NotSettled, match="has transfers in flight"):
        rig.device.hand_over()
    rig.bench.cancel(transfer)
    rig.bench.wait(transfer)
    rig.settle()
    rig.device.hand_over()


def test_what_makes_no_sense_is_refused_and_the_descriptor_stays_the_callers(rig: Rig) -> None:
    rig.settle()
    given = rig.told()
    given.state["session"]["ghosts"] = [
        {"sequence": 1, "endpoint": 1, "is_in": True, "length": 8, "packets": [[1]]},
    ]
    with pytest.raises(StateError, match=r"session.ghosts\[0\].packets\[0\]: 2 values are expected, not 1"):
        UsbipBackend().take_over(rig.address, rig.options, rig.loop, given)
    (fd,) = given.descriptors.values()
    os.close(fd)
    with pytest.raises(CannotHandOver, match="the descriptor of its connection has not come with it"):
        UsbipBackend().take_over(rig.address, rig.options, rig.loop, Handover(rig.told().state, {}))


def test_who_has_the_keys_keeps_the_connection() -> None:
    one, other = socket.socketpair()
    with other:
        link = TlsLink(one, None, has_certificate=False)  # type: ignore[arg-type]  # as far as it is asked
        with pytest.raises(CannotHandOver, match="only its process has the keys"):
            link.hand_over()
        link.close()
