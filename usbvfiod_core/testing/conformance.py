"""The conformance suites: what every `Device` and every `Backend` must do, as pytest base classes.

    from usbvfiod_core.testing.conformance import DeviceConformance

    class TestMyDevice(DeviceConformance):
        def make_device(self, loop):
            return MyDevice(loop)

All tests run in real time against a `StepLoop`; a device that needs a host's hardware works too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest

from ..errors import ConfigError, UsbvfiodError
from ..usb import requests
from ..usb.backend import Backend, DeviceInfo
from ..usb.descriptors import CONFIGURATION, DEVICE, Configuration, DeviceDescriptor, Endpoint
from ..usb.device import Device, Loop
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import TransferStatus, TransferType
from .device_bench import DeviceBench, WatchedTransfer
from .loop import StepLoop

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


class DeviceConformance:
    """The contract of `Device`, tested. A subclass writes `make_device`.

    idle_endpoint     address of an IN endpoint on which a transfer stays in flight while nothing happens to the
                      device, for the tests of cancellation. Default: the first interrupt or bulk IN endpoint
    can_halt          False for a device that does not take SET_FEATURE(ENDPOINT_HALT)
    unknown_request   a control transfer that the device refuses
    """

    idle_endpoint: int | None = None
    can_halt: bool = True
    unknown_request = SetupPacket(0xC0 | requests.DIRECTION_IN, 0xFE, 0xFEFE, 0xFEFE, 8)

    def make_device(self, loop: Loop) -> Device:
        """A new device, ready for `attach`. Called once for each test."""
        raise NotImplementedError

    @pytest.fixture
    def bench(self) -> Iterator[DeviceBench]:
        """The device on a bench; everything it does wrong with a transfer fails the test at its end."""
        loop = StepLoop(virtual_time=False)
        bench = DeviceBench(self.make_device(loop), loop)
        yield bench
        bench.close()

    # -- descriptors -----------------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self, bench: DeviceBench) -> None:
        assert isinstance(bench.device.speed, Speed)
        assert bench.device.name

    def test_device_descriptor(self, bench: DeviceBench) -> None:
        descriptor = DeviceDescriptor.unpack(_get_descriptor(bench, DEVICE, 0, 18).data)
        speed = bench.device.speed
        sizes = (9,) if speed.is_usb3 else (64,) if speed is Speed.HIGH else (8, 16, 32, 64)
        assert descriptor.max_packet_size_0 in (sizes if speed is not Speed.LOW else (8,))
        assert descriptor.num_configurations >= 1

    @pytest.mark.parametrize("length", [1, 8, 9, 17, 18, 64, 255])
    def test_a_descriptor_is_cut_to_what_is_asked_for(self, bench: DeviceBench, length: int) -> None:
        whole = _get_descriptor(bench, DEVICE, 0, 18).data
        part = _get_descriptor(bench, DEVICE, 0, length)
        assert part.status is TransferStatus.COMPLETED
        assert part.data == whole[:length]

    def test_windows_may_be_scattered(self, bench: DeviceBench) -> None:
        whole = _get_descriptor(bench, DEVICE, 0, 18).data
        setup = _descriptor_request(DEVICE, 0, 18)
        assert bench.control(setup, pieces=[1, 2, 3, 1, 4]).data == whole

    def test_configurations_are_consistent(self, bench: DeviceBench) -> None:
        for configuration, raw in _configurations(bench):
            assert configuration.pack() == raw, "lengths and counts in the configuration do not agree"
            for interface in configuration.interfaces:
                addresses = [endpoint.address for endpoint in interface.endpoints]
                assert len(addresses) == len(set(addresses))
                for endpoint in interface.endpoints:
                    _check_endpoint(bench.device.speed, endpoint)

    # -- control transfers -----------------------------------------------------------------------------------------

    def test_set_configuration(self, bench: DeviceBench) -> None:
        assert _get_configuration(bench) == 0
        value = _configure(bench).value
        assert _get_configuration(bench) == value
        assert _set_configuration(bench, 0).status is TransferStatus.COMPLETED
        assert _get_configuration(bench) == 0

    def test_an_unknown_request_is_stalled(self, bench: DeviceBench) -> None:
        assert bench.control(self.unknown_request).status is TransferStatus.STALL
        assert _get_descriptor(bench, DEVICE, 0, 18).status is TransferStatus.COMPLETED

    def test_control_transfers_end_in_order(self, bench: DeviceBench) -> None:
        ended: list[int] = []
        transfers: list[WatchedTransfer] = []
        for length in (18, 8, 18, 1, 9):
            setup = _descriptor_request(DEVICE, 0, length)
            transfer = WatchedTransfer(0, TransferType.CONTROL, length, setup=setup)
            transfer.on_complete = lambda each: ended.append(each.context)
            transfer.context = len(transfers)
            transfers.append(transfer)
            bench.transfers.append(transfer)
        for transfer in transfers:
            bench.device.submit(transfer)
        bench.wait(*transfers)
        assert ended == [0, 1, 2, 3, 4]

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
        ended = _get_descriptor(bench, DEVICE, 0, 18)
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

    # -- halts, reset, absent endpoints ----------------------------------------------------------------------------

    def test_an_endpoint_that_is_not_there_refuses(self, bench: DeviceBench) -> None:
        configuration = _configure(bench)
        taken = {each.address for interface in configuration.interfaces for each in interface.endpoints}
        absent = next(address for address in range(0x8F, 0x80, -1) if address not in taken)
        transfer = bench.submit(absent, TransferType.BULK, 64)
        bench.wait(transfer)
        assert transfer.status in _REFUSALS

    def test_a_halt_stalls_until_it_is_cleared(self, bench: DeviceBench) -> None:
        if not self.can_halt:
            pytest.skip("the device does not take SET_FEATURE(ENDPOINT_HALT)")
        endpoint = self._idle(bench, _configure(bench))
        assert _halt(bench, endpoint, requests.SET_FEATURE).status is TransferStatus.COMPLETED
        stalled = bench.submit(endpoint.address, endpoint.type, endpoint.packet_size)
        bench.wait(stalled)
        assert stalled.status is TransferStatus.STALL
        assert _halt(bench, endpoint, requests.CLEAR_FEATURE).status is TransferStatus.COMPLETED
        after = bench.submit(endpoint.address, endpoint.type, endpoint.packet_size)
        assert after.status is not TransferStatus.STALL

    def test_a_reset_leads_back_to_the_default_state(self, bench: DeviceBench) -> None:
        configuration = _configure(bench)
        endpoint = self._idle(bench, configuration)
        if self.can_halt:
            _halt(bench, endpoint, requests.SET_FEATURE)
        bench.reset()
        assert bench.events.disconnections == 0
        assert _get_configuration(bench) == 0
        assert _configure(bench).value == configuration.value
        after = bench.submit(endpoint.address, endpoint.type, endpoint.packet_size)
        assert after.status is not TransferStatus.STALL

    def test_a_reset_may_follow_a_reset(self, bench: DeviceBench) -> None:
        bench.reset()
        bench.reset()
        assert _get_descriptor(bench, DEVICE, 0, 18).status is TransferStatus.COMPLETED

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
            self._found = self._idle(bench, _configure(bench))
        return bench.submit(self._found.address, self._found.type, self._found.packet_size)


class BackendConformance:
    """The contract of `Backend`, tested. A subclass writes `make_backend`, and gives `address` and its `options`."""

    address: str
    options: Mapping[str, str] = MappingProxyType({})

    def make_backend(self) -> Backend:
        """The backend."""
        raise NotImplementedError

    def test_it_has_a_name_for_specifications(self) -> None:
        name = self.make_backend().name
        assert name
        assert all(letter.isalnum() or letter == "-" for letter in name)

    def test_it_lists_devices(self) -> None:
        backend = self.make_backend()
        for info in backend.list_devices():
            assert isinstance(info, DeviceInfo)
            assert info.backend == backend.name
            assert info.address

    def test_it_opens_a_device_anew_each_time(self) -> None:
        for _ in range(2):
            loop = StepLoop(virtual_time=False)
            device = self.make_backend().open(self.address, dict(self.options), loop)
            bench = DeviceBench(device, loop)
            assert _get_descriptor(bench, DEVICE, 0, 18).status is TransferStatus.COMPLETED
            bench.close()

    def test_an_unknown_option_is_named(self) -> None:
        loop = StepLoop()
        with pytest.raises(ConfigError, match="no-such-option"):
            self.make_backend().open(self.address, {**self.options, "no-such-option": "1"}, loop)
        loop.close()

    def test_an_unknown_address_is_refused(self) -> None:
        loop = StepLoop()
        with pytest.raises(UsbvfiodError):
            self.make_backend().open("no such device", {}, loop)
        loop.close()


# -- requests ------------------------------------------------------------------------------------------------------


def _descriptor_request(kind: int, index: int, length: int) -> SetupPacket:
    return SetupPacket(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, kind << 8 | index, 0, length)


def _get_descriptor(bench: DeviceBench, kind: int, index: int, length: int) -> WatchedTransfer:
    return bench.control(_descriptor_request(kind, index, length))


def _get_configuration(bench: DeviceBench) -> int:
    transfer = bench.control(SetupPacket(requests.DIRECTION_IN, requests.GET_CONFIGURATION, 0, 0, 1))
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 1)
    return transfer.data[0]


def _set_configuration(bench: DeviceBench, value: int) -> WatchedTransfer:
    return bench.control(SetupPacket(0, requests.SET_CONFIGURATION, value, 0, 0))


def _configurations(bench: DeviceBench) -> list[tuple[Configuration, bytes]]:
    count = DeviceDescriptor.unpack(_get_descriptor(bench, DEVICE, 0, 18).data).num_configurations
    found = []
    for index in range(count):
        head = _get_descriptor(bench, CONFIGURATION, index, 9).data
        assert len(head) == 9
        raw = _get_descriptor(bench, CONFIGURATION, index, int.from_bytes(head[2:4], "little")).data
        found.append((Configuration.unpack(raw), raw))
    return found


def _configure(bench: DeviceBench) -> Configuration:
    configuration, _ = _configurations(bench)[0]
    assert _set_configuration(bench, configuration.value).status is TransferStatus.COMPLETED
    return configuration


def _halt(bench: DeviceBench, endpoint: Endpoint, request: int) -> WatchedTransfer:
    setup = SetupPacket(requests.RECIPIENT_ENDPOINT, request, requests.FEATURE_ENDPOINT_HALT, endpoint.address, 0)
    return bench.control(setup)


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
