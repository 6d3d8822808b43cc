"""A device over USB/IP while things go wrong at the other end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbip.lane import GRACE
from usbvfiod_usbip.options import UsbipOptions

from tests.classes import wordy
from tests.lab.usbip import Server, Urb
from tests.lab.usbip_devices import (
    BULK_IN,
    BULK_OUT,
    INTERRUPT_IN,
    ISOCHRONOUS_IN,
    ISOCHRONOUS_OUT,
    Fault,
    Several,
    SourceSink,
)
from tests.lab.usbip_exporter import Exporter
from usbvfiod_core import SetupPacket, Speed, TransferStatus, TransferType
from usbvfiod_core.testing.conformance.enumeration import set_configuration, set_interface
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import CONFIGURATION, DEVICE, Configuration, Endpoint, Interface

COMPLETED, STALL, DISCONNECTED = TransferStatus.COMPLETED, TransferStatus.STALL, TransferStatus.DISCONNECTED
CANCELLED = TransferStatus.CANCELLED
BULK, INTERRUPT, ISOCHRONOUS = TransferType.BULK, TransferType.INTERRUPT, TransferType.ISOCHRONOUS
PORT_RESET = bytes.fromhex("2303040000000000")


class Far(SourceSink):
    """The device; the newest one is the one that was imported."""

    last: Far
    configuration = b""
    """In the place of its own."""

    def __init__(self) -> None:
        super().__init__("high")
        if self.configuration:
            self.table[CONFIGURATION] = self.configuration
        self.asked: dict[int, list[int]] = defaultdict(list)
        Far.last = self
        self.unlinks = 0
        self.mute = False

    def submit(self, urb: Urb, server: Server) -> None:
        self.asked[urb.address].append(urb.length)
        if not self.mute:
            super().submit(urb, server)

    def unlinked(self, urb: Urb) -> None:
        self.unlinks += 1


class Rig:
    def __init__(self, exporter: Exporter, **options: Any) -> None:
        self.exporter = exporter
        self.loop = StepLoop(virtual_time=False)
        device = UsbipBackend().open(f"{exporter.host}/1-1", UsbipOptions(**options), self.loop)
        self.bench = DeviceBench(device, self.loop)
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


@pytest.mark.parametrize(
    ("fault", "status", "actual"),
    [
        ("stall", STALL, 0),
        ("error", TransferStatus.ERROR, 0),
        ("overflow", TransferStatus.BABBLE, 0),
        ("short", COMPLETED, 2048),
        ("disconnect", DISCONNECTED, 0),
    ],
)
def test_each_fault(rig: Rig, fault: str, status: TransferStatus, actual: int) -> None:
    rig.far.faults[BULK_IN].append(Fault(fault))
    transfer = rig.bench.submit(BULK_IN, BULK, 4096)
    rig.bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (status, actual)


def test_the_end_of_the_connection_is_the_end_of_the_device(rig: Rig) -> None:
    rig.far.faults[BULK_IN].extend([Fault("drop")] * 8)
    waiting = [rig.bench.submit(BULK_IN, BULK, 4096) for _ in range(8)]
    rig.loop.advance(0.02)
    rig.exporter.server.disconnect()
    rig.bench.wait(*waiting)
    assert {transfer.status for transfer in waiting} == {DISCONNECTED}
    assert rig.bench.events.disconnections == 1
    assert rig.bench.device.why_gone() == f"{rig.exporter.host}: the other end has closed the connection"
    late = rig.bench.submit(BULK_IN, BULK, 4096)
    assert late.status is DISCONNECTED


def test_a_transfer_longer_than_a_server_takes_is_cut(exporter: Exporter) -> None:
    rig = Rig(exporter, largest=64)
    data = bytes(range(250)) * 1000
    out, back = rig.bench.submit(BULK_OUT, BULK, data), rig.bench.submit(BULK_IN, BULK, len(data) // 512 * 512)
    rig.bench.wait(out, back)
    assert (out.status, out.actual, back.status, back.actual) == (COMPLETED, len(data), COMPLETED, back.length)
    assert b"".join(rig.far.received[BULK_OUT]) == data
    assert max(map(len, rig.far.received[BULK_OUT])) == 64 << 10
    rig.far.faults[BULK_IN].append(Fault("short"))
    short = rig.bench.submit(BULK_IN, BULK, 256 << 10)
    behind = rig.bench.submit(BULK_IN, BULK, 512)
    rig.bench.wait(short, behind)
    assert (short.actual, behind.actual) == (32 << 10, 512), "nothing is asked for behind a short packet"
    rig.bench.close()


class Wordy(SourceSink):
    def control(self, request_type: int, request: int, *rest: int, data: bytes) -> bytes | None:
        if request != 6:
            return super().control(request_type, request, *rest, data=data)
        return wordy.answered(SetupPacket(request_type, request, *rest))


def test_descriptors_of_any_length() -> None:
    with Exporter({"1-1": Wordy}) as exporter:
        loop = StepLoop(virtual_time=False)
        bench = DeviceBench(UsbipBackend().open(f"{exporter.host}/1-1", UsbipOptions(), loop), loop)
        assert bench.device.name == f"{'M' * 126} {'P' * 125}"
        wordy.check(bench)
        bench.close()


def test_configurations_are_as_many_as_the_device_gives() -> None:
    class Refusing(Wordy):
        def control(self, request_type: int, request: int, *rest: int, data: bytes) -> bytes | None:
            refused = (request, rest[0]) == (6, 0x0201)
            return None if refused else super().control(request_type, request, *rest, data=data)

    with Exporter({"1-1": Refusing}) as exporter:
        loop = StepLoop(virtual_time=False)
        bench = DeviceBench(UsbipBackend().open(f"{exporter.host}/1-1", UsbipOptions(), loop), loop)
        read = [bench.control(SetupPacket(0x80, 6, 0x0200 | index, 0, 9)).status for index in range(2)]
        assert read == [COMPLETED, STALL]
        assert set_configuration(bench, 1).status is COMPLETED
        bench.close()


@pytest.mark.parametrize("packet_size", [48, 60, 511])
def test_what_is_cut_is_cut_into_whole_packets(exporter: Exporter, packet_size: int) -> None:
    ends = tuple(Endpoint(address, TransferType.BULK, packet_size) for address in (BULK_IN, BULK_OUT))
    Far.configuration = Configuration((Interface(0, 0xFF, endpoints=ends),)).pack()
    try:
        rig = Rig(exporter, largest=64)
    finally:
        Far.configuration = b""
    data = bytes(range(250)) * 1000
    out, back = rig.bench.submit(BULK_OUT, BULK, data), rig.bench.submit(BULK_IN, BULK, len(data))
    rig.bench.wait(out, back)
    assert (out.actual, back.actual, b"".join(rig.far.received[BULK_OUT])) == (len(data), len(data), data)
    for lengths in ([len(piece) for piece in rig.far.received[BULK_OUT]], rig.far.asked[BULK_IN]):
        assert len(lengths) > 2
        assert {length % packet_size for length in lengths[:-1]} == {0}
    rig.bench.close()


def test_a_server_that_does_not_answer_keeps_no_memory(rig: Rig) -> None:
    rig.far.mute = True
    transfer = rig.bench.submit(BULK_IN, BULK, 4096)
    rig.loop.advance(0.02)
    rig.far.unlinked = lambda urb: time.sleep(GRACE * 1.2)  # type: ignore[method-assign]
    rig.bench.cancel(transfer)
    assert rig.loop.run_until(lambda: transfer.status is not None, PATIENCE)
    assert transfer.status is CANCELLED


def test_an_empty_answer_at_once_is_paced(rig: Rig) -> None:
    count = 0

    def answer(urb: Urb, server: Server, kind: str) -> None:
        nonlocal count
        count += urb.address == INTERRUPT_IN
        server.complete(urb)

    rig.far.answer = answer  # type: ignore[method-assign]
    pending = rig.bench.submit(INTERRUPT_IN, INTERRUPT, 64)
    for _ in range(100):
        rig.loop.advance(0.0005)
        if pending.status is not None:
            assert (pending.status, pending.actual) == (COMPLETED, 0)
            pending = rig.bench.submit(INTERRUPT_IN, INTERRUPT, 64)
    rig.bench.cancel(pending)
    rig.bench.wait(pending)
    assert count < 80


def test_a_reset_is_the_hubs_and_settings_are_0_after_it(rig: Rig) -> None:
    assert set_interface(rig.bench, 1, 1).status is COMPLETED
    rig.far.requests.clear()
    rig.bench.reset()  # which the device, asked after the server's host, stalls
    assert rig.far.requests == [PORT_RESET, bytes.fromhex("010b000001000000")]
    assert rig.bench.events.disconnections == 0
    assert set_configuration(rig.bench, 1).status is COMPLETED


class Choosy(Several):
    """Refuses its configuration 2; the newest one is the one that was imported."""

    last: Choosy

    def __init__(self) -> None:
        ends = (Endpoint(BULK_IN, BULK, 512),)
        configurations = [Configuration((Interface(0, 0xFF, endpoints=ends),), value) for value in (1, 2)]
        super().__init__(*(each.pack() for each in configurations))
        self.asked: list[int] = []
        Choosy.last = self

    def control(self, request_type: int, request: int, *rest: int, data: bytes) -> bytes | None:
        if (request_type, request) == (0, 9):
            self.asked.append(rest[0])
        return None if self.asked[-1:] == [2] else super().control(request_type, request, *rest, data=data)


def test_after_a_configuration_that_is_refused_the_former_one_is_asked_for() -> None:
    """Linux's server has none at all then, whatever the device has."""
    with Exporter({"1-1": Choosy}) as exporter:
        loop = StepLoop(virtual_time=False)
        bench = DeviceBench(UsbipBackend().open(f"{exporter.host}/1-1", UsbipOptions(), loop), loop)
        statuses = [set_configuration(bench, value).status for value in (1, 2, 1)]
        assert statuses == [COMPLETED, STALL, COMPLETED]
        assert Choosy.last.asked[-3:] == [1, 2, 1]
        bench.close()


