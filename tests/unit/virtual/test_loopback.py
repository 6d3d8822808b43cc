"""The loopback device as Linux's usbtest sees it: patterns, halts, vendor requests, settings; and its echo."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from usbvfiod_core.errors import ConfigError
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.loopback import (
    LOOPBACK,
    SOURCE_SINK,
    Loopback,
    LoopbackOptions,
    open_loopback,
)
from usbvfiod_core.virtual.pattern import pattern_bytes

IN, OUT, INTERRUPT_IN, INTERRUPT_OUT, ISOCHRONOUS_IN, ISOCHRONOUS_OUT = 0x81, 0x01, 0x82, 0x02, 0x83, 0x03
PACKETS = {Speed.FULL: 64, Speed.HIGH: 512, Speed.SUPER: 1024}
LENGTHS = [0, 1, 62, 63, 64, 512, 1000, 1024, 4096, 65536, 65537, 200_000]


class Cable:
    """A loopback device on a bench."""

    def __init__(self, pattern: int, speed: Speed, configuration: int = SOURCE_SINK) -> None:
        loop = StepLoop()
        self.device = Loopback(loop, pattern=pattern, speed=speed)
        self.bench = DeviceBench(self.device, loop, submit_limit=2.0)
        assert self.set(0, 9, configuration)

    def set(self, kind: int, request: int, value: int = 0, index: int = 0, data: bytes = b"") -> bool:
        transfer = self.bench.control(SetupPacket(kind, request, value, index, len(data)), data)
        return transfer.status is TransferStatus.COMPLETED

    def read(self, length: int, endpoint: int = IN, pieces: tuple[int, ...] = ()) -> WatchedTransfer:
        kind = TransferType.BULK if endpoint in (IN, OUT) else TransferType.INTERRUPT
        return self.bench.submit(endpoint, kind, length, pieces=pieces)

    def write(self, data: bytes, endpoint: int = OUT, pieces: tuple[int, ...] = ()) -> WatchedTransfer:
        kind = TransferType.BULK if endpoint in (IN, OUT) else TransferType.INTERRUPT
        return self.bench.submit(endpoint, kind, data, pieces=pieces)


@pytest.fixture(params=[Speed.FULL, Speed.HIGH, Speed.SUPER], ids=["full", "high", "super"])
def speed(request: pytest.FixtureRequest) -> Speed:
    return Speed(request.param)


@pytest.fixture(params=[0, 1])
def pattern(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def cable(pattern: int, speed: Speed) -> Iterator[Cable]:
    cable = Cable(pattern, speed)
    yield cable
    cable.bench.close()


def expected(pattern: int, packet: int, length: int) -> bytes:
    """As usbtest reckons it."""
    return bytes((index % packet) % 63 for index in range(length)) if pattern else bytes(length)


def test_the_pattern_of_each_packet() -> None:
    for packet in (64, 512, 1024):
        for length in LENGTHS:
            assert pattern_bytes(1, packet, length) == expected(1, packet, length)


@pytest.mark.parametrize("pieces", [(), (1,), (10, 0, 100), (63,)])
def test_source(cable: Cable, pattern: int, speed: Speed, pieces: tuple[int, ...]) -> None:
    for length in LENGTHS:
        cut = pieces if length > sum(pieces) else ()
        transfer = cable.read(length, pieces=cut)
        assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, length)
        assert transfer.data == expected(pattern, PACKETS[speed], length)
        transfer = cable.read(length, INTERRUPT_IN, pieces=cut)
        assert transfer.data == expected(pattern, 64, length)


@pytest.mark.parametrize("pieces", [(), (1,), (10, 0, 100), (63,)])
def test_sink(cable: Cable, pattern: int, speed: Speed, pieces: tuple[int, ...]) -> None:
    for length in LENGTHS:
        cut = pieces if length > sum(pieces) else ()
        for endpoint, packet in ((OUT, PACKETS[speed]), (INTERRUPT_OUT, 64)):
            transfer = cable.write(expected(pattern, packet, length), endpoint, pieces=cut)
            assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, length)
            assert not cable.device.endpoints[endpoint].halted


@pytest.mark.parametrize("length", [1, 64, 4096, 65536, 200_000])
@pytest.mark.parametrize("where", [0.0, 0.4, 1.0])
def test_a_wrong_byte_halts_the_sink(cable: Cable, pattern: int, speed: Speed, length: int, where: float) -> None:
    right = expected(pattern, PACKETS[speed], length)
    wrong = bytearray(right)
    wrong[int((length - 1) * where)] ^= 0x80
    transfer = cable.write(bytes(wrong))
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, length)  # it was taken; then it shows
    assert [cable.write(right).status for _ in range(2)] == [TransferStatus.STALL] * 2
    assert cable.read(64).status is TransferStatus.COMPLETED
    assert cable.set(2, 1, 0, OUT)
    assert cable.write(right).status is TransferStatus.COMPLETED
    cable.write(bytes(wrong))
    assert cable.set(1, 11, 0, 0)
    assert cable.write(right).status is TransferStatus.COMPLETED


def test_pattern_2_fills_and_checks_nothing() -> None:
    cable = Cable(2, Speed.SUPER)
    transfer = cable.read(5000, pieces=(100,))
    assert transfer.actual == 5000
    assert transfer.data == b"\xa5" * 5000  # what the bench had put there
    cable.write(b"anything")
    assert cable.write(b"anything").status is TransferStatus.COMPLETED
    cable.bench.close()


@pytest.mark.parametrize("address", [IN, OUT, INTERRUPT_IN, INTERRUPT_OUT])
def test_halts(cable: Cable, pattern: int, address: int) -> None:
    """usbtest 13."""

    def move() -> TransferStatus | None:
        return (cable.read(64, address) if address & 0x80 else cable.write(expected(pattern, 64, 64), address)).status

    for _ in range(3):
        assert move() is TransferStatus.COMPLETED
        assert cable.set(2, 3, 0, address)
        assert [move(), move()] == [TransferStatus.STALL] * 2
        assert cable.set(2, 1, 0, address)
    assert move() is TransferStatus.COMPLETED


def test_vendor_requests(cable: Cable) -> None:
    """usbtest 14 and 21: write a buffer, read it back."""
    for length in (1, 2, 512, 4096, 0xFFFF):
        data = bytes((length + index) & 0xFF for index in range(length))
        assert cable.set(0x40, 0x5B, data=data)
        assert cable.bench.control(SetupPacket(0xC0, 0x5C, 0, 0, length)).data == data
    assert cable.bench.control(SetupPacket(0xC0, 0x5C, 0, 0, 0)).status is TransferStatus.COMPLETED


@pytest.mark.parametrize(
    "setup",
    [
        SetupPacket(0x40, 0x5B, 1, 0, 0),
        SetupPacket(0x40, 0x5B, 0, 1, 0),
        SetupPacket(0xC0, 0x5C, 0, 1, 8),
        SetupPacket(0xC0, 0x5B, 0, 0, 8),
        SetupPacket(0x40, 0x5C, 0, 0, 0),
        SetupPacket(0x21, 0x5B, 0, 0, 0),
    ],
)
def test_vendor_requests_that_are_refused(cable: Cable, setup: SetupPacket) -> None:
    assert cable.bench.control(setup).status is TransferStatus.STALL


def test_identity_and_settings(cable: Cable) -> None:
    device = cable.device
    assert (device.vendor_id, device.product_id) == (0x0525, 0xA4A0)
    first, second = device.configurations
    assert [each.value for each in (first, second)] == [SOURCE_SINK, LOOPBACK]
    assert [each.alternate for each in first.interfaces] == [0, 1]
    assert set(device.endpoints) == {IN, OUT, INTERRUPT_IN, INTERRUPT_OUT}
    assert cable.set(1, 11, 1, 0)
    assert set(device.endpoints) == {IN, OUT, ISOCHRONOUS_IN, ISOCHRONOUS_OUT}
    assert cable.read(64).status is TransferStatus.COMPLETED
    assert cable.read(64, INTERRUPT_IN).status is TransferStatus.ERROR


# -- the loopback configuration ----------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[Cable]:
    cable = Cable(0, Speed.SUPER, LOOPBACK)
    yield cable
    cable.bench.close()


def test_what_is_written_is_read(echo: Cable) -> None:
    early = echo.read(64)
    assert early.status is None
    for message in (b"one", b"", b"three"):
        assert echo.write(message, pieces=(1,) if message else ()).status is TransferStatus.COMPLETED
    assert early.data == b"one"
    assert [echo.read(64).data, echo.read(64).data] == [b"", b"three"]


def test_a_long_message_is_read_in_parts(echo: Cable) -> None:
    echo.write(b"0123456789")
    assert [echo.read(4).data for _ in range(3)] == [b"0123", b"4567", b"89"]


def test_writes_wait_when_the_buffer_is_full(echo: Cable) -> None:
    writes = [echo.write(bytes((number,)) * 400_000) for number in range(5)]
    assert [each.status is None for each in writes] == [False, False, False, True, True]
    assert [echo.read(400_000).data[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert all(each.status is TransferStatus.COMPLETED for each in writes)


def test_a_new_configuration_forgets_what_was_written(echo: Cable) -> None:
    echo.write(b"old")
    assert echo.set(0, 9, LOOPBACK)
    assert echo.read(64).status is None


def test_closing_while_transfers_wait(echo: Cable) -> None:
    waiting = echo.read(64)
    echo.device.close()
    assert waiting.status is TransferStatus.DISCONNECTED
    assert echo.write(b"late").status is TransferStatus.DISCONNECTED


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_options() -> None:
    loop = StepLoop()
    assert open_loopback(from_text(LoopbackOptions, {}), loop).pattern == 0
    device = open_loopback(from_text(LoopbackOptions, {"pattern": "1", "speed": "high", "serial": "L1"}), loop)
    assert (device.pattern, device.speed, device.serial) == (1, Speed.HIGH, "L1")
    with pytest.raises(ConfigError, match="pattern is one of 0, 1, 2"):
        open_loopback(from_text(LoopbackOptions, {"pattern": "3"}), loop)
    for value in ("0", "17", "-1", "x", "", "\u0663"):
        with pytest.raises(ConfigError, match="isoc_interval is a whole number from 1 to 16"):
            open_loopback(from_text(LoopbackOptions, {"isoc_interval": value}), loop)
    with pytest.raises(ConfigError, match="there is no option 'image'"):
        open_loopback(from_text(LoopbackOptions, {"image": "x"}), loop)
