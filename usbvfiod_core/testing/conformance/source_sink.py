"""What a backend does with data, tried on a device that is made for it: Linux's gadget zero, or one like it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import pytest

from ...usb import requests
from ...usb.descriptors import DEVICE, Configuration, DeviceDescriptor, Endpoint
from ...usb.requests import SetupPacket
from ...usb.speed import Speed
from ...usb.transfer import Transfer, TransferStatus, TransferType
from ..device_bench import DeviceBench, WatchedTransfer
from .enumeration import (
    configurations,
    get_descriptor,
    get_interface,
    halt,
    is_halted,
    set_configuration,
    set_interface,
)
from .on_bench import OnBench

SOURCE_SINK, LOOPBACK = 3, 2
WRITE_BUFFER, READ_BUFFER = 0x5B, 0x5C
BUFFER = 4096
"""Bytes of one request of the gadget: it looks at what it was sent, and sends on what it was sent, when a transfer ends
short or this much has come."""
LENGTHS = (BUFFER, 3 * BUFFER, 1 << 16, 1 << 20)
ODD = (1, 4095, 3, 4097, 511, 16383, 8191, 2, 65535, 777)
"""Sizes of the windows of a scattered transfer, over and over."""

_COMPLETED = TransferStatus.COMPLETED
_STALL = TransferStatus.STALL
_ENDED = (TransferStatus.CANCELLED, TransferStatus.DISCONNECTED, TransferStatus.ERROR)
_BULK, _INTERRUPT, _ISOCHRONOUS = TransferType.BULK, TransferType.INTERRUPT, TransferType.ISOCHRONOUS


@dataclass(frozen=True)
class Setting:
    """The endpoints of one alternate setting, while the device is in it."""

    bench: DeviceBench
    endpoints: tuple[Endpoint, ...]

    def find(self, type: TransferType, *, is_in: bool) -> Endpoint:
        """The first endpoint of a type and direction; skips the test if there is none."""
        for endpoint in self.endpoints:
            if endpoint.type is type and endpoint.is_in is is_in:
                return endpoint
        pytest.skip(f"no {type.name.lower()} {'IN' if is_in else 'OUT'} endpoint")

    @property
    def source(self) -> Endpoint:
        """The bulk IN endpoint."""
        return self.find(_BULK, is_in=True)

    @property
    def sink(self) -> Endpoint:
        """The bulk OUT endpoint."""
        return self.find(_BULK, is_in=False)

    def submit(self, endpoint: Endpoint, data: bytes | int, pieces: Sequence[int] = ()) -> WatchedTransfer:
        """Start a transfer."""
        return self.bench.submit(endpoint.address, endpoint.type, data, pieces=pieces)

    def move(self, endpoint: Endpoint, data: bytes | int, pieces: Sequence[int] = ()) -> WatchedTransfer:
        """A transfer from start to end; it has to complete, and whole."""
        transfer = self.submit(endpoint, data, pieces)
        self.bench.wait(transfer)
        assert (transfer.status, transfer.actual) == (_COMPLETED, transfer.length)
        return transfer


class SourceSinkConformance(OnBench):
    """Data through a `Device` that is a source and a sink, and a loop of data in another configuration.

    A subclass writes `make_device`, which opens `virtual:loopback`, or through the backend under test a gadget zero
    (Linux's module g_zero, or the functions SourceSink and Loopback by configfs in configurations 3 and 2). What the
    device does not have is skipped. IN transfers ask for whole packets: the source knows no other.

    pattern         the device's: 0 zeros, 1 packets that count modulo 63, 2 anything
    control_limit   longest data stage of its vendor requests, longer ones it refuses; the gadget's is 4096
    """

    pattern: int = 0
    control_limit: int = 4096

    @pytest.fixture
    def setting(self, bench: DeviceBench) -> Setting:
        """Configuration 3, source and sink."""
        return self._configured(bench, SOURCE_SINK)

    @pytest.fixture
    def loop_setting(self, bench: DeviceBench) -> Setting:
        """Configuration 2, in which what is written to the OUT endpoint is read from the IN endpoint."""
        return self._configured(bench, LOOPBACK)

    # -- endpoint 0 ------------------------------------------------------------------------------------------------

    def test_it_is_gadget_zero(self, bench: DeviceBench) -> None:
        descriptor = DeviceDescriptor.unpack(get_descriptor(bench, DEVICE, 0, 18).data)
        assert (descriptor.vendor_id, descriptor.product_id) == (0x0525, 0xA4A0)

    @pytest.mark.parametrize("length", [1, 8, 63, 64, 65, 512, 1000, 4095, 4096, 4097, 65535])
    def test_control_data_goes_both_ways(self, setting: Setting, length: int) -> None:
        data = random.Random(length).randbytes(length)
        written = self._write_buffer(setting.bench, data)
        back = self._read_buffer(setting.bench, length)
        if length <= self.control_limit:
            assert (written.status, written.actual) == (_COMPLETED, length)
            assert (back.status, back.data) == (_COMPLETED, data)
        else:
            assert {written.status, back.status} <= {_STALL, TransferStatus.ERROR}
            assert self._write_buffer(setting.bench, data[:64]).status is _COMPLETED

    def test_control_data_may_be_scattered(self, setting: Setting) -> None:
        data, pieces = random.Random(1).randbytes(1000), [1, 62, 3, 700, 100]
        assert self._write_buffer(setting.bench, data, pieces).status is _COMPLETED
        assert self._read_buffer(setting.bench, 1000, pieces[::-1]).data == data

    def test_a_driver_may_have_less_room_than_it_asks_for(self, setting: Setting) -> None:
        """A packet that does not fit into what is left is a Babble; behind whole packets the driver stops early."""
        bench, data = setting.bench, random.Random(2).randbytes(1200)
        packet = {Speed.FULL: 64, Speed.LOW: 8, Speed.HIGH: 64}.get(bench.device.speed, 512)
        assert self._write_buffer(bench, data).status is _COMPLETED
        setup = SetupPacket(0xC0, READ_BUFFER, 0, 0, len(data))
        for room in (packet, 2 * packet, packet + 1, 1, 0):
            part = bench.submit(0, TransferType.CONTROL, room, setup=setup)
            bench.wait(part)
            babbles = room % packet or (not room and packet < 512)
            assert part.status is (TransferStatus.BABBLE if babbles else _COMPLETED)
            assert part.data == data[:room]
            assert self._read_buffer(bench, len(data)).data == data
        roomy = bench.submit(0, TransferType.CONTROL, 1, setup=SetupPacket(0x80, 8, 0, 0, 255))
        bench.wait(roomy)
        assert (roomy.status, roomy.data) == (_COMPLETED, bytes([SOURCE_SINK])), "the device has no more than that"

    @pytest.mark.parametrize("length", [0, 1, 64, 100])
    def test_a_driver_may_send_less_than_it_says(self, setting: Setting, length: int) -> None:
        bench, data = setting.bench, random.Random(3).randbytes(length)
        part = bench.submit(0, TransferType.CONTROL, data, setup=SetupPacket(0x40, WRITE_BUFFER, 0, 0, 600))
        bench.wait(part)
        assert (part.status, part.actual) == (_COMPLETED, length)
        assert self._read_buffer(bench, length).data == data

    def test_a_refused_control_transfer_leaves_endpoint_0_alone(self, setting: Setting) -> None:
        for number in range(3):
            refused = setting.bench.control(SetupPacket(0xC0, READ_BUFFER, 1 + number, 0, 8))
            assert (refused.status, refused.actual) == (_STALL, 0)
            assert self._write_buffer(setting.bench, b"after").status is _COMPLETED
            assert self._read_buffer(setting.bench, 5).data == b"after"

    # -- source and sink -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("length", [1, 3, *LENGTHS])
    def test_the_source_gives_all_that_is_asked_for(self, setting: Setting, length: int) -> None:
        source = setting.source
        if length < BUFFER:
            length *= source.packet_size
        self._check(source, setting.move(source, length))

    @pytest.mark.parametrize("length", [1, 31, 511, 512, 513, 1023, 1024, 1025, *LENGTHS, (1 << 16) + 17])
    def test_the_sink_takes_all_that_is_given(self, setting: Setting, length: int) -> None:
        sink = setting.sink
        setting.move(sink, self._pattern(sink, length))
        setting.move(sink, self._pattern(sink, 100))  # the packets did not go out of step

    def test_a_zero_length_packet_is_sent(self, setting: Setting) -> None:
        sink = setting.sink
        for length in (0, sink.packet_size, 0, 0, 100):
            setting.move(sink, self._pattern(sink, length))

    @pytest.mark.parametrize("is_in", [True, False], ids=["in", "out"])
    def test_a_mebibyte_over_scattered_windows(self, setting: Setting, is_in: bool) -> None:
        endpoint = setting.source if is_in else setting.sink
        data = 1 << 20 if is_in else self._pattern(endpoint, 1 << 20)
        moved = setting.move(endpoint, data, _odd_pieces(1 << 20))
        if is_in:
            self._check(endpoint, moved)

    @pytest.mark.parametrize("is_in", [True, False], ids=["in", "out"])
    def test_interrupt_endpoints_give_and_take(self, setting: Setting, is_in: bool) -> None:
        endpoint = setting.find(_INTERRUPT, is_in=is_in)
        size = endpoint.packet_size
        for length in (size, 4 * size):
            moved = setting.move(endpoint, length if is_in else self._pattern(endpoint, length))
            if is_in:
                self._check(endpoint, moved)

    def test_transfers_of_an_endpoint_end_in_order(self, setting: Setting) -> None:
        source, sink = setting.source, setting.sink
        length = 1 << 14
        transfers: dict[Endpoint, list[WatchedTransfer]] = {source: [], sink: []}
        for number in range(48):
            endpoint = (source, sink)[number % 2]
            transfers[endpoint].append(
                setting.submit(endpoint, length if endpoint is source else self._pattern(sink, length))
            )
        setting.bench.wait(*transfers[source], *transfers[sink])
        for endpoint, each in transfers.items():
            assert _order(setting.bench, endpoint) == each
            assert [(transfer.status, transfer.actual) for transfer in each] == [(_COMPLETED, length)] * 24
        for transfer in transfers[source]:
            self._check(source, transfer)

    # -- cancellation ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("is_in", [True, False], ids=["in", "out"])
    def test_what_is_cancelled_in_full_flow_comes_back(self, setting: Setting, is_in: bool) -> None:
        """Newest first, as the controller does it: what was done is then done from the oldest on, without a gap."""
        endpoint = setting.source if is_in else setting.sink
        length = 1 << 16
        data = length if is_in else self._pattern(endpoint, length)
        transfers = [setting.submit(endpoint, data) for _ in range(32)]
        for transfer in reversed(transfers):
            setting.bench.cancel(transfer)
        setting.bench.wait(*transfers)
        whole = [transfer.status is _COMPLETED for transfer in transfers]
        assert whole == sorted(whole, reverse=True)
        assert {transfer.status for transfer in transfers} <= {_COMPLETED, TransferStatus.CANCELLED}
        for transfer in transfers:
            assert transfer.actual == length or transfer.status is not _COMPLETED
            if is_in:
                self._check(endpoint, transfer)
        if is_in:
            self._check(endpoint, setting.move(endpoint, length))
        else:
            setting.bench.wait(setting.submit(endpoint, b""))  # ends what the sink has half of
            setting.move(endpoint, data)

    def test_a_waiting_transfer_is_cancelled_and_the_next_gets_the_data(self, loop_setting: Setting) -> None:
        waiting = [loop_setting.submit(loop_setting.source, BUFFER) for _ in range(16)]
        loop_setting.bench.loop.advance(0.02)
        assert [transfer.status for transfer in waiting] == [None] * 16
        for transfer in waiting[:-1]:
            loop_setting.bench.cancel(transfer)
        loop_setting.bench.wait(*waiting[:-1])
        assert [(transfer.status, transfer.actual) for transfer in waiting[:-1]] == [(TransferStatus.CANCELLED, 0)] * 15
        loop_setting.move(loop_setting.sink, b"to the last")
        loop_setting.bench.wait(waiting[-1])
        assert (waiting[-1].status, waiting[-1].data) == (_COMPLETED, b"to the last")

    # -- halts, reset, end -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("is_in", [True, False], ids=["in", "out"])
    def test_data_goes_on_after_a_halt(self, setting: Setting, is_in: bool) -> None:
        """An odd number of packets before the halt: both sides have to start anew with DATA0 (USB 2.0 9.4.5)."""
        bench, endpoint = setting.bench, setting.source if is_in else setting.sink
        size = endpoint.packet_size

        def move(packets: int) -> None:
            moved = setting.move(endpoint, packets * size if is_in else self._pattern(endpoint, packets * size))
            if is_in:
                self._check(endpoint, moved)

        for packets in (1, 2, 5):
            move(packets)
            assert halt(bench, endpoint, requests.SET_FEATURE).status is _COMPLETED
            assert is_halted(bench, endpoint)
            stalled = setting.submit(endpoint, size if is_in else self._pattern(endpoint, size))
            bench.wait(stalled)
            assert (stalled.status, stalled.actual) == (_STALL, 0)
            assert halt(bench, endpoint, requests.CLEAR_FEATURE).status is _COMPLETED
            assert not is_halted(bench, endpoint)
            for _ in range(3):
                move(1)
            assert halt(bench, endpoint, requests.CLEAR_FEATURE).status is _COMPLETED  # without need, in mid-sequence
            move(1)

    def test_what_is_queued_on_a_halted_endpoint_stalls_too(self, setting: Setting) -> None:
        bench, source, sink = setting.bench, setting.source, setting.sink
        halt(bench, source, requests.SET_FEATURE)
        stalled = [setting.submit(source, source.packet_size) for _ in range(4)]
        bench.wait(*stalled)
        assert [transfer.status for transfer in stalled] == [_STALL] * 4
        setting.move(sink, self._pattern(sink, BUFFER))  # the other endpoint does not mind
        halt(bench, source, requests.CLEAR_FEATURE)
        self._check(source, setting.move(source, BUFFER))

    def test_wrong_data_halts_the_sink(self, setting: Setting) -> None:
        if self.pattern not in (0, 1):
            pytest.skip("the sink takes anything")
        sink = setting.sink
        setting.move(sink, b"\xff" * 33)
        bench = setting.bench
        assert bench.loop.run_until(lambda: is_halted(bench, sink), self.timeout)
        refused = setting.submit(sink, self._pattern(sink, 33))
        bench.wait(refused)
        assert (refused.status, refused.actual) == (_STALL, 0)
        halt(bench, sink, requests.CLEAR_FEATURE)
        setting.move(sink, self._pattern(sink, BUFFER))

    def test_data_goes_on_after_a_reset(self, setting: Setting) -> None:
        bench, source, sink = setting.bench, setting.source, setting.sink
        setting.move(source, source.packet_size)
        setting.move(sink, self._pattern(sink, 3 * sink.packet_size))
        halt(bench, source, requests.SET_FEATURE)
        bench.reset()
        assert bench.events.disconnections == 0
        again = self._configured(bench, SOURCE_SINK)
        self._check(source, again.move(source, LENGTHS[-1]))
        again.move(sink, self._pattern(sink, LENGTHS[-1]))

    def test_closing_gives_everything_back(self, loop_setting: Setting) -> None:
        waiting = [loop_setting.submit(loop_setting.source, 1 << 16) for _ in range(8)]
        loop_setting.bench.close_device()
        loop_setting.bench.wait(*waiting)
        assert {transfer.status for transfer in waiting} <= set(_ENDED)

    def test_a_device_that_vanishes_ends_its_transfers(self, loop_setting: Setting) -> None:
        bench, source = loop_setting.bench, loop_setting.source
        waiting = [loop_setting.submit(source, 1 << 16) for _ in range(8)]
        self.unplug(bench.device)
        bench.wait(*waiting)
        assert {transfer.status for transfer in waiting} <= set(_ENDED)
        assert bench.loop.run_until(lambda: bench.events.disconnections > 0, self.timeout)
        assert bench.events.disconnections == 1
        late = [loop_setting.submit(source, 512), bench.submit(0, TransferType.CONTROL, 2, setup=_GET_STATUS)]
        bench.wait(*late)
        assert {transfer.status for transfer in late} <= set(_ENDED)

    # -- loopback --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("length", [1, 100, BUFFER - 1, BUFFER, 3 * BUFFER, 1 << 16, 1 << 20])
    def test_what_is_written_is_read(self, loop_setting: Setting, length: int) -> None:
        source, sink = loop_setting.source, loop_setting.sink
        data = random.Random(length).randbytes(length)
        room = -(-length // BUFFER) * BUFFER
        reading = loop_setting.submit(source, room, _odd_pieces(room))
        loop_setting.move(sink, data, _odd_pieces(length))
        loop_setting.bench.wait(reading)
        assert (reading.status, reading.actual) == (_COMPLETED, length), "a short packet ends a transfer"
        assert reading.data == data

    def test_short_transfers_stay_apart(self, loop_setting: Setting) -> None:
        texts = [b"one", b"", b"three", b"x" * 1000, b"five"]
        reading = [loop_setting.submit(loop_setting.source, BUFFER) for _ in texts]
        for text in texts:
            loop_setting.move(loop_setting.sink, text)
        loop_setting.bench.wait(*reading)
        assert [transfer.data for transfer in reading] == texts

    # -- alternate settings, isochronous ----------------------------------------------------------------------------

    def test_data_goes_on_in_every_alternate_setting(self, setting: Setting) -> None:
        bench = setting.bench
        alternates = [each for each in _configuration(bench, SOURCE_SINK).interfaces if each.number == 0]
        if len(alternates) < 2:
            pytest.skip("there is one alternate setting")
        for interface in [*alternates, *alternates]:
            assert set_interface(bench, 0, interface.alternate).status is _COMPLETED
            assert get_interface(bench, 0) == interface.alternate
            there = Setting(bench, interface.endpoints)
            for _ in range(3):
                self._check(there.source, there.move(there.source, there.source.packet_size))
                there.move(there.sink, self._pattern(there.sink, there.sink.packet_size))

    @pytest.mark.parametrize("is_in", [True, False], ids=["in", "out"])
    def test_isochronous_packets_keep_time(self, setting: Setting, is_in: bool) -> None:
        """64 packets, eight to a transfer and one to a transfer: none is lost silently, and they take their time."""
        bench = setting.bench
        for interface in _configuration(bench, SOURCE_SINK).interfaces:
            endpoint = next((e for e in interface.endpoints if e.type is _ISOCHRONOUS and e.is_in is is_in), None)
            if endpoint is None:
                continue
            assert set_interface(bench, interface.number, interface.alternate).status is _COMPLETED
            size = endpoint.packet_size
            packet = size if is_in else self._pattern(endpoint, size)
            for count in (8, 1):
                transfers = [bench.submit_packets(endpoint.address, [packet] * count) for _ in range(64 // count)]
                assert transfers[-1].status is None, "the last of 64 packets was sent at once"
                bench.wait(*transfers)
                packets = [(transfer, each) for transfer in transfers for each in transfer.packets]
                good = [(transfer, each) for transfer, each in packets if each.status is _COMPLETED]
                assert len(good) >= 32, "most packets were lost on an idle bus"
                for transfer, each in good:
                    if not is_in:
                        assert each.actual == size
                    elif self.pattern in (0, 1):
                        assert transfer.packet_data(each) == self._pattern(endpoint, each.actual)
                assert _order(bench, endpoint)[-len(transfers) :] == transfers
            set_interface(bench, interface.number, 0)
            return
        pytest.skip("there is no isochronous endpoint of that direction")

    # -- own -------------------------------------------------------------------------------------------------------

    def _configured(self, bench: DeviceBench, value: int) -> Setting:
        configuration = _configuration(bench, value)
        assert set_configuration(bench, value).status is _COMPLETED
        return Setting(bench, configuration.interfaces[0].endpoints)

    def _pattern(self, endpoint: Endpoint, length: int) -> bytes:
        """The pattern begins anew with each packet."""
        if self.pattern != 1:
            return bytes(length)
        packet = bytes(index % 63 for index in range(endpoint.packet_size))
        return (packet * (length // len(packet) + 1))[:length]

    def _check(self, endpoint: Endpoint, transfer: WatchedTransfer) -> None:
        if self.pattern in (0, 1):
            assert transfer.data == self._pattern(endpoint, transfer.actual)

    def _write_buffer(self, bench: DeviceBench, data: bytes, pieces: Sequence[int] = ()) -> WatchedTransfer:
        return bench.control(SetupPacket(0x40, WRITE_BUFFER, 0, 0, len(data)), data, pieces=pieces)

    def _read_buffer(self, bench: DeviceBench, length: int, pieces: Sequence[int] = ()) -> WatchedTransfer:
        return bench.control(SetupPacket(0xC0, READ_BUFFER, 0, 0, length), pieces=pieces)


_GET_STATUS = SetupPacket(requests.DIRECTION_IN, requests.GET_STATUS, 0, 0, 2)


def _configuration(bench: DeviceBench, value: int) -> Configuration:
    for configuration, _ in configurations(bench):
        if configuration.value == value:
            return configuration
    pytest.skip(f"the device has no configuration {value}")


def _odd_pieces(length: int) -> list[int]:
    pieces: list[int] = []
    left = length
    for size in cycle(ODD):
        if left <= size:
            return pieces
        pieces.append(size)
        left -= size
    raise AssertionError


def _order(bench: DeviceBench, endpoint: Endpoint) -> list[Transfer]:
    return [transfer for transfer in bench.ended if transfer.endpoint == endpoint.address]
