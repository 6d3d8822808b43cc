"""The base of virtual devices: queues, halts, cancellation, nested submits; and the example in its documentation."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import usbvfiod_core
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import descriptors
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint, interrupt_endpoint
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType
from usbvfiod_core.virtual import device as device_module
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint


class Mailbox(VirtualDevice):
    """Gives what is put into it, one message a transfer; refuses nothing."""

    def __init__(self) -> None:
        super().__init__(Speed.HIGH)
        self.messages: list[bytes] = []
        self.depth = self.deepest = 0
        self.closings = 0
        self.restarts: list[list[int]] = []

    def describe(self, speed: Speed) -> list[Configuration]:
        first = Interface(0, 0xFF, endpoints=(bulk_endpoint(0x81, speed), bulk_endpoint(0x01, speed)))
        second = Interface(1, 0xFF)
        third = Interface(1, 0xFF, endpoints=(bulk_endpoint(0x82, speed),), alternate=1)
        return [Configuration((first, second, third))]

    def process(self, endpoint: VirtualEndpoint) -> None:
        self.depth += 1
        self.deepest = max(self.depth, self.deepest)
        if endpoint.address & 0x80:
            while endpoint.queue and self.messages:
                transfer = endpoint.queue.popleft()
                transfer.complete(TransferStatus.COMPLETED, transfer.write(self.messages.pop(0)))
        self.depth -= 1

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self.restarts.append([endpoint.address for endpoint in endpoints])

    def closed(self) -> None:
        self.closings += 1

    def post(self, *messages: bytes) -> None:
        self.messages += messages
        if 0x81 in self.endpoints:
            self.serve(self.endpoints[0x81])


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def bench(mailbox: Mailbox) -> Iterator[DeviceBench]:
    bench = DeviceBench(mailbox, StepLoop(), submit_limit=2.0)
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
    yield bench
    bench.close()


def read(bench: DeviceBench, address: int = 0x81) -> WatchedTransfer:
    return bench.submit(address, TransferType.BULK, 64)


def halt(bench: DeviceBench, address: int, request: int = 3) -> None:
    assert bench.control(SetupPacket(2, request, 0, address, 0)).status is TransferStatus.COMPLETED


def test_transfers_wait_and_end_in_order(mailbox: Mailbox, bench: DeviceBench) -> None:
    transfers = [read(bench) for _ in range(3)]
    assert [each.status for each in transfers] == [None] * 3
    mailbox.post(b"one", b"two")
    assert [each.data for each in transfers] == [b"one", b"two", b""]
    assert transfers[2].status is None
    mailbox.post(b"three")
    assert transfers[2].data == b"three"


def test_a_message_waits_for_a_transfer(mailbox: Mailbox, bench: DeviceBench) -> None:
    mailbox.post(b"early")
    assert read(bench).data == b"early"


def test_halting_stalls_what_waits_and_what_comes(mailbox: Mailbox, bench: DeviceBench) -> None:
    waiting = [read(bench), read(bench)]
    halt(bench, 0x81)
    assert [each.status for each in waiting] == [TransferStatus.STALL] * 2
    mailbox.post(b"kept")
    assert [read(bench).status for _ in range(3)] == [TransferStatus.STALL] * 3
    assert bench.submit(0x01, TransferType.BULK, b"x").status is None  # the other endpoint goes on
    halt(bench, 0x81, request=1)
    assert read(bench).data == b"kept"


def test_a_transfer_submitted_while_an_endpoint_halts(mailbox: Mailbox, bench: DeviceBench) -> None:
    first = read(bench)
    later: list[WatchedTransfer] = []
    first.on_complete = lambda _: later.append(read(bench))
    halt(bench, 0x81)
    assert [each.status for each in later] == [TransferStatus.STALL]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_cancelling_one_of_several(mailbox: Mailbox, bench: DeviceBench, index: int) -> None:
    transfers = [read(bench) for _ in range(3)]
    bench.cancel(transfers[index])
    assert [each.status for each in transfers].count(None) == 2
    assert transfers[index].status is TransferStatus.CANCELLED
    mailbox.post(b"one", b"two")
    rest = [each for each in transfers if each is not transfers[index]]
    assert [each.data for each in rest] == [b"one", b"two"]


def test_cancelling_what_has_ended_or_was_never_submitted(mailbox: Mailbox, bench: DeviceBench) -> None:
    mailbox.post(b"one")
    transfer = read(bench)
    bench.cancel(transfer)
    assert (transfer.status, transfer.completions) == (TransferStatus.COMPLETED, 1)
    stranger = WatchedTransfer(0x8F, TransferType.BULK, 8)
    mailbox.cancel(stranger)
    assert stranger.completions == 0


def test_processing_is_never_nested(mailbox: Mailbox, bench: DeviceBench) -> None:
    """A driver that submits the next transfer whenever one ends does not fill the stack."""
    mailbox.post(*[bytes((number,)) for number in range(200)])
    ended: list[bytes] = []

    def again(transfer: Transfer) -> None:
        ended.append(transfer.read()[: transfer.actual])
        if len(ended) < 200:
            submit()

    def submit() -> None:
        mailbox.submit(Transfer(0x81, TransferType.BULK, [memoryview(bytearray(8))], 8, again))

    submit()
    assert ended == [bytes((number,)) for number in range(200)]
    assert mailbox.deepest == 1


def test_a_device_that_raises_works_on(mailbox: Mailbox, bench: DeviceBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(endpoint: VirtualEndpoint) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(mailbox, "process", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        read(bench)
    monkeypatch.undo()
    mailbox.post(b"one", b"two")
    assert read(bench).data == b"two"


def test_endpoints_come_and_go_with_alternate_settings(mailbox: Mailbox, bench: DeviceBench) -> None:
    assert read(bench, 0x82).status is TransferStatus.ERROR
    kept = read(bench)
    assert bench.control(SetupPacket(1, 11, 1, 1, 0)).status is TransferStatus.COMPLETED
    second = read(bench, 0x82)
    assert second.status is None
    assert bench.control(SetupPacket(1, 11, 0, 1, 0)).status is TransferStatus.COMPLETED
    assert second.status is TransferStatus.ERROR
    assert kept.status is None  # of the other interface
    assert mailbox.restarts == [[0x81, 0x01], [0x82], []]


def test_before_it_is_configured_there_is_endpoint_0_only(mailbox: Mailbox) -> None:
    bench = DeviceBench(mailbox, StepLoop(), submit_limit=2.0)
    assert read(bench).status is TransferStatus.ERROR
    bench.close()


def test_reset(mailbox: Mailbox, bench: DeviceBench) -> None:
    halt(bench, 0x81)
    bench.reset()
    assert mailbox.restarts[-1] == []
    assert read(bench).status is TransferStatus.ERROR
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
    assert read(bench).status is None


def test_close_ends_everything_once(mailbox: Mailbox, bench: DeviceBench) -> None:
    waiting = read(bench)
    mailbox.close()
    mailbox.close()
    assert waiting.status is TransferStatus.DISCONNECTED
    assert read(bench).status is TransferStatus.DISCONNECTED
    assert bench.control(SetupPacket(0x80, 6, 0x0100, 0, 18)).status is TransferStatus.DISCONNECTED
    assert mailbox.closings == 1


# -- control transfers -------------------------------------------------------------------------------------------------


class Echo(Mailbox):
    """Answers vendor requests."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[SetupPacket, bytes]] = []

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        self.seen.append((setup, data))
        return b"0123456789" if setup.is_in else b"" if setup.request == 1 else None


