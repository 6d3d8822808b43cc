"""The scripted device, by itself."""

from __future__ import annotations

import pytest

from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, INTERRUPT_IN, Answer, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

BULK = TransferType.BULK
S = TransferStatus


@pytest.fixture
def fake() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def bench(fake: FakeDevice) -> DeviceBench:
    return DeviceBench(fake, StepLoop(), timeout=1)


@pytest.mark.parametrize(
    ("answer", "status", "data"),
    [
        (b"abc", S.COMPLETED, b"abc"),
        (b"", S.COMPLETED, b""),
        (S.STALL, S.STALL, b""),
        ((S.ERROR, b"ab"), S.ERROR, b"ab"),
        (b"too much for it", S.BABBLE, b"too much"),
    ],
)
@pytest.mark.parametrize("first", ["answer", "transfer"])
def test_answers_to_in_transfers(
    fake: FakeDevice, bench: DeviceBench, answer: Answer, status: TransferStatus, data: bytes, first: str
) -> None:
    if first == "answer":
        fake.answers(BULK_IN, answer)
    transfer = bench.submit(BULK_IN, BULK, 8)
    if first == "transfer":
        assert transfer.status is None
        fake.answers(BULK_IN, answer)
    assert (transfer.status, transfer.data) == (status, data)
    bench.close()


@pytest.mark.parametrize(
    ("answer", "status", "moved"), [(S.COMPLETED, S.COMPLETED, 5), (3, S.COMPLETED, 3), ((S.ERROR, 2), S.ERROR, 2)]
)
def test_answers_to_out_transfers(
    fake: FakeDevice, bench: DeviceBench, answer: Answer, status: TransferStatus, moved: int
) -> None:
    fake.answers(BULK_OUT, answer)
    transfer = bench.submit(BULK_OUT, BULK, b"hello")
    assert (transfer.status, transfer.actual) == (status, moved)
    assert fake.received[BULK_OUT] == [b"hello"[:moved]]
    bench.close()


def test_transfers_are_answered_in_order(fake: FakeDevice, bench: DeviceBench) -> None:
    transfers = [bench.submit(BULK_IN, BULK, 8) for _ in range(3)]
    fake.answers(BULK_IN, b"0")
    fake.answers(BULK_IN, b"1", b"2", b"3")
    assert [transfer.data for transfer in transfers] == [b"0", b"1", b"2"]
    assert bench.submit(BULK_IN, BULK, 8).data == b"3"
    assert fake.in_flight == 0
    bench.close()


def test_an_answer_may_be_decided_by_the_transfer(fake: FakeDevice, bench: DeviceBench) -> None:
    def decide(transfer: Transfer) -> bytes:
        return b"y" * transfer.length

    fake.answers(BULK_IN, decide)
    assert bench.submit(BULK_IN, BULK, 5).data == b"yyyyy"
    bench.close()


def test_a_stall_halts_until_it_is_cleared(fake: FakeDevice, bench: DeviceBench) -> None:
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is S.COMPLETED
    fake.answers(BULK_IN, S.STALL, b"later")
    assert bench.submit(BULK_IN, BULK, 8).status is S.STALL
    assert bench.submit(BULK_IN, BULK, 8).status is S.STALL
    assert bench.control(SetupPacket(0x02, 1, 0, BULK_IN, 0)).status is S.COMPLETED
    assert bench.submit(BULK_IN, BULK, 8).data == b"later"
    bench.close()


def test_requests_can_be_answered(fake: FakeDevice, bench: DeviceBench) -> None:
    fake.answers_request(0xC0, 1, b"vendor")
    fake.answers_request(0x80, 0, S.STALL)
    assert bench.control(SetupPacket(0xC0, 1, 0, 0, 64)).data == b"vendor"
    assert bench.control(SetupPacket(0xC0, 2, 0, 0, 64)).status is S.STALL
    assert bench.control(SetupPacket(0x80, 0, 0, 0, 2)).status is S.STALL
    bench.close()


def test_a_cancellation_that_takes_time(fake: FakeDevice, bench: DeviceBench) -> None:
    fake.cancels = False
    transfer = bench.submit(INTERRUPT_IN, TransferType.INTERRUPT, 8)
    bench.cancel(transfer)
    assert transfer.status is None
    assert fake.cancelled == [transfer]
    fake.finish(transfer, (S.CANCELLED, b"part"))
    assert transfer.data == b"part"
    bench.close()


def test_a_reset_that_takes_time(fake: FakeDevice) -> None:
    done: list[int] = []
    fake.holds_reset = True
    fake.reset(lambda: done.append(1))
    assert (done, fake.resets) == ([], 1)
    fake.finish_reset()
    assert done == [1]
    fake.finish_reset()
    assert done == [1]


def test_it_vanishes(fake: FakeDevice, bench: DeviceBench) -> None:
    transfer = bench.submit(BULK_IN, BULK, 8)
    fake.unplug()
    assert bench.events.disconnections == 1
    assert transfer.status is S.DISCONNECTED
    fake.wake()
    assert bench.events.wakeups == 1
    bench.close()
    assert fake.closed


@pytest.mark.parametrize("speed", list(Speed)[:4])
def test_low_speed_has_no_bulk_endpoints(speed: Speed) -> None:
    addresses = {endpoint.address for endpoint in FakeDevice(speed).configurations[0].interfaces[0].endpoints}
    assert (BULK_IN in addresses) == (speed is not Speed.LOW)
    assert INTERRUPT_IN in addresses