class Slow(Far):
    configuration = Configuration(
        (Interface(0, 0xFF, endpoints=(Endpoint(BULK_IN, BULK, 8), Endpoint(BULK_OUT, BULK, 8))),)
    ).pack()

    def __init__(self) -> None:
        super().__init__()
        self.speed = "low"
        self.table[DEVICE] = self.table[DEVICE][:7] + b"\x08" + self.table[DEVICE][8:]


@pytest.mark.parametrize("type", [BULK, INTERRUPT])
def test_bulk_endpoints_at_low_speed(type: TransferType) -> None:
    """A guest's Linux makes interrupt endpoints of them, and so does the other end's."""
    with Exporter({"1-1": Slow}) as exporter:
        rig = Rig(exporter)
        assert rig.bench.device.speed is Speed.LOW
        read = rig.bench.submit(BULK_IN, type, 8)
        sent = rig.bench.submit(BULK_OUT, type, b"there")
        rig.bench.wait(read, sent)
        assert (read.status, read.actual, sent.status) == (COMPLETED, 8, COMPLETED)
        rig.bench.close()


class Empty(Far):
    configuration = Configuration(
        (Interface(0, 0xFF, endpoints=tuple(Endpoint(0x80 + type, type, 0, 1) for type in (1, 2, 3))),)
    ).pack()