@pytest.mark.parametrize(("asked", "room", "moved"), [(4, 4, 4), (10, 10, 10), (64, 64, 10), (4, 64, 4)])
def test_an_answer_is_cut_to_what_was_asked_for(asked: int, room: int, moved: int) -> None:
    """wLength and the data stage should agree; less room than the request says is the business of `test_data_stage`."""
    bench = DeviceBench(Echo(), StepLoop(), submit_limit=2.0)
    transfer = bench.submit(0, TransferType.CONTROL, room, setup=SetupPacket(0xC0, 1, 0, 0, asked))
    assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, b"0123456789"[:moved])
    bench.close()


def test_what_the_driver_sends(bench: DeviceBench) -> None:
    echo = Echo()
    bench = DeviceBench(echo, StepLoop(), submit_limit=2.0)
    setup = SetupPacket(0x40, 1, 0, 0, 3)
    transfer = bench.submit(0, TransferType.CONTROL, b"abc", setup=setup, pieces=[1, 1])
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 3)
    assert echo.seen == [(setup, b"abc")]
    refused = bench.submit(0, TransferType.CONTROL, b"abc", setup=SetupPacket(0x40, 2, 0, 0, 3))
    assert refused.status is TransferStatus.STALL
    bench.close()


def test_standard_requests_a_device_does_not_know_reach_the_subclass() -> None:
    echo = Echo()
    bench = DeviceBench(echo, StepLoop(), submit_limit=2.0)
    setup = SetupPacket(0x81, 6, 0x2200, 0, 64)
    assert bench.control(setup).data == b"0123456789"
    assert echo.seen == [(setup, b"")]
    bench.close()


# -- identity ----------------------------------------------------------------------------------------------------------


def test_strings_are_numbered_once() -> None:
    mailbox = Mailbox()
    numbers = [mailbox.string(text) for text in ("usbvfiod", "new", "new", "")]
    assert numbers == [1, 3, 3, 0]
    assert mailbox.device_descriptor.serial_number == 0


def test_low_speed() -> None:
    class Low(VirtualDevice):
        def describe(self, speed: Speed) -> list[Configuration]:
            endpoint = interrupt_endpoint(0x81, speed, packet_size=8, period=10)
            return [Configuration((Interface(0, 3, endpoints=(endpoint,)),))]

    assert Low(Speed.LOW).device_descriptor.max_packet_size_0 == 8


def test_the_example_in_the_documentation() -> None:
    documentation = inspect.getdoc(device_module)
    assert documentation is not None
    begin = documentation.index("    class Counter")
    source = textwrap.dedent(documentation[begin : documentation.index("Enumeration, halts")])
    assert source.count("\n") <= 30
    names: dict[str, Any] = {**vars(usbvfiod_core), **vars(descriptors), **vars(device_module)}
    exec(source, names)
    make: Callable[[Speed], VirtualDevice] = names["Counter"]
    for speed in (Speed.FULL, Speed.HIGH, Speed.SUPER):
        bench = DeviceBench(make(speed), StepLoop(), submit_limit=2.0)
        bench.control(SetupPacket(0, 9, 1, 0, 0))
        assert bench.control(SetupPacket(0x40, 1, 41, 0, 0)).status is TransferStatus.COMPLETED
        transfer = bench.submit(0x81, TransferType.INTERRUPT, 8)
        assert transfer.data == (42).to_bytes(8, "little")
        assert bench.control(SetupPacket(0x40, 2, 41, 0, 0)).status is TransferStatus.STALL
        bench.close()
