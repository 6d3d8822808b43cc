"""The conformance suites pass for devices that keep the contract, and fail for those that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from usbvfiod_core.testing.conformance import DeviceConformance
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.device import Device, Loop
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType


class FakeConformance(DeviceConformance):
    speed = Speed.HIGH

    def make_device(self, loop: Loop) -> Device:
        return FakeDevice(self.speed)


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


def bench_of(device: Device) -> DeviceBench:
    return DeviceBench(device, StepLoop(virtual_time=False), timeout=0.05)


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
    ],
)
def test_the_suite_finds_broken_devices(device_class: type[FakeDevice], test: str, complaint: str) -> None:
    with pytest.raises((AssertionError, TimeoutError), match=complaint):
        run(device_class, test)


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
