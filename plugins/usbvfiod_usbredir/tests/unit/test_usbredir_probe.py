"""A device that nobody asks anything is asked for its status, and no other is."""

from __future__ import annotations

from typing import Any, cast

from redir_bench import bench_at_host
from usbvfiod_usbredir.exchange import Exchange
from usbvfiod_usbredir.probe import Probe

from usbvfiod_core import SetupPacket, Speed, Transfer
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.descriptors import DEVICE
from usbvfiod_core.virtual.loopback import Loopback


class Recorded:
    """An exchange: what it was asked, and what it has given up."""

    def __init__(self) -> None:
        self.closed, self.idle = False, True
        self.messages = 0
        self.asked: list[Any] = []
        self.given_up: list[object] = []

    def ask(self, message: Any, type: object, done: Any, *, room: list[memoryview]) -> object:
        assert [len(each) for each in room] == [message.length]
        self.asked.append((message, done))
        self.idle = False
        return message

    def give_up(self, request: object) -> None:
        self.given_up.append(request)

    def answer(self) -> None:
        self.idle = True
        self.messages += 1
        self.asked[-1][1](None)


def made(seconds: float = 5) -> tuple[StepLoop, Recorded, Probe]:
    loop, exchange = StepLoop(), Recorded()
    return loop, exchange, Probe(loop, cast(Exchange, exchange), seconds)


def test_one_that_is_idle_is_asked_again_and_again() -> None:
    loop, exchange, probe = made()
    probe.start()
    loop.advance(4.9)
    assert not exchange.asked
    for count in (1, 2, 3):
        loop.advance(5)
        assert len(exchange.asked) == count
        exchange.answer()
    message = exchange.asked[0][0]
    assert (message.request, message.request_type) == (requests.GET_STATUS, requests.DIRECTION_IN)


def test_one_that_is_used_is_not_asked() -> None:
    loop, exchange, probe = made()
    probe.start()
    exchange.idle = False  # a transfer waits: the other end hears by it
    loop.advance(60)
    exchange.idle = True
    for _ in range(10):
        exchange.messages += 1
        loop.advance(5)
    assert not exchange.asked


def test_one_that_does_not_answer_is_not_asked_twice() -> None:
    loop, exchange, probe = made()
    probe.start()
    loop.advance(60)
    assert len(exchange.asked) == 1


def test_nobody_waits_for_an_answer_when_it_stops() -> None:
    loop, exchange, probe = made()
    probe.start()
    loop.advance(5)
    probe.stop()
    assert exchange.given_up == [exchange.asked[0][0]]
    exchange.idle = True
    loop.advance(60)
    assert len(exchange.asked) == 1


def test_never() -> None:
    loop, exchange, probe = made(0)
    probe.start()
    loop.advance(3600)
    assert not exchange.asked


def test_a_host_is_asked_and_the_device_works_on() -> None:
    asked: list[Transfer] = []

    class Watched(Loopback):
        def submit(self, transfer: Transfer) -> None:
            if transfer.setup is not None and transfer.setup.request == requests.GET_STATUS:
                asked.append(transfer)
            super().submit(transfer)

    with bench_at_host(lambda loop: Watched(loop, speed=Speed.HIGH), options={"probe": "1"}) as (bench, _):
        assert bench.loop.run_until(lambda: bool(asked), PATIENCE)
        descriptor = bench.control(SetupPacket(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, DEVICE << 8, 0, 18))
        assert len(descriptor.data) == 18
