"""An imported device that goes on in another process: the connection, its numbers, and what may still be answered."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbip.options import UsbipOptions

from tests.lab.usbip import Server, Urb
from tests.lab.usbip_devices import BULK_IN, BULK_OUT, INTERRUPT_IN, Fault, SourceSink
from tests.lab.usbip_exporter import Exporter
from usbvfiod_core import CannotHandOver, Device, Handover, NotSettled, TransferStatus, TransferType
from usbvfiod_core.remote.tls import TlsLink
from usbvfiod_core.state import StateError
from usbvfiod_core.testing.conformance.enumeration import set_configuration, set_interface
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.loop import StepLoop

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
        """Whether transfers are answered only by `answer_late`, even if they have been unlinked."""

    def submit(self, urb: Urb, server: Server) -> None:
        if self.keeps:
            self.late.append((urb, server))
        else:
            super().submit(urb, server)


class Rig:
    """`hand_over` puts another device, on another loop, in the place of the one that there is."""

    def __init__(self, exporter: Exporter, **options: Any) -> None:
        self.exporter = exporter
        self.options = UsbipOptions(**options)
        self.address = f"{exporter.host}/1-1"
        self.loop = StepLoop(virtual_time=False)
        self.device: Device = UsbipBackend().open(self.address, self.options, self.loop)
        self.bench = DeviceBench(self.device, self.loop)
        self.far = Far.last
        assert set_configuration(self.bench, 1).status is COMPLETED

    def settle(self) -> None:
        settled: list[None] = []
        self.device.when_settled(lambda: settled.append(None))
        assert self.loop.run_until(lambda: bool(settled), PATIENCE)

    def told(self) -> Handover:
        given = self.device.hand_over()
        copies = {name: os.dup(fd) for name, fd in given.descriptors.items()}
        return Handover(json.loads(json.dumps(given.state)), copies)

    def hand_over(self) -> None:
        self.settle()
        given = self.told()
        loop = StepLoop(virtual_time=False)
        device = UsbipBackend().take_over(self.address, self.options, loop, given)
        self.device.forget()
        assert self.loop.watched == ()
        self.loop.close()
        self.device, self.loop = device, loop
        self.bench = DeviceBench(device, loop)


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
        for transfer in waiting:
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
    with pytest.raises(StateError, match="a packet has an offset and a length"):
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
