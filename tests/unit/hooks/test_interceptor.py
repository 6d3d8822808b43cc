"""Interceptors: what they can do to a transfer, what their faults cost, and that what they leave alone is free."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from tests.unit.hooks.conftest import Bulk, Stack
from usbvfiod_core import (
    InterceptedTransfer,
    Interceptor,
    IsochronousPacket,
    SetupPacket,
    Transfer,
    TransferStatus,
    TransferType,
    WrappedDevice,
)
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.hooks.wrapper import _METHODS
from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.loop import StepLoop

BULK, INTERRUPT, CONTROL = TransferType.BULK, TransferType.INTERRUPT, TransferType.CONTROL


# -- who is asked ---------------------------------------------------------------------------------------------------


def test_an_endpoint_that_nobody_intercepts_has_no_call_in_between(fake: FakeDevice, stack: Stack) -> None:
    class Keys(Interceptor):
        def interrupt_completed(self, transfer: InterceptedTransfer) -> None: ...

    device = stack(Keys(), Keys()).device
    assert device.route(0x81, BULK) == fake.submit
    assert device.route(0, CONTROL) == fake.submit
    assert device.route(0x83, INTERRUPT) != fake.submit


def test_an_interceptor_chooses_its_endpoints(fake: FakeDevice, stack: Stack) -> None:
    class One(Bulk):
        def intercepts(self, endpoint: int, type: TransferType) -> bool:
            return endpoint == 0x81

    one = One()
    bench = stack(one)
    assert bench.device.route(0x02, BULK) == fake.submit
    fake.auto_out.add(0x02)
    bench.submit(0x02, BULK, b"unseen")
    fake.answers(0x81, b"seen")
    assert bench.submit(0x81, BULK, 8).data == b"seen"
    assert [transfer.endpoint for transfer in one.seen] == [0x81]


def test_a_base_class_alone_intercepts_nothing(fake: FakeDevice, stack: Stack) -> None:
    device = stack(Interceptor()).device
    for endpoint, type in ((0, CONTROL), (0x81, BULK), (0x83, INTERRUPT), (0x84, TransferType.ISOCHRONOUS)):
        assert device.route(endpoint, type) == fake.submit


def test_a_wrapper_passes_on_every_method_of_a_device() -> None:
    inner = FakeDevice(max_streams=16)
    device = WrappedDevice(inner)
    assert device.max_streams == 16
    assert len(_METHODS) >= 6
    for name in _METHODS:
        assert getattr(device, name) == getattr(inner, name)


def test_a_wrapper_that_submits_sees_every_endpoint() -> None:
    class Counting(WrappedDevice):
        def submit(self, transfer: Transfer) -> None:
            self.device.submit(transfer)

    device = Counting(FakeDevice())
    assert device.route(0x81, BULK) == device.submit


def test_a_wrapper_that_cancels_cancels_what_is_taken_back() -> None:
    class Counting(WrappedDevice):
        def cancel(self, transfer: Transfer) -> None:
            seen.append(transfer)
            self.device.cancel(transfer)

    seen: list[Transfer] = []
    inner = FakeDevice()
    inner.keeps_requests = True
    plain, counting = WrappedDevice(inner), Counting(inner)
    assert (plain.keeps_requests, counting.keeps_requests) == (True, False)
    transfer = WatchedTransfer(0x81, BULK, 8)
    counting.take_back(transfer)
    assert (seen, inner.taken_back) == ([transfer], [])
    plain.take_back(transfer)
    assert inner.taken_back == [transfer]


def test_what_nobody_intercepts_is_taken_back_by_the_device(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk())
    intercepted, other = bench.submit(0x81, BULK, 8), bench.submit(0x83, INTERRUPT, 8)
    for transfer in (intercepted, other):
        bench.device.take_back(transfer)
    assert [transfer.endpoint for transfer in fake.taken_back] == [0x83]
    assert intercepted.status is other.status is TransferStatus.CANCELLED


def test_the_order_of_interceptors(fake: FakeDevice, stack: Stack) -> None:
    calls: list[str] = []

    def named(name: str) -> Bulk:
        return Bulk(lambda transfer: calls.append(f"{name} down"), lambda transfer: calls.append(f"{name} up"))

    bench = stack(named("first"), named("second"))
    fake.answers(0x81, b"x")
    bench.submit(0x81, BULK, 1)
    assert calls == ["second down", "first down", "first up", "second up"]


# -- observe and change ---------------------------------------------------------------------------------------------


def test_observing_copies_nothing(fake: FakeDevice, stack: Stack) -> None:
    bulk = Bulk()
    bench = stack(bulk)
    fake.answers(0x81, b"hello")
    transfer = bench.submit(0x81, BULK, 64, pieces=[3])
    assert transfer.data == b"hello"
    assert fake.submitted[-1].windows is transfer.windows
    assert (bulk.returned[0].actual, bulk.returned[0].status) == (5, TransferStatus.COMPLETED)
    assert bulk.returned[0].read() == b"hello"


def test_what_goes_up_is_changed(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(up=lambda transfer: transfer.replace(transfer.read().upper() + b"!")))
    fake.answers(0x81, b"hello")
    assert bench.submit(0x81, BULK, 64, pieces=[2]).data == b"HELLO!"


def test_what_goes_down_is_changed_and_the_guest_is_not_told(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(lambda transfer: transfer.replace(b"<" + transfer.read() + b">")))
    fake.auto_out.add(0x02)
    transfer = bench.submit(0x02, BULK, b"data")
    assert fake.received[0x02] == [b"<data>"]
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 4)


@pytest.mark.parametrize("taken", [0, 3, 5])
def test_of_replaced_data_less_than_all_is_taken(fake: FakeDevice, stack: Stack, taken: int) -> None:
    bench = stack(Bulk(lambda transfer: transfer.replace(b"longer")))
    fake.answers(0x02, taken)
    transfer = bench.submit(0x02, BULK, b"data")
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, min(taken, 3))


def test_a_private_copy_of_what_is_sent(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(lambda transfer: transfer.make_private()))
    transfer = bench.submit(0x02, BULK, b"checked", pieces=[3])
    transfer.windows[0][:3] = b"EVI"  # the guest changes its mind; the bench must not see that as a fault
    transfer._given = bytes(transfer.memory)
    fake.answers(0x02, 7)
    assert fake.received[0x02] == [b"checked"]
    assert transfer.status is TransferStatus.COMPLETED


def test_a_private_copy_of_what_is_received(fake: FakeDevice, stack: Stack) -> None:
    seen = []

    def up(transfer: InterceptedTransfer) -> None:
        seen.append(bytes(guest.windows[0][:6]))
        transfer.replace(b"public")

    bench = stack(Bulk(lambda transfer: transfer.make_private(), up))
    guest = bench.submit(0x81, BULK, 8)
    before = bytes(guest.windows[0][:6])
    fake.answers(0x81, b"secret")
    assert guest.data == b"public"
    assert seen == [before]


def test_a_setup_packet_is_changed(fake: FakeDevice, stack: Stack) -> None:
    class Setup(Interceptor):
        def control(self, transfer: InterceptedTransfer) -> None:
            assert transfer.setup is not None
            transfer.setup = SetupPacket(0xC0, 7, 1, 2, transfer.setup.length)

    fake.answers_request(0xC0, 7, b"seven")
    assert stack(Setup()).control(SetupPacket(0xC0, 1, 0, 0, 8)).data == b"seven"


@pytest.mark.parametrize("setup", [SetupPacket(0x40, 7, 1, 2, 8), SetupPacket(0xC0, 7, 1, 2, 9), None])
@pytest.mark.faults(r"plugin plug0: Setup\.control failed, the transfer fails: ValueError")
def test_a_setup_packet_keeps_its_data_stage(
    fake: FakeDevice, stack: Stack, setup: SetupPacket | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Setup(Interceptor):
        def control(self, transfer: InterceptedTransfer) -> None:
            transfer.setup = setup

    assert stack(Setup()).control(SetupPacket(0xC0, 1, 0, 0, 8)).status is TransferStatus.ERROR
    assert fake.submitted == []
    assert "plugin plug0: Setup.control failed" in caplog.text


def test_streams_and_frames_are_passed_on(fake: FakeDevice, stack: Stack) -> None:
    class Both(Bulk):
        def isochronous_completed(self, transfer: InterceptedTransfer) -> None:
            transfer.packets[0].status = TransferStatus.MISSED

    both = Both()
    device = stack(both).device
    streamed = Transfer(0x81, BULK, [], 0, lambda transfer: None, stream_id=3)
    device.submit(streamed)
    assert (fake.submitted[-1].stream_id, both.seen[0].stream_id) == (3, 3)
    device.cancel(streamed)
    timed = WatchedTransfer(0x83, TransferType.ISOCHRONOUS, 8)
    timed.packets, timed.frame, timed.no_interrupt = [IsochronousPacket(0, 8)], 77, True
    device.submit(timed)
    below = fake.submitted[-1]
    assert (below.frame, below.packets, below.no_interrupt) == (77, timed.packets, True)
    fake.finish(fake.submitted[-1], b"12345678")
    assert (timed.status, timed.packets[0].status) == (TransferStatus.COMPLETED, TransferStatus.MISSED)


# -- answer and refuse ----------------------------------------------------------------------------------------------


def test_answering_without_the_device(fake: FakeDevice, stack: Stack) -> None:
    bulk = Bulk(lambda transfer: transfer.answer(b"mine" if transfer.is_in else b""))
    bench = stack(bulk)
    assert bench.submit(0x81, BULK, 8).data == b"mine"
    sent = bench.submit(0x02, BULK, b"gone")
    assert (sent.status, sent.actual) == (TransferStatus.COMPLETED, 4)
    assert (fake.submitted, bulk.returned) == ([], [])


def test_answering_an_isochronous_transfer_fills_its_packets(stack: Stack) -> None:
    class Sound(Interceptor):
        def isochronous(self, transfer: InterceptedTransfer) -> None:
            transfer.answer(b"1234567")

    transfer = WatchedTransfer(0x83, TransferType.ISOCHRONOUS, 12)
    transfer.packets = [IsochronousPacket(offset, 4) for offset in (0, 4, 8)]
    stack(Sound()).device.submit(transfer)
    assert [packet.actual for packet in transfer.packets] == [4, 3, 0]
    assert transfer.status is TransferStatus.COMPLETED


@pytest.mark.parametrize("status", [TransferStatus.STALL, TransferStatus.ERROR, TransferStatus.BABBLE])
def test_refusing(fake: FakeDevice, stack: Stack, status: TransferStatus) -> None:
    bench = stack(Bulk(lambda transfer: transfer.refuse(status)))
    assert bench.submit(0x81, BULK, 8).status is status
    assert fake.submitted == []


def test_refusing_on_the_way_up(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(up=lambda transfer: transfer.refuse()))
    fake.answers(0x81, b"data")
    transfer = bench.submit(0x81, BULK, 8)
    assert (transfer.status, transfer.actual) == (TransferStatus.STALL, 0)


def test_a_failure_is_mended_on_the_way_up(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(up=lambda transfer: transfer.answer(b"all is well")))
    fake.answers(0x81, TransferStatus.STALL)
    assert bench.submit(0x81, BULK, 16).data == b"all is well"


# -- hold, delay, split ---------------------------------------------------------------------------------------------


def test_what_is_held_is_not_overtaken(fake: FakeDevice, stack: Stack) -> None:
    bulk = Bulk(lambda transfer: transfer.hold())
    bench = stack(bulk)
    transfers = [bench.submit(0x02, BULK, bytes([number])) for number in range(4)]
    assert (len(bulk.seen), fake.submitted) == (1, [])
    bulk.down = lambda transfer: transfer.hold() if transfer.read() == b"\2" else None
    fake.auto_out.add(0x02)
    bulk.seen[0].pass_on()
    assert fake.received[0x02] == [b"\0", b"\1"]
    bulk.seen[2].answer()
    assert fake.received[0x02] == [b"\0", b"\1", b"\3"]
    assert all(transfer.status is TransferStatus.COMPLETED for transfer in transfers)


def test_another_stream_is_not_held_up(fake: FakeDevice, stack: Stack) -> None:
    bulk = Bulk(lambda transfer: transfer.hold() if transfer.stream_id == 1 else None)
    device = stack(bulk).device
    for stream_id in (1, 1, 2):
        device.submit(Transfer(0x81, BULK, [], 0, lambda transfer: None, stream_id=stream_id))
    assert [transfer.stream_id for transfer in fake.submitted] == [2]


def test_a_delay_on_both_ways(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(lambda transfer: transfer.delay(1), lambda transfer: transfer.delay(2)))
    fake.answers(0x81, b"late")
    transfer = bench.submit(0x81, BULK, 8)
    bench.loop.advance(0.9)
    assert fake.submitted == []
    bench.loop.advance(0.2)
    assert (len(fake.submitted), transfer.status) == (1, None)
    bench.loop.advance(1.7)
    assert transfer.status is None
    bench.loop.advance(0.3)
    assert transfer.data == b"late"


def test_pieces(fake: FakeDevice, stack: Stack) -> None:
    bulk = Bulk(lambda transfer: transfer.split(4))
    bench = stack(bulk)
    fake.auto_out.add(0x02)
    sent = bench.submit(0x02, BULK, b"0123456789", pieces=[3, 5])
    assert fake.received[0x02] == [b"0123", b"4567", b"89"]
    assert (sent.status, sent.actual, len(bulk.returned)) == (TransferStatus.COMPLETED, 10, 1)
    fake.answers(0x81, b"abcd", b"ef")
    received = bench.submit(0x81, BULK, 12)
    assert (received.data, received.status) == (b"abcdef", TransferStatus.COMPLETED)
    fake.answers(0x81, b"abcd", TransferStatus.STALL)
    failed = bench.submit(0x81, BULK, 12)
    assert (failed.data, failed.status) == (b"abcd", TransferStatus.STALL)


def test_pieces_are_not_overtaken_and_are_cancelled(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(lambda transfer: transfer.split(4)))
    first, second = bench.submit(0x81, BULK, 12), bench.submit(0x81, BULK, 2)
    assert [transfer.length for transfer in fake.submitted] == [4]
    fake.answers(0x81, b"abcd")
    assert [transfer.length for transfer in fake.submitted] == [4, 4]
    bench.cancel(first)
    assert (first.status, first.actual) == (TransferStatus.CANCELLED, 4)
    fake.answers(0x81, b"zz")
    assert second.data == b"zz"


def test_many_pieces_are_no_recursion(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(lambda transfer: transfer.split(1)))
    fake.auto_out.add(0x02)
    assert bench.submit(0x02, BULK, bytes(5000)).actual == 5000


@pytest.mark.parametrize(
    "verb",
    [
        lambda transfer: transfer.split(0),
        lambda transfer: transfer.answer(bytes(99)),
        lambda transfer: transfer.replace(b"") if transfer.is_in else transfer.answer(b"x"),
        lambda transfer: transfer.refuse("no"),
        lambda transfer: "nonsense",
        lambda transfer: 1 / 0,
        lambda transfer: transfer.no_such_thing(),
    ],
)
@pytest.mark.parametrize("data", [8, b"12345678"])
@pytest.mark.faults(r"plugin plug0: Bulk\.bulk failed, the transfer fails")
def test_what_is_nonsense_fails_the_transfer(
    verb: Callable[[InterceptedTransfer], object],
    data: int | bytes,
    fake: FakeDevice,
    stack: Stack,
    caplog: pytest.LogCaptureFixture,
) -> None:
    transfer = stack(Bulk(verb)).submit(0x81 if isinstance(data, int) else 0x02, BULK, data)
    assert (transfer.status, transfer.actual) == (TransferStatus.ERROR, 0)
    assert fake.submitted == []
    assert "plugin plug0: Bulk.bulk failed, the transfer fails: " in caplog.text


@pytest.mark.parametrize(
    "verb",
    [
        lambda transfer: 1 / 0,
        lambda transfer: transfer.split(4),
        lambda transfer: transfer.make_private(),
        lambda transfer: transfer.replace(bytes(9)),
        lambda transfer: setattr(transfer, "actual", 99),
        lambda transfer: setattr(transfer, "actual", None),
        lambda transfer: setattr(transfer, "status", "stall"),
        lambda transfer: setattr(transfer, "status", None),
    ],
)
@pytest.mark.faults(r"plugin plug0: Bulk\.(bulk|bulk_completed) failed, the transfer fails")
def test_what_is_nonsense_on_the_way_up(
    verb: Callable[[InterceptedTransfer], object], fake: FakeDevice, stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    fake.answers(0x81, b"data")
    transfer = stack(Bulk(up=verb)).submit(0x81, BULK, 8)
    assert (transfer.status, transfer.actual) == (TransferStatus.ERROR, 0)
    assert "plugin plug0: " in caplog.text


@pytest.mark.faults(r"plugin plug0: Bulk\.bulk failed, the transfer fails: ZeroDivisionError")
def test_a_fault_is_said_less_and_less_often(fake: FakeDevice, stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    bench = stack(Bulk(lambda transfer: 1 / 0))
    for _ in range(100):
        bench.submit(0x81, BULK, 8)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 7
    assert errors[-1].endswith("division by zero (64 times)")


def test_a_method_that_blocks_is_named(fake: FakeDevice, caplog: pytest.LogCaptureFixture) -> None:
    loop = StepLoop()
    device = intercept(fake, Bulk(lambda transfer: time.sleep(0.12)), "sleepy", loop)
    device.submit(Transfer(0x81, BULK, [], 0, lambda transfer: None))
    assert "plugin sleepy: Bulk.bulk took " in caplog.text
    loop.close()