def test_packets_without_bytes_fail_by_themselves() -> None:
    """Linux gives up the connection when it refuses a transfer, as it does each of such an endpoint."""
    with Exporter({"1-1": Empty}) as exporter:
        rig = Rig(exporter)
        transfers = [rig.bench.submit(address, type, 8) for address, type in ((0x82, BULK), (0x83, INTERRUPT))]
        transfers.append(rig.bench.submit_packets(0x81, [8]))
        assert [transfer.status for transfer in transfers] == [TransferStatus.ERROR] * 3
        assert not {0x81, 0x82, 0x83} & rig.far.asked.keys()
        rig.bench.close()


def test_isochronous_packets_that_are_shorter_than_they_may_be(rig: Rig) -> None:
    """Linux drops a transfer, without an answer, that has more packets than its bytes need."""
    assert set_interface(rig.bench, 1, 1).status is COMPLETED
    sizes: list[tuple[int, int]] = []
    submit = rig.far.submit

    def watched(urb: Urb, server: Server) -> None:
        if urb.packets:
            sizes.append((len(urb.packets), urb.length))
        submit(urb, server)

    rig.far.submit = watched  # type: ignore[method-assign]
    transfers = [rig.bench.submit_packets(ISOCHRONOUS_OUT, [b"abc"]) for _ in range(16)]
    rig.bench.wait(*transfers)
    assert [transfer.packets[0].status for transfer in transfers] == [COMPLETED] * 16
    assert rig.far.received[ISOCHRONOUS_OUT] == [b"abc"] * 16
    assert sizes
    assert all(count <= -(-length // 192) for count, length in sizes)


def test_isochronous_packets_with_more_room_than_the_endpoint_fills(rig: Rig) -> None:
    """Linux gives up the connection when it refuses a transfer, as it does one with such a packet."""
    assert set_interface(rig.bench, 1, 1).status is COMPLETED
    longest: list[int] = []
    submit = rig.far.submit

    def watched(urb: Urb, server: Server) -> None:
        longest.extend(length for _, length in urb.packets)
        submit(urb, server)

    rig.far.submit = watched  # type: ignore[method-assign]
    transfers = [rig.bench.submit_packets(ISOCHRONOUS_IN, [size]) for size in (192, 1024, 193) * 3]
    refused = rig.bench.submit_packets(ISOCHRONOUS_OUT, [bytes(193)])
    rig.bench.wait(refused, *transfers)
    assert {(transfer.status, transfer.actual) for transfer in transfers} == {(COMPLETED, 192)}
    assert refused.status is TransferStatus.ERROR
    assert set(longest) == {192}


def test_isochronous_packets_that_are_missed(rig: Rig) -> None:
    assert set_interface(rig.bench, 1, 1).status is COMPLETED
    rig.far.faults[ISOCHRONOUS_IN].append(Fault("missed"))
    transfers = [rig.bench.submit_packets(ISOCHRONOUS_IN, [192]) for _ in range(8)]
    rig.bench.wait(*transfers)
    assert {transfer.packets[0].status for transfer in transfers} <= {COMPLETED, TransferStatus.MISSED}
    assert {transfer.status for transfer in transfers} == {COMPLETED}


def test_transfers_are_cancelled_while_others_go_on(rig: Rig) -> None:
    rig.far.faults[BULK_IN].extend([Fault("drop")] * 64)
    waiting = [rig.bench.submit(BULK_IN, BULK, 4096) for _ in range(64)]
    for transfer in waiting:
        rig.bench.cancel(transfer)
        rig.bench.wait(rig.bench.submit(BULK_OUT, BULK, b"x" * 100))
    rig.bench.wait(*waiting)
    assert {transfer.status for transfer in waiting} == {CANCELLED}
    assert rig.far.unlinks == 64
    assert rig.bench.submit(BULK_IN, BULK, 512) is not None


@pytest.mark.parametrize(("address", "type"), [(0x8E, BULK), (BULK_IN, ISOCHRONOUS), (ISOCHRONOUS_IN, ISOCHRONOUS)])
def test_linux_is_not_asked_for_endpoints_that_it_would_say_nothing_of(
    rig: Rig, address: int, type: TransferType
) -> None:
    transfer = rig.bench.submit_packets(address, [8]) if type is ISOCHRONOUS else rig.bench.submit(address, type, 8)
    assert transfer.status is TransferStatus.ERROR
