"""What interceptors live through: attach, own requests, resets, cancellation, the end; and faults in that."""

from __future__ import annotations

import pytest

from tests.unit.hooks.conftest import Bulk, Stack
from usbvfiod_core import (
    Interceptor,
    PluginError,
    SetupPacket,
    Transfer,
    TransferStatus,
    TransferType,
)
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.loop import StepLoop

BULK = TransferType.BULK


class Diary(Interceptor):
    """Asks the device something of its own and writes down what happens."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.replies: list[Transfer] = []

    def attached(self) -> None:
        self.diary.append("attached")

    def was_reset(self) -> None:
        self.diary.append("reset")

    def closed(self) -> None:
        self.diary.append("closed")

    def ask(self, request: int) -> None:
        self.control_request(SetupPacket(0xC0, request, 0, 0, 8), self.replies.append)


def test_its_own_requests(fake: FakeDevice, stack: Stack) -> None:
    diary = Diary()
    bench = stack(diary)
    fake.answers_request(0xC0, 1, b"reply")
    diary.ask(1)
    assert [(reply.status, reply.read()[: reply.actual]) for reply in diary.replies] == [
        (TransferStatus.COMPLETED, b"reply")
    ]
    fake.auto_out.add(0x02)
    diary.request(0x02, BULK, b"out", diary.replies.append)
    assert fake.received[0x02] == [b"out"]
    bench.reset()
    bench.device.close()
    assert diary.diary == ["attached", "reset", "closed"]


def test_a_reset_takes_its_own_requests_back_first(fake: FakeDevice, stack: Stack) -> None:
    diary = Diary()
    bench = stack(diary)
    fake.answers_request(0xC0, 1, lambda transfer: None)
    diary.ask(1)
    fake.cancels = False
    done: list[int] = []
    bench.device.reset(lambda: done.append(1))
    assert (fake.resets, len(fake.cancelled), done) == (0, 1, [])
    diary.ask(1)  # comes too late
    bench.loop.run_ready()
    assert [reply.status for reply in diary.replies] == [TransferStatus.CANCELLED]
    fake.finish(fake.cancelled[0], TransferStatus.CANCELLED)
    assert (fake.resets, len(diary.replies), done) == (1, 2, [1])


def test_a_reset_does_not_wait_for_ever(fake: FakeDevice, stack: Stack) -> None:
    diary = Diary()
    bench = stack(diary)
    fake.answers_request(0xC0, 1, lambda transfer: None)
    diary.ask(1)
    fake.cancels = False
    done: list[int] = []
    bench.device.reset(lambda: done.append(1))
    bench.loop.advance(3)
    assert (fake.resets, done) == (1, [1])
    fake.cancels = True


def test_nothing_is_heard_of_after_the_end(fake: FakeDevice, stack: Stack) -> None:
    diary = Diary()
    bench = stack(diary)
    fake.answers_request(0xC0, 1, lambda transfer: None)
    diary.ask(1)
    diary.call_later(1, diary.diary.append, "too late")
    bench.device.close()
    diary.ask(1)
    bench.loop.advance(2)
    assert (diary.diary, diary.replies, fake.closed) == (["attached", "closed"], [], True)


def test_cancelling_in_every_stage(fake: FakeDevice, stack: Stack) -> None:
    bulk = Bulk(lambda transfer: transfer.hold())
    bench = stack(bulk)
    held, queued = bench.submit(0x81, BULK, 8), bench.submit(0x81, BULK, 8)
    bench.cancel(queued)
    bench.cancel(held)
    assert [each.status for each in (held, queued)] == [TransferStatus.CANCELLED] * 2
    bulk.seen[0].pass_on()  # too late, and nothing happens
    bulk.seen[0].answer(b"x")
    assert fake.submitted == []
    bulk.down = lambda transfer: None
    bulk.up = lambda transfer: transfer.hold()
    passed, arrived = bench.submit(0x81, BULK, 8), bench.submit(0x02, BULK, b"x")
    bench.cancel(passed)
    assert fake.cancelled[0].status is TransferStatus.CANCELLED
    bulk.returned[0].pass_on()
    assert passed.status is TransferStatus.CANCELLED
    fake.answers(0x02, 1)
    bench.cancel(arrived)
    assert arrived.status is TransferStatus.COMPLETED


def test_closing_ends_what_is_held(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Bulk(lambda transfer: transfer.hold()))
    transfers = [bench.submit(0x81, BULK, 8) for _ in range(3)]
    bench.device.close()
    assert [transfer.status for transfer in transfers] == [TransferStatus.DISCONNECTED] * 3


def test_an_interceptor_that_cannot_attach_fails_the_attachment(fake: FakeDevice) -> None:
    class Refusing(Interceptor):
        def attached(self) -> None:
            raise RuntimeError("not here")

    loop = StepLoop()
    with pytest.raises(PluginError, match=r"plugin plug: Refusing\.attached failed: RuntimeError: not here"):
        DeviceBench(intercept(fake, Refusing(), "plug", loop), loop)
    loop.close()


def test_a_device_is_pulled_out_by_an_interceptor(stack: Stack) -> None:
    diary = Diary()
    bench = stack(diary)
    diary.unplug()
    assert bench.events.disconnections == 1


@pytest.mark.parametrize("method", ["was_reset", "closed"])
@pytest.mark.faults(r"plugin plug0: Diary\.fails failed, which changes nothing: RuntimeError: no")
def test_faults_in_its_life_change_nothing(
    method: str, fake: FakeDevice, stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError("no")

    diary = Diary()
    setattr(diary, method, fails)
    bench = stack(diary)
    bench.reset()
    bench.device.close()
    assert (fake.resets, fake.closed) == (1, True)
    assert "plugin plug0: Diary.fails failed, which changes nothing: RuntimeError: no" in caplog.text
