"""The loopback device's isochronous endpoints, with the parameters that gadget zero has for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Companion, Endpoint
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.loopback import (
    ISOCHRONOUS_IN,
    ISOCHRONOUS_OUT,
    SOURCE_SINK,
    Loopback,
    LoopbackOptions,
    open_loopback,
)


class Cable:
    """A loopback device with its alternate setting 1."""

    def __init__(self, **options: str) -> None:
        self.loop = StepLoop()
        self.device: Loopback = open_loopback(from_text(LoopbackOptions, options), self.loop)
        self.bench = DeviceBench(self.device, self.loop)
        for kind, request, value in ((0x00, 9, SOURCE_SINK), (0x01, 11, 1)):
            setup = SetupPacket(kind, request, value, 0, 0)
            assert self.bench.control(setup).status is TransferStatus.COMPLETED

    def descriptor(self, address: int) -> Endpoint:
        return self.device.endpoints[address].descriptor

    def read(self, length: int, pieces: tuple[int, ...] = ()) -> WatchedTransfer:
        transfer = self.bench.submit(ISOCHRONOUS_IN, TransferType.ISOCHRONOUS, length, pieces=pieces)
        self.bench.wait(transfer)
        return transfer

    def write(self, data: bytes, pieces: tuple[int, ...] = ()) -> WatchedTransfer:
        transfer = self.bench.submit(ISOCHRONOUS_OUT, TransferType.ISOCHRONOUS, data, pieces=pieces)
        self.bench.wait(transfer)
        return transfer


@pytest.fixture
def make() -> Iterator[Callable[..., Cable]]:
    cables: list[Cable] = []

    def make(**options: str) -> Cable:
        cables.append(Cable(**options))
        return cables[-1]

    yield make
    for cable in cables:
        cable.bench.close()


def pattern(size: int, length: int) -> bytes:
    return bytes(index % size % 63 for index in range(length))


@pytest.mark.parametrize(
    ("options", "max_packet_size", "interval", "companion"),
    [
        ({"speed": "full"}, 1023, 4, None),
        ({"speed": "full", "isoc_mult": "2", "isoc_interval": "1", "isoc_maxpacket": "64"}, 64, 1, None),
        ({"speed": "high"}, 1024, 4, None),
        ({"speed": "high", "isoc_mult": "2", "isoc_interval": "1"}, 0x1400, 1, None),
        ({"speed": "high", "isoc_mult": "1", "isoc_maxpacket": "600"}, 0x0A58, 4, None),
        ({}, 1024, 4, Companion(0, 0, 1024)),
        ({"isoc_maxburst": "15", "isoc_mult": "2"}, 1024, 4, Companion(15, 2, 49152)),
        ({"isoc_maxburst": "3", "isoc_maxpacket": "500"}, 1024, 4, Companion(3, 0, 4096)),
    ],
)
def test_descriptors(
    make: Callable[..., Cable],
    options: dict[str, str],
    max_packet_size: int,
    interval: int,
    companion: Companion | None,
) -> None:
    cable = make(**options)
    for address in (ISOCHRONOUS_IN, ISOCHRONOUS_OUT):
        descriptor = cable.descriptor(address)
        assert descriptor.attributes == TransferType.ISOCHRONOUS
        assert (descriptor.max_packet_size, descriptor.interval) == (max_packet_size, interval)
        assert descriptor.companion == companion


@pytest.mark.parametrize(
    ("options", "size", "payload"),
    [
        ({"speed": "full"}, 1023, 1023),
        ({"speed": "high", "isoc_mult": "2"}, 1024, 3072),
        ({"isoc_maxburst": "15", "isoc_mult": "2"}, 1024, 49152),
    ],
)
def test_a_packet_is_what_fits_into_an_interval(
    make: Callable[..., Cable], options: dict[str, str], size: int, payload: int
) -> None:
    cable = make(pattern="1", **options)
    for length in (0, 1, 63, 64, size - 1, size, payload):
        transfer = cable.read(length, pieces=(length // 3,))
        assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, length)
        assert transfer.data == pattern(size, length)
        assert cable.write(pattern(size, length), pieces=(length // 3,)).actual == length
    transfer = cable.read(payload + 100)
    assert (transfer.packets[0].status, transfer.actual) == (TransferStatus.COMPLETED, payload)
    assert cable.device.wrong_packets == 0


def test_wrong_packets_are_counted_and_told_and_halt_nothing(
    make: Callable[..., Cable], caplog: pytest.LogCaptureFixture
) -> None:
    cable = make(pattern="1", speed="high")
    right = pattern(1024, 1000)
    for data in (right, right[:-1] + b"\xff", b"\xff" + right[1:], right):
        assert cable.write(data).status is TransferStatus.COMPLETED
    assert cable.device.wrong_packets == 2
    cable.device.close()
    assert "2 isochronous packets did not follow the pattern" in caplog.text


def test_pattern_2_fills_and_checks_nothing(make: Callable[..., Cable]) -> None:
    cable = make(pattern="2", speed="high")
    assert cable.read(100).data == b"\xa5" * 100  # what the bench had put there
    cable.write(b"anything")
    assert cable.device.wrong_packets == 0


@pytest.mark.parametrize(("speed", "seconds"), [(Speed.FULL, 0.008), (Speed.HIGH, 0.001), (Speed.SUPER, 0.001)])
def test_the_default_interval(make: Callable[..., Cable], speed: Speed, seconds: float) -> None:
    cable = make(speed=speed.name.lower())
    start = cable.loop.time()
    transfers = [cable.bench.submit(ISOCHRONOUS_IN, TransferType.ISOCHRONOUS, 64) for _ in range(20)]
    cable.bench.wait(*transfers)
    assert cable.loop.time() - start == pytest.approx(20 * seconds, abs=seconds / 100)
