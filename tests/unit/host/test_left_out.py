"""Interfaces that the host cannot give: the others work, at these nobody answers, and each is named once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from usbvfiod_core import Speed
from usbvfiod_core.host import left_out
from usbvfiod_core.testing.device_bench import Events
from usbvfiod_core.usb import requests as usb
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Interface, bulk_endpoint
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

from .conftest import Bench

COMPLETED, STALL = TransferStatus.COMPLETED, TransferStatus.STALL


def interface(number: int, *addresses: int, alternate: int = 0) -> Interface:
    endpoints = tuple(bulk_endpoint(address, Speed.HIGH) for address in addresses)
    return Interface(number, 255, endpoints=endpoints, alternate=alternate)


FIRST = Configuration((interface(0, 0x81), interface(70, 0x82), interface(70, 0x82, 0x03, alternate=1)), 1)
SECOND = Configuration((interface(0, 0x82), interface(200, 0x81, 0x82)), 2)
RAW = DeviceDescriptor(0x200, 0, 0, 0, 64, 0x1209, 1, 1, num_configurations=2).pack() + FIRST.pack() + SECOND.pack()


class Case(Bench):
    """A device of these configurations, of which the backend could not claim what `reasons` says."""

    def __init__(self, **reasons: str) -> None:
        super().__init__(descriptors=RAW)
        self.now(**reasons)
        self.device.attach(self.events)
        for address in (0, 0x81, 0x82, 0x03):
            self.scripted.answers[address] = (COMPLETED, b"")

    def now(self, **reasons: str) -> None:
        self.scripted.unclaimed = {int(number.strip("_")): reason for number, reason in reasons.items()}

    def move(self, address: int) -> TransferStatus | None:
        data: bytes | int = 4 if address & 0x80 else b"data"
        return self.submit(address, TransferType.BULK, data).status

    def ask(self, kind: int, request: int, index: int, value: int = 0) -> TransferStatus | None:
        return self.control(SetupPacket(kind, request, value, index, 0)).status


def test_nothing_reaches_the_device_there(caplog: pytest.LogCaptureFixture) -> None:
    case = Case(_70=left_out.above(64, "usbfs"))
    assert case.ask(0, usb.SET_CONFIGURATION, 0, 1) is COMPLETED
    assert case.move(0x82) is TransferStatus.ERROR
    assert case.move(0x03) is TransferStatus.ERROR
    for kind, index in ((0x01, 70), (0x21, 70), (0x81, 70), (0x02, 0x82), (0x22, 0x82)):
        assert case.ask(kind, 0, index) is STALL
    assert case.ask(usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 70, 1) is STALL
    assert case.ask(usb.RECIPIENT_ENDPOINT, usb.CLEAR_FEATURE, 0x82) is STALL
    assert case.scripted.asked() == []
    assert case.move(0x81) is COMPLETED
    assert case.ask(0x21, 9, 0) is COMPLETED
    assert case.ask(0x41, 9, 70) is COMPLETED, "Linux does not look what a vendor's request is for"
    assert case.ask(usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 0, 0) is COMPLETED
    assert case.events.notes == ["without interface 70, which the host cannot give"]
    assert caplog.messages == ["scripted: the guest gets it without interface 70: usbfs has numbers below 64 only"]
    case.close()


def printer(number: int, alternate: int = 0) -> Interface:
    return replace(interface(number, 0x81 if alternate else 0x82, alternate=alternate), class_code=7)


PRINTERS = Configuration((interface(0, 0x83), printer(1), printer(1, 2), interface(2, 0x84), printer(0x21)))


@pytest.mark.parametrize("left", [0, 1, 2, 0x21])
@pytest.mark.parametrize(
    ("index", "request_type", "number"),
    [
        (0x0100, 0xA1, 1),
        (0x0102, 0xA1, 1),  # interface 1, its setting 2; interface 2 is another
        (0x2100, 0xA1, 0x21),
        (0x0101, 0xA1, 1),  # there is no such setting: as any other request
        (0x0002, 0xA1, 2),  # no printer
        (0x0100, 0x21, 0),  # no GET_DEVICE_ID
        (0x0100, 0x81, 0),
    ],
)
def test_a_printers_device_id(left: int, index: int, request_type: int, number: int) -> None:
    """It has the interface in the high byte of wIndex and its setting in the low one (USB printer class 1.1, 4.2.1)."""
    raw = DeviceDescriptor(0x200, 0, 0, 0, 64, 0x1209, 1, 1).pack() + PRINTERS.pack()
    bench = Bench(descriptors=raw)
    bench.scripted.unclaimed = {left: left_out.BY_LINUX}
    bench.device.attach(bench.events)
    bench.scripted.answers[0] = (COMPLETED, b"")
    transfer = bench.control(SetupPacket(request_type, 0, 0, index, 0))
    assert transfer.status is (STALL if left == number else COMPLETED)
    assert bench.scripted.asked() == ([] if left == number else [("start", 0)])
    bench.close()


def test_what_is_left_out_is_looked_at_after_each_configuration_and_reset(caplog: pytest.LogCaptureFixture) -> None:
    case = Case(_70=left_out.BY_LINUX)
    for _ in range(2):
        case.now(_200="one reason", _0="another")
        assert case.ask(0, usb.SET_CONFIGURATION, 0, 2) is COMPLETED
        assert case.move(0x82) is TransferStatus.ERROR
        case.now(_200="one reason")
        case.reset()
        assert case.ask(0, usb.SET_CONFIGURATION, 0, 2) is COMPLETED
        assert case.move(0x81) is TransferStatus.ERROR
        assert case.move(0x82) is COMPLETED, "the interface that has it as well is ours"
        case.now()
        assert case.ask(0, usb.SET_CONFIGURATION, 0, 1) is COMPLETED
        assert case.move(0x81) is COMPLETED
    assert case.events.notes[:4] == [
        "without interface 70, which the host cannot give",
        "without interfaces 0, 200, which the host cannot give",
        "without interface 200, which the host cannot give",
        "",
    ]
    assert [message.partition("without ")[2] for message in caplog.messages] == [
        "interface 70: Linux has left it out",
        "interface 0: another",
        "interface 200: one reason",
    ], "each once"
    case.close()


def test_what_waits_for_an_operation_is_refused_as_well() -> None:
    case = Case()
    case.ask(0, usb.SET_CONFIGURATION, 0, 1)
    case.now(_200="the reason")
    configuring = case.submit(0, TransferType.CONTROL, b"", setup=SetupPacket(0, usb.SET_CONFIGURATION, 2, 0, 0))
    waiting = case.submit(0x81, TransferType.BULK, 4)
    case.loop.run_ready()
    assert (configuring.status, waiting.status) == (COMPLETED, TransferStatus.ERROR)
    case.close()


def test_a_device_that_is_given_whole_says_nothing() -> None:
    bench = Bench()
    events = Events(bench.loop)
    bench.device.attach(events)
    assert events.notes == []
    bench.close()
