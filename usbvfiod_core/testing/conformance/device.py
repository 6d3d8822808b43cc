"""The contract of `Device`, for any device there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ...usb import requests
from ...usb.descriptors import DEVICE, Configuration, DeviceDescriptor, Endpoint, Interface
from ...usb.requests import SetupPacket
from ...usb.speed import Speed
from ...usb.transfer import TransferStatus, TransferType
from ..device_bench import DeviceBench, WatchedTransfer
from .enumeration import (
    configurations,
    configure,
    descriptor_request,
    get_configuration,
    get_descriptor,
    get_interface,
    halt,
    set_configuration,
    set_interface,
)
from .on_bench import OnBench

_REFUSALS = (TransferStatus.STALL, TransferStatus.ERROR, TransferStatus.DISCONNECTED)
_PACKETS = {
    (Speed.LOW, TransferType.INTERRUPT): range(9),
    (Speed.FULL, TransferType.BULK): (8, 16, 32, 64),
    (Speed.FULL, TransferType.INTERRUPT): range(65),
    (Speed.HIGH, TransferType.BULK): (512,),
    (Speed.HIGH, TransferType.INTERRUPT): range(1025),
    (Speed.SUPER, TransferType.BULK): (1024,),
    (Speed.SUPER, TransferType.INTERRUPT): range(1025),
}


class DeviceConformance(OnBench):
    """The contract of `Device`, tested. A subclass writes `make_device`.

    idle_endpoint     address of an IN endpoint on which a transfer stays in flight while nothing happens to the
                      device, for the tests of cancellation. Default: the first interrupt or bulk IN endpoint
    can_halt          False for a device that does not take SET_FEATURE(ENDPOINT_HALT)
    unknown_request   a control transfer that the device refuses

    What a device does not have (alternate settings, isochronous endpoints, streams) is skipped.
    """

    idle_endpoint: int | None = None
    can_halt: bool = True
    unknown_request = SetupPacket(0xC0 | requests.DIRECTION_IN, 0xFE, 0xFEFE, 0xFEFE, 8)

    # -- descriptors -----------------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self, bench: DeviceBench) -> None:
        assert isinstance(bench.device.speed, Speed)
        assert bench.device.name

    def test_device_descriptor(self, bench: DeviceBench) -> None:
        descriptor = DeviceDescriptor.unpack(get_descriptor(bench, DEVICE, 0, 18).data)
        speed = bench.device.speed
        sizes = (9,) if speed.is_usb3 else (64,) if speed is Speed.HIGH else (8, 16, 32, 64)
        assert descriptor.max_packet_size_0 in (sizes if speed is not Speed.LOW else (8,))
        assert descriptor.num_configurations >= 1

    @pytest.mark.parametrize("length", [1, 8, 9, 17, 18, 64, 255])
    def test_a_descriptor_is_cut_to_what_is_asked_for(self, bench: DeviceBench, length: int) -> None:
        whole = get_descriptor(bench, DEVICE, 0, 18).data
        part = get_descriptor(bench, DEVICE, 0, length)
        assert part.status is TransferStatus.COMPLETED
        assert part.data == whole[:length]

    def test_windows_may_be_scattered(self, bench: DeviceBench) -> None:
        whole = get_descriptor(bench, DEVICE, 0, 18).data
        setup = descriptor_request(DEVICE, 0, 18)
        assert bench.control(setup, pieces=[1, 2, 3, 1, 4]).data == whole

    @pytest.mark.parametrize("room", [0, 1, 8, 17])
    def test_a_driver_may_have_less_room_than_it_asks_for(self, bench: DeviceBench, room: int) -> None:
        """What there is room for comes, as a Babble where a packet is longer."""
        whole = get_descriptor(bench, DEVICE, 0, 18).data
        part = bench.submit(0, TransferType.CONTROL, room, setup=descriptor_request(DEVICE, 0, 18))
        bench.wait(part)
        assert part.status in (TransferStatus.COMPLETED, TransferStatus.BABBLE)
        assert part.data == whole[:room]
        assert get_descriptor(bench, DEVICE, 0, 18).data == whole

    def test_configurations_are_consistent(self, bench: DeviceBench) -> None:
        for configuration, raw in configurations(bench):
            assert configuration.pack() == raw, "lengths and counts in the configuration do not agree"
            for interface in configuration.interfaces:
                addresses = [endpoint.address for endpoint in interface.endpoints]
                assert len(addresses) == len(set(addresses))
                for endpoint in interface.endpoints:
                    _check_endpoint(bench.device.speed, endpoint)

    # -- control transfers -----------------------------------------------------------------------------------------

    def test_set_configuration(self, bench: DeviceBench) -> None:
        assert get_configuration(bench) == 0
        value = configure(bench).value
        assert get_configuration(bench) == value
        assert set_configuration(bench, 0).status is TransferStatus.COMPLETED
        assert get_configuration(bench) == 0

    def test_an_unknown_request_is_stalled(self, bench: DeviceBench) -> None:
        assert bench.control(self.unknown_request).status is TransferStatus.STALL
        assert get_descriptor(bench, DEVICE, 0, 18).status is TransferStatus.COMPLETED

    def test_control_transfers_end_in_order(self, bench: DeviceBench) -> None:
        ended: list[int] = []
        transfers: list[WatchedTransfer] = []
        for length in (18, 8, 18, 1, 9):
            setup = descriptor_request(DEVICE, 0, length)
            transfer = WatchedTransfer(0, TransferType.CONTROL, length, setup=setup)
            transfer.on_complete = lambda each: ended.append(each.context)
            transfer.context = len(transfers)
            transfers.append(transfer)
            bench.transfers.append(transfer)
        for transfer in transfers:
            bench.device.submit(transfer)
        bench.wait(*transfers)
        assert ended == [0, 1, 2, 3, 4]

    def test_a_control_transfer_may_be_cancelled(self, bench: DeviceBench) -> None:
        for _ in range(5):
            transfer = bench.submit(0, TransferType.CONTROL, 18, setup=descriptor_request(DEVICE, 0, 18))
            bench.cancel(transfer)
            bench.wait(transfer)
            assert transfer.status in (TransferStatus.COMPLETED, TransferStatus.CANCELLED)
            assert get_descriptor(bench, DEVICE, 0, 18).actual == 18

    # -- alternate settings ------------------------------------------------------------------------------------------

    def test_alternate_settings_are_chosen_one_by_one(self, bench: DeviceBench) -> None:
        configuration = configure(bench)
        for interface in _with_settings(configuration):
            assert set_interface(bench, interface.number, interface.alternate).status is TransferStatus.COMPLETED
            assert get_interface(bench, interface.number) == interface.alternate
            assert set_interface(bench, interface.number, 0xEE).status in _REFUSALS
            assert get_interface(bench, interface.number) == interface.alternate
        assert set_configuration(bench, configuration.value).status is TransferStatus.COMPLETED
        for interface in _with_settings(configuration):
            assert get_interface(bench, interface.number) == 0, "a new configuration begins with settings 0"

    def test_endpoints_are_those_of_the_alternate_setting(self, bench: DeviceBench) -> None:
        configuration = configure(bench)
        settings = _with_settings(configuration)
        for interface in settings:
            elsewhere = [
                endpoint
                for other in settings
                if other.number == interface.number
                for endpoint in other.endpoints
                if endpoint.is_in and endpoint.address not in {each.address for each in interface.endpoints}
            ]
            assert set_interface(bench, interface.number, interface.alternate).status is TransferStatus.COMPLETED
            for endpoint in elsewhere:
                refused = bench.submit(endpoint.address, endpoint.type, endpoint.packet_size)
                bench.wait(refused)
                assert refused.status in _REFUSALS

    # -- isochronous endpoints, streams ------------------------------------------------------------------------------

    @pytest.mark.parametrize("is_in", [True, False], ids=["in", "out"])
    def test_isochronous_packets_end_in_order(self, bench: DeviceBench, is_in: bool) -> None:
        endpoint = _select(bench, _moving_isochronous(is_in))
        size = endpoint.packet_size
        transfers = [bench.submit_packets(endpoint.address, [size if is_in else bytes(size)] * 4) for _ in range(8)]
        bench.wait(*transfers)
        assert bench.ended[-8:] == transfers
        statuses = {packet.status for transfer in transfers for packet in transfer.packets}
        assert TransferStatus.COMPLETED in statuses
        assert not statuses & {TransferStatus.STALL, TransferStatus.CANCELLED, TransferStatus.DISCONNECTED}

    @pytest.mark.parametrize("is_in", [True, False], ids=["in", "out"])
    def test_isochronous_transfers_are_cancelled(self, bench: DeviceBench, is_in: bool) -> None:
        endpoint = _select(bench, _moving_isochronous(is_in))
        # Long enough for a busy machine: the last one waits when it is cancelled.
        packets = [endpoint.packet_size if is_in else bytes(endpoint.packet_size)] * 64
        transfers = [bench.submit_packets(endpoint.address, packets) for _ in range(32)]
        for transfer in reversed(transfers):
            bench.cancel(transfer)
        bench.wait(*transfers)
        assert transfers[-1].status is TransferStatus.CANCELLED
        again = bench.submit_packets(endpoint.address, packets)
        bench.wait(again)
        assert again.status is TransferStatus.COMPLETED

    def test_streams_wait_and_are_cancelled_one_by_one(self, bench: DeviceBench) -> None:
        if not bench.device.max_streams:
            pytest.skip("the device, or its backend, has no streams")
        endpoint = _select(bench, lambda each: each.is_in and each.companion is not None and each.companion.max_streams)
        assert endpoint.companion is not None
        count = min(bench.device.max_streams, endpoint.companion.max_streams, 8)
        waiting = {
            stream_id: bench.submit(endpoint.address, TransferType.BULK, endpoint.packet_size, stream_id=stream_id)
            for stream_id in range(1, count + 1)
        }
        bench.loop.advance(0.02)
        for stream_id in sorted(waiting, key=lambda each: each * 5 % 7):
            assert waiting[stream_id].status is None
            bench.cancel(waiting[stream_id])
            bench.wait(waiting[stream_id])
            assert waiting[stream_id].status is TransferStatus.CANCELLED

    # -- cancellation ----------------------------------------------------------------------------------------------

    def test_a_cancelled_transfer_ends_once_and_leaves_memory_alone(self, bench: DeviceBench) -> None:
        transfer = self._submit_idle(bench)
        bench.cancel(transfer)
        bench.wait(transfer)
        assert transfer.status in (TransferStatus.CANCELLED, TransferStatus.COMPLETED)
        before = bytes(transfer.memory)
        bench.loop.advance(0.05)
        assert bytes(transfer.memory) == before, "the device wrote after the transfer had ended"
        assert transfer.completions == 1

    def test_cancelling_in_any_order(self, bench: DeviceBench) -> None:
        transfers = [self._submit_idle(bench, number) for number in range(5)]
        for index in (2, 4, 0, 3, 1):
            bench.cancel(transfers[index])
        bench.wait(*transfers)
        assert [each.completions for each in transfers] == [1] * 5

    def test_cancelling_twice_or_too_late_changes_nothing(self, bench: DeviceBench) -> None:
        transfer = self._submit_idle(bench)
        bench.cancel(transfer)
        bench.cancel(transfer)
        bench.wait(transfer)
        bench.cancel(transfer)
        ended = get_descriptor(bench, DEVICE, 0, 18)
        bench.cancel(ended)
        bench.loop.advance(0.02)
        assert (transfer.completions, ended.completions) == (1, 1)
        assert ended.status is TransferStatus.COMPLETED

    def test_the_endpoint_works_on_after_a_cancellation(self, bench: DeviceBench) -> None:
        first = self._submit_idle(bench)
        bench.cancel(first)
        bench.wait(first)
        second = self._submit_idle(bench, 1)
        assert second.status is not TransferStatus.ERROR
        bench.cancel(second)
        bench.wait(second)

    def test_the_newest_may_be_cancelled_first(self, bench: DeviceBench) -> None:
        """As the controller does it: what completes meanwhile is the oldest."""
        transfers = [self._submit_idle(bench, number) for number in range(16)]
        for transfer in reversed(transfers):
            bench.cancel(transfer)
            bench.wait(transfer)
        done = [transfer.status is TransferStatus.COMPLETED for transfer in transfers]
        assert done == sorted(done, reverse=True)

    # -- halts, reset, absent endpoints ----------------------------------------------------------------------------

    def test_an_endpoint_that_is_not_there_refuses(self, bench: DeviceBench) -> None:
        configuration = configure(bench)
        taken = {each.address for interface in configuration.interfaces for each in interface.endpoints}
        absent = next(address for address in range(0x8F, 0x80, -1) if address not in taken)
        transfer = bench.submit(absent, TransferType.BULK, 64)
        bench.wait(transfer)
        assert transfer.status in _REFUSALS

    def test_a_halt_stalls_until_it_is_cleared(self, bench: DeviceBench) -> None:
        if not self.can_halt:
            pytest.skip("the device does not take SET_FEATURE(ENDPOINT_HALT)")
        endpoint = self._idle(bench, configure(bench))
        assert halt(bench, endpoint, requests.SET_FEATURE).status is TransferStatus.COMPLETED
        stalled = bench.submit(endpoint.address, endpoint.type, endpoint.packet_size)
        bench.wait(stalled)
        assert stalled.status is TransferStatus.STALL
        assert halt(bench, endpoint, requests.CLEAR_FEATURE).status is TransferStatus.COMPLETED
        after = bench.submit(endpoint.address, endpoint.type, endpoint.packet_size)
        assert after.status is not TransferStatus.STALL

    def test_a_reset_leads_back_to_the_default_state(self, bench: DeviceBench) -> None:
        configuration = configure(bench)
        endpoint = self._idle(bench, configuration)
        if self.can_halt:
            halt(bench, endpoint, requests.SET_FEATURE)
        bench.reset()
        assert bench.events.disconnections == 0
        assert get_configuration(bench) == 0
        assert configure(bench).value == configuration.value
        after = bench.submit(endpoint.address, endpoint.type, endpoint.packet_size)
        assert after.status is not TransferStatus.STALL

    def test_a_reset_may_follow_a_reset(self, bench: DeviceBench) -> None:
        bench.reset()
        bench.reset()
        assert get_descriptor(bench, DEVICE, 0, 18).status is TransferStatus.COMPLETED

    # -- the end -----------------------------------------------------------------------------------------------------

    def test_closing_gives_everything_back(self, bench: DeviceBench) -> None:
        transfers = [self._submit_idle(bench, number) for number in range(5)]
        bench.close_device()
        told: list[bool] = []
        bench.device.when_closed(lambda: told.append(True))
        bench.wait(*transfers)
        assert [transfer.completions for transfer in transfers] == [1] * 5
        assert bench.loop.run_until(lambda: bool(told), self.timeout)
        assert told == [True]

    def test_a_device_that_vanishes_ends_its_transfers(self, bench: DeviceBench) -> None:
        transfers = [self._submit_idle(bench, number) for number in range(5)]
        self.unplug(bench.device)
        bench.wait(*transfers)
        assert bench.loop.run_until(lambda: bench.events.disconnections > 0, self.timeout)
        late = bench.control(descriptor_request(DEVICE, 0, 18))
        assert late.status in _REFUSALS
        bench.loop.advance(0.02)
        assert bench.events.disconnections == 1

    # -- own -------------------------------------------------------------------------------------------------------

    def _idle(self, bench: DeviceBench, configuration: Configuration) -> Endpoint:
        endpoints = [
            endpoint
            for interface in configuration.interfaces
            if not interface.alternate
            for endpoint in interface.endpoints
            if endpoint.is_in and endpoint.type in (TransferType.BULK, TransferType.INTERRUPT)
        ]
        if self.idle_endpoint is not None:
            endpoints = [endpoint for endpoint in endpoints if endpoint.address == self.idle_endpoint]
        if not endpoints:
            pytest.skip("the device has no bulk or interrupt IN endpoint")
        return min(endpoints, key=lambda endpoint: -endpoint.type)

    def _submit_idle(self, bench: DeviceBench, number: int = 0) -> WatchedTransfer:
        if not number:
            self._found = self._idle(bench, configure(bench))
        return bench.submit(self._found.address, self._found.type, self._found.packet_size)


def _with_settings(configuration: Configuration) -> list[Interface]:
    """The settings of the interfaces that have more than one."""
    numbers = [interface.number for interface in configuration.interfaces]
    found = [interface for interface in configuration.interfaces if numbers.count(interface.number) > 1]
    return found or pytest.skip("the device has no alternate settings")


def _select(bench: DeviceBench, wanted: Callable[[Endpoint], object]) -> Endpoint:
    """Configure the device, and select the setting with the first endpoint that is wanted."""
    for interface in configure(bench).interfaces:
        for endpoint in interface.endpoints:
            if wanted(endpoint):
                if interface.alternate:
                    chosen = set_interface(bench, interface.number, interface.alternate)
                    assert chosen.status is TransferStatus.COMPLETED
                return endpoint
    pytest.skip("the device has no endpoint for this test")


def _moving_isochronous(is_in: bool) -> Callable[[Endpoint], object]:
    """Isochronous endpoints of one direction; not those of size 0, which are where nothing is to be moved yet."""
    return lambda each: each.type is TransferType.ISOCHRONOUS and each.is_in is is_in and each.packet_size


def _check_endpoint(speed: Speed, endpoint: Endpoint) -> None:
    assert endpoint.address & 0x0F, "endpoint 0 has no descriptor"
    assert not endpoint.address & 0x70
    assert (endpoint.companion is not None) == speed.is_usb3, "a SuperSpeed companion is for USB 3, and needed there"
    allowed = _PACKETS.get((min(speed, Speed.SUPER), endpoint.type))
    if endpoint.type not in (TransferType.ISOCHRONOUS, TransferType.CONTROL):
        assert allowed is not None, f"no {endpoint.type.name.lower()} endpoints at {speed.name.lower()} speed"
        assert endpoint.packet_size in allowed
    if endpoint.type is TransferType.INTERRUPT:
        assert 1 <= endpoint.interval <= (16 if speed >= Speed.HIGH else 255)
