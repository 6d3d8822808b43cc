"""The conformance suites pass for devices that keep the contract, and fail for those that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from usbvfiod_core.testing.conformance import DeviceConformance, SourceSinkConformance
from usbvfiod_core.testing.conformance.source_sink import LOOPBACK, SOURCE_SINK, Setting
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.device import Device, Loop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType
from usbvfiod_core.virtual.endpoint import VirtualEndpoint
from usbvfiod_core.virtual.loopback import Loopback


class FakeConformance(DeviceConformance):
    speed = Speed.HIGH

    def make_device(self, loop: Loop) -> Device:
        return FakeDevice(self.speed)

    def unplug(self, device: Device) -> None:
        assert isinstance(device, FakeDevice)
        device.unplug()
        device.closed = True  # to all that comes later there is nobody


class TestLowSpeed(FakeConformance):
    speed = Speed.LOW


class TestFullSpeed(FakeConformance):
    speed = Speed.FULL


class TestHighSpeed(FakeConformance):
    pass


class TestSuperSpeed(FakeConformance):
    speed = Speed.SUPER


class CompletesTwice(FakeDevice):
    def cancel(self, transfer: Transfer) -> None:
        super().cancel(transfer)
        transfer.complete(TransferStatus.CANCELLED)


class ForgetsCancelled(FakeDevice):
    def cancel(self, transfer: Transfer) -> None:
        self.cancelled.append(transfer)


class SaysTooMuch(FakeDevice):
    def submit(self, transfer: Transfer) -> None:
        transfer.complete(TransferStatus.COMPLETED, transfer.length + 1)


class WritesIntoOut(FakeDevice):
    def submit(self, transfer: Transfer) -> None:
        transfer.windows[0][0] ^= 0xFF
        transfer.complete(TransferStatus.COMPLETED, transfer.length)


class KeepsConfiguration(FakeDevice):
    def reset(self, done: Callable[[], object]) -> None:
        done()


class ResetsTwice(FakeDevice):
    def reset(self, done: Callable[[], object]) -> None:
        done()
        done()


class KeepsOnClose(FakeDevice):
    def close(self) -> None:
        self.closed = True


class VanishesTwice(FakeDevice):
    def unplug(self) -> None:
        super().unplug()
        super().unplug()


class EndsTheOldest(FakeDevice):
    """Cancels whatever is in front."""

    def cancel(self, transfer: Transfer) -> None:
        super().cancel(self.held[transfer.endpoint][0])


class AnswersBackwards(Loopback):
    def process(self, endpoint: VirtualEndpoint) -> None:
        if len(endpoint.queue) >= 4:
            endpoint.queue.reverse()
            super().process(endpoint)


class MissesTheEnd(Loopback):
    """Forgets the last byte of what is spread over many windows."""

    def submit(self, transfer: Transfer) -> None:
        if len(transfer.windows) > 1 and not transfer.is_in:
            transfer.windows[-1] = transfer.windows[-1][:-1]
        super().submit(transfer)


class MovesLess(Loopback):
    def process(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue:
            transfer = endpoint.queue.popleft()
            transfer.complete(TransferStatus.COMPLETED, transfer.length - 1)


class StaysHalted(Loopback):
    def clear_halt(self, endpoint: VirtualEndpoint) -> None:
        pass


class SwallowsEmptyPackets(Loopback):
    def submit(self, transfer: Transfer) -> None:
        if transfer.length or transfer.setup is not None:
            super().submit(transfer)


class StopsAfterReset(Loopback):
    def reset(self, done: Callable[[], object]) -> None:
        self.stopped = True
        super().reset(done)

    def process(self, endpoint: VirtualEndpoint) -> None:
        if not getattr(self, "stopped", False):
            super().process(endpoint)


class HurriesPackets(Loopback):
    def submit(self, transfer: Transfer) -> None:
        if not transfer.packets:
            super().submit(transfer)
            return
        for packet in transfer.packets:
            packet.actual = packet.length
        transfer.complete(TransferStatus.COMPLETED, transfer.length)


def bench_of(device: Device) -> DeviceBench:
    return DeviceBench(device, StepLoop(), timeout=0.05)


def run(device_class: type[FakeDevice], test: str) -> None:
    """One test of the suite, and the check at its end."""
    suite = FakeConformance()
    bench = bench_of(device_class())
    getattr(suite, test)(bench)
    bench.close()


@pytest.mark.parametrize(
    ("device_class", "test", "complaint"),
    [
        (CompletesTwice, "test_cancelling_in_any_order", r"\[2, 2, 2, 2, 2\]"),
        (ForgetsCancelled, "test_cancelling_in_any_order", "not completed"),
        (KeepsConfiguration, "test_a_reset_leads_back_to_the_default_state", "== 0"),
        (ResetsTwice, "test_a_reset_may_follow_a_reset", "more than once"),
        (KeepsOnClose, "test_closing_gives_everything_back", "not completed"),
        (VanishesTwice, "test_a_device_that_vanishes_ends_its_transfers", "2 == 1"),
        (EndsTheOldest, "test_the_newest_may_be_cancelled_first", "not completed"),
    ],
)
def test_the_suite_finds_broken_devices(device_class: type[FakeDevice], test: str, complaint: str) -> None:
    with pytest.raises((AssertionError, TimeoutError), match=complaint):
        run(device_class, test)


@pytest.mark.parametrize(
    ("device_class", "test", "arguments"),
    [
        (AnswersBackwards, "test_transfers_of_an_endpoint_end_in_order", ()),
        (MissesTheEnd, "test_what_is_written_is_read", (1 << 16,)),
        (MovesLess, "test_the_source_gives_all_that_is_asked_for", (1 << 20,)),
        (StaysHalted, "test_data_goes_on_after_a_halt", (True,)),
        (StaysHalted, "test_wrong_data_halts_the_sink", ()),
        (SwallowsEmptyPackets, "test_a_zero_length_packet_is_sent", ()),
        (StopsAfterReset, "test_data_goes_on_after_a_reset", ()),
        (HurriesPackets, "test_isochronous_packets_keep_time", (True,)),
    ],
)
def test_the_suite_for_data_finds_broken_devices(
    device_class: type[Loopback], test: str, arguments: tuple[object, ...]
) -> None:
    """Each passes with a good device and fails with this one."""
    suite = SourceSinkConformance()
    for tried in (Loopback, device_class):
        loop = StepLoop()
        bench = DeviceBench(tried(loop, speed=Speed.HIGH), loop, timeout=0.2, submit_limit=2.0)
        value = LOOPBACK if "written_is_read" in test else SOURCE_SINK
        assert bench.control(SetupPacket(0, 9, value, 0, 0)).status is TransferStatus.COMPLETED
        endpoints = next(each for each in tried(loop).configurations if each.value == value).interfaces[0].endpoints
        setting = Setting(bench, tuple(bench.device.endpoints[each.address].descriptor for each in endpoints))  # type: ignore[attr-defined]
        if tried is Loopback:
            getattr(suite, test)(setting, *arguments)
            bench.close()
        else:
            with pytest.raises((AssertionError, TimeoutError)):
                getattr(suite, test)(setting, *arguments)


def test_the_bench_reports_a_count_that_cannot_be() -> None:
    bench = bench_of(SaysTooMuch())
    bench.submit(BULK_IN, TransferType.BULK, 64)
    with pytest.raises(AssertionError, match="65 of 64 bytes"):
        bench.close()


def test_the_bench_reports_a_write_into_out_data() -> None:
    bench = bench_of(WritesIntoOut())
    bench.submit(BULK_OUT, TransferType.BULK, b"abc")
    with pytest.raises(AssertionError, match="into the data of an OUT transfer"):
        bench.close()


def test_a_watched_transfer_sees_writes_outside_its_windows() -> None:
    transfer = WatchedTransfer(BULK_IN, TransferType.BULK, 10, pieces=[4])
    assert [len(window) for window in transfer.windows] == [4, 6]
    transfer.memory[0] ^= 1
    transfer.complete(TransferStatus.COMPLETED, 10)
    assert transfer.faults == ["wrote outside of the windows"]


def test_a_watched_transfer_gives_the_data() -> None:
    transfer = WatchedTransfer(BULK_IN, TransferType.BULK, 10, pieces=[4])
    transfer.complete(TransferStatus.COMPLETED, transfer.write(b"abcdefg"))
    assert transfer.data == b"abcdefg"
    assert not transfer.faults
