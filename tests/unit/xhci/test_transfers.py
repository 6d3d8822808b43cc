"""Transfers through rings, events and a device (4.10, 4.11): data, order, short packets, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, CHAIN, IOC, ISP, FakeDevice, Rig, codes, make, of_type, spec
from usbvfiod_core.pci import vfio
from usbvfiod_core.testing.driver import DriverError, Td
from usbvfiod_core.testing.fake_device import INTERRUPT_IN, INTERRUPT_OUT
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus

CONTEXT_SIZES = (32, 64)

DATA = bytes(range(256)) * 20
SPLITS = [[], [0], [1, 0, 4000], [5119], [512] * 9, [7] * 40, [0, 0, 1, 0]]
VENDOR_IN, VENDOR_OUT = 0xC0, 0x40


@pytest.mark.parametrize("speed", [Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER])
def test_every_speed(make_rig: Callable[..., Rig], speed: Speed) -> None:
    rig = make_rig(speed)
    assert rig.usb.context.slot()[0] >> 20 & 0xF == speed
    rig.device.answers(INTERRUPT_IN, b"event")
    assert rig.usb.interrupt_in(INTERRUPT_IN, 8) == b"event"
    if speed != Speed.LOW:
        rig.works()


def test_a_transfer_that_is_over_holds_nothing_of_its_td(rig: Rig) -> None:
    rig.device.answers(BULK_IN, b"data", TransferStatus.STALL)
    td = rig.usb.submit_in(BULK_IN, 64)
    [transfer] = rig.device.submitted
    assert td.result() == b"data"
    assert transfer.context is None
    with pytest.raises(DriverError):
        rig.usb.bulk_in(BULK_IN, 64)
    assert [each.context for each in rig.device.submitted] == [None, None]


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("event_data", [False, True])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_chains_with_any_split(rig: Rig, split: list[int], event_data: bool, scatter: bool) -> None:
    data = DATA[:5120]
    rig.device.auto_out.add(BULK_OUT)
    rig.usb.bulk_out(BULK_OUT, data, split=split, event_data=event_data, scatter=scatter)
    assert rig.device.received[BULK_OUT] == [data]
    rig.device.answers(BULK_IN, data)
    td = rig.usb.submit_in(BULK_IN, len(data), split=split, event_data=event_data, scatter=scatter).wait()
    assert td.data == data
    assert codes(td.events) == [spec.CC_SUCCESS]
    assert [transfer.length for transfer in rig.device.submitted] == [5120, 5120], "one TD, one transfer"


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 4095, 4096, 65535, 65536, 65537, 300_000])
def test_lengths(rig: Rig, length: int) -> None:
    data = (DATA * 60)[:length]
    rig.device.auto_out.add(BULK_OUT)
    rig.usb.bulk_out(BULK_OUT, data)
    rig.device.answers(BULK_IN, data)
    assert rig.usb.bulk_in(BULK_IN, length) == data
    assert rig.device.received[BULK_OUT] == ([data] if length else [])


@pytest.mark.parametrize("actual", [0, 1, 511, 512, 513, 1023])
@pytest.mark.parametrize("isp", [False, True])
@pytest.mark.parametrize("event_data", [False, True])
def test_short_packets(rig: Rig, actual: int, isp: bool, event_data: bool) -> None:
    rig.device.answers(BULK_IN, DATA[:actual])
    td = rig.usb.submit_in(BULK_IN, 1024, split=[512], isp=isp, event_data=event_data).wait()
    assert td.completion_code == spec.CC_SHORT_PACKET
    if isp or event_data:
        assert td.data == DATA[:actual]
    rig.works()


def test_immediate_data(rig: Rig) -> None:
    rig.device.auto_out.add(BULK_OUT)
    for length in range(9):
        rig.usb.bulk_out(BULK_OUT, b"ABCDEFGH"[:length], immediate=True)
    assert rig.device.received[BULK_OUT] == [b"ABCDEFGH"[:length] for length in range(1, 9)]
    assert len(rig.device.submitted) == 9, "a zero-length packet is sent, too"


def test_no_ops_are_retired_in_order(rig: Rig) -> None:
    first = rig.bulk_out.submit_trbs([make.immediate(b"1", IOC)])
    second = rig.bulk_out.submit_trbs([make.no_op(IOC)])
    third = rig.bulk_out.submit_trbs([make.immediate(b"3", IOC)])
    assert rig.events() == [], "a No Op waits for the TD in front of it"
    rig.device.answers(BULK_OUT, 1, 1)
    rig.bus.run()
    assert [event.pointer for event in rig.events()] == [td.addresses[0] for td in (first, second, third)]
    rig.bulk_out.submit_trbs([make.no_op()])
    assert rig.events() == []
    assert len(rig.device.submitted) == 2


# -- pipelining --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_tds_are_retired_in_order_however_the_device_ends_them(rig: Rig, order: tuple[int, ...]) -> None:
    tds = [rig.bulk_in.submit(length=8) for _ in range(3)]
    transfers = list(rig.device.held[BULK_IN])
    assert len(transfers) == 3, "all are given to the device at once"
    done = set()
    for index in order:
        rig.device.finish(transfers[index], b"%d" % index)
        done.add(index)
        rig.handle()
        in_front = next((number for number in range(3) if number not in done), 3)
        assert [td.done for td in tds] == [number < in_front for number in range(3)]
    assert [td.data for td in tds] == [b"0", b"1", b"2"]


def test_a_bounded_number_is_in_flight(rig: Rig) -> None:
    tds = [rig.bulk_in.submit(length=8) for _ in range(40)]
    deepest = rig.device.in_flight
    assert 2 <= deepest <= 16, "Windows' rings are not consistent far ahead"
    for number in range(40):
        rig.device.answers(BULK_IN, bytes([number]))
        rig.bus.run()
        assert rig.device.in_flight <= deepest
    rig.handle()
    assert [td.data for td in tds] == [bytes([number]) for number in range(40)]


def test_endpoints_do_not_wait_for_one_another(rig: Rig) -> None:
    waiting = rig.bulk_in.submit(length=8)
    rig.usb.pipe(INTERRUPT_IN).submit(length=8)
    rig.device.answers(BULK_OUT, 3)
    rig.usb.bulk_out(BULK_OUT, b"abc")
    assert rig.usb.get_descriptor(1, 0, 18)
    assert not waiting.done


def test_a_td_that_is_completed_by_a_later_doorbell(rig: Rig) -> None:
    pipe, ring = rig.bulk_out, rig.bulk_out.ring
    first = ring.push(make.immediate(b"ab", CHAIN))
    pipe.doorbell()
    assert rig.device.submitted == []
    assert rig.events() == []
    last = ring.push(make.immediate(b"cd", IOC))
    assert rig.device.submitted == [], "nothing is fetched without a doorbell"
    rig.device.answers(BULK_OUT, 4)
    pipe.doorbell()
    (event,) = rig.events()
    assert event.pointer == last == first + 16
    assert rig.device.received[BULK_OUT] == [b"abcd"]


def test_a_doorbell_for_nothing_is_cheap_and_silent(rig: Rig) -> None:
    for _ in range(200):
        rig.bulk_in.doorbell()
    assert rig.events() == []
    assert rig.device.submitted == []


# -- errors (4.10.2) ---------------------------------------------------------------------------------------------

HALTING = {
    TransferStatus.STALL: spec.CC_STALL,
    TransferStatus.BABBLE: spec.CC_BABBLE,
    TransferStatus.ERROR: spec.CC_TRANSACTION_ERROR,
    TransferStatus.CANCELLED: spec.CC_TRANSACTION_ERROR,
}


@pytest.mark.parametrize("moved", [0, 100, 512, 600])
@pytest.mark.parametrize("status", HALTING)
def test_an_error_halts_at_the_failing_trb(rig: Rig, status: TransferStatus, moved: int) -> None:
    """The context is written before the event: Linux reads it in its interrupt handler."""
    rig.device.answers(BULK_IN, (status, DATA[:moved]))
    td = rig.bulk_in.submit(length=1024, split=[512])
    (event,) = rig.events()
    failing = int(moved >= 512)
    assert (event.completion_code, event.pointer) == (HALTING[status], td.addresses[failing])
    assert event.length == 512 - (moved - 512 * failing), "what is missing of that TRB"
    assert (event.slot_id, event.dci) == (rig.slot_id, rig.bulk_in.dci)
    assert rig.bulk_in.state == spec.EP_HALTED
    assert rig.usb.context.dequeue(rig.bulk_in.dci)[0] == td.addresses[failing]


def test_an_interrupt_finds_the_context_halted(rig: Rig) -> None:
    seen: list[int] = []
    rig.bus.interrupts.assign(vfio.MSIX_IRQ, 0, lambda: seen.append(rig.bulk_in.state))
    rig.device.answers(BULK_IN, TransferStatus.STALL)
    rig.bulk_in.submit(length=8)
    assert seen == [spec.EP_HALTED]


def test_what_stood_behind_a_failed_td_stays_on_the_ring(rig: Rig) -> None:
    tds = [rig.bulk_in.submit(length=8) for _ in range(4)]
    rig.device.answers(BULK_IN, b"0", TransferStatus.STALL)
    rig.handle()
    assert [td.completion_code for td in tds] == [spec.CC_SHORT_PACKET, spec.CC_STALL, 0, 0]
    assert rig.device.in_flight == 0
    assert len(rig.device.cancelled) == 2
    rig.bulk_in.recover()
    rig.device.answers(BULK_IN, b"2", b"3")
    assert [td.result() for td in tds[2:]] == [b"2", b"3"]


def test_the_event_waits_until_the_cancelled_transfers_are_back(rig: Rig) -> None:
    rig.device.cancels = False
    tds = [rig.bulk_in.submit(length=8) for _ in range(3)]
    rig.device.answers(BULK_IN, TransferStatus.STALL)
    rig.bus.run()
    assert rig.events() == []
    for transfer in list(rig.device.held[BULK_IN]):
        assert rig.bulk_in.state == spec.EP_RUNNING
        rig.device.finish(transfer, TransferStatus.CANCELLED)
        rig.bus.run()
    assert [event.pointer for event in rig.events()] == [tds[0].addresses[0]]
    assert rig.bulk_in.state == spec.EP_HALTED


def test_an_out_transfer_is_never_short(rig: Rig) -> None:
    rig.device.answers(BULK_OUT, 3)
    rig.bulk_out.submit(b"abcdef")
    (event,) = rig.events()
    assert (event.completion_code, event.length) == (spec.CC_TRANSACTION_ERROR, 3)
    assert rig.bulk_out.state == spec.EP_HALTED


def test_a_doorbell_does_not_wake_a_halted_endpoint(rig: Rig) -> None:
    rig.device.answers(BULK_IN, TransferStatus.STALL)
    rig.bulk_in.submit(length=8)
    rig.device.submitted.clear()
    rig.bulk_in.doorbell()
    assert rig.bulk_in.state == spec.EP_HALTED
    assert rig.device.submitted == []
    rig.handle()
    rig.bulk_in.reset()
    assert rig.device.submitted == [], "the doorbell was ignored, not kept"


def test_soft_retry_executes_the_td_again(rig: Rig) -> None:
    """4.6.8.1: Linux does it after a transaction error."""
    rig.device.answers(BULK_IN, TransferStatus.ERROR, TransferStatus.ERROR, b"third time")
    buffer = rig.ram.allocate(64)
    td = rig.bulk_in.submit(length=64, buffer=buffer)
    for _ in range(2):
        td.wait()
        assert td.completion_code == spec.CC_TRANSACTION_ERROR
        rig.bulk_in.retry()
    assert td.wait().actual == 10
    assert rig.ram.read(buffer, 10) == b"third time"


def fail_in_front(rig: Rig, status: TransferStatus, lengths: tuple[int, ...] = (64, 64, 64)) -> list[Td]:
    """The first of several IN TDs fails; the bus goes on with the others before it is told to stop."""
    tds = [rig.bulk_in.submit(length=length) for length in lengths]
    rig.device.cancels = False
    held = list(rig.device.held[BULK_IN])
    rig.device.finish(held[0], status)
    rig.device.finish(held[1], b"repeated")
    rig.bus.run()
    rig.device.finish(held[2], TransferStatus.CANCELLED)
    rig.device.cancels = True
    rig.handle()
    assert rig.bulk_in.state == spec.EP_HALTED
    return tds


def test_what_was_read_behind_an_error_is_for_its_retry(rig: Rig) -> None:
    """The device repeats what was not acknowledged; a host's controller has it read by the transfer behind."""
    first, second, third = fail_in_front(rig, TransferStatus.ERROR)
    rig.bulk_in.retry()
    assert first.result() == b"repeated"
    assert rig.device.in_flight == 2
    rig.device.answers(BULK_IN, b"second", b"third")
    assert [second.result(), third.result()] == [b"second", b"third"]


@pytest.mark.parametrize("status", [TransferStatus.ERROR, TransferStatus.STALL])
def test_what_was_read_behind_an_error_is_dropped_with_the_state_of_the_endpoint(
    rig: Rig, status: TransferStatus
) -> None:
    _, second, third = fail_in_front(rig, status)
    rig.bulk_in.recover()
    rig.device.answers(BULK_IN, b"second", b"third")
    assert [second.result(), third.result()] == [b"second", b"third"]


def test_what_was_read_behind_an_error_does_not_fit(rig: Rig) -> None:
    first, _, third = fail_in_front(rig, TransferStatus.ERROR, (4, 64, 64))
    rig.bulk_in.retry()
    assert first.wait().completion_code == spec.CC_BABBLE
    rig.bulk_in.recover()
    rig.device.answers(BULK_IN, b"second", b"third")
    assert third.result() == b"third"


@pytest.mark.parametrize("preserve", [False, True])
def test_after_a_partial_error_the_data_is_whole(rig: Rig, preserve: bool) -> None:
    rig.device.answers(BULK_IN, (TransferStatus.ERROR, DATA[:100]))
    td = rig.bulk_in.submit(length=256)
    td.wait()
    if preserve:
        rig.device.answers(BULK_IN, DATA[100:256])
        rig.bulk_in.retry()
    else:
        rig.bulk_in.reset()
        rig.bulk_in.failed = None
        td.forget_progress()
        rig.bulk_in.queue.appendleft(td)
        rig.device.answers(BULK_IN, DATA[:256])
        rig.bulk_in.doorbell()
    assert td.wait().completion_code == spec.CC_SUCCESS
    assert rig.ram.read(td.trbs[0].parameter, 256) == DATA[:256]


def test_a_trb_error_comes_after_the_tds_in_front_of_it(rig: Rig) -> None:
    good = rig.bulk_out.submit_trbs([make.immediate(b"good", IOC)])
    bad = rig.bulk_out.submit_trbs([make.trb(spec.TRB_STATUS_STAGE, control=IOC)])
    rig.bulk_out.submit_trbs([make.immediate(b"never", IOC)])
    assert rig.events() == []
    assert rig.bulk_out.state == spec.EP_RUNNING
    rig.device.answers(BULK_OUT, 4, 5)
    rig.bus.run()
    first, second = rig.events()
    assert (first.pointer, first.completion_code) == (good.addresses[0], spec.CC_SUCCESS)
    assert (second.pointer, second.completion_code) == (bad.addresses[0], spec.CC_TRB_ERROR)
    assert rig.bulk_out.state == spec.EP_ERROR
    assert rig.device.received[BULK_OUT] == [b"good"]


def test_a_trb_error_is_told_where_the_trb_says(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(interrupters=2)
    good, hole = rig.ram.allocate(64), 0x0800_0000
    trbs = [make.normal(good, 64, CHAIN), make.normal(hole, 32, CHAIN, interrupter=1), make.normal(good, 64, IOC)]
    bad = rig.bulk_in.submit_trbs(trbs)
    assert rig.events() == []
    (event,) = rig.events(1)
    assert (event.pointer, event.completion_code, event.length) == (bad.addresses[1], spec.CC_TRB_ERROR, 32)
    assert rig.usb.context.dequeue(rig.bulk_in.dci)[0] == bad.addresses[1]
    assert rig.bulk_in.state == spec.EP_ERROR


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("address", [0, 0xFFFF_FFFF_FFFF_FFF0, 0x0800_0000])
def test_a_buffer_outside_memory_is_a_trb_error(rig: Rig, address: int, in_front: bool) -> None:
    if in_front:
        rig.bulk_out.submit_trbs([make.immediate(b"good", IOC)])
    bad = rig.bulk_out.submit_trbs([make.normal(address, 64, IOC)])
    rig.device.answers(BULK_OUT, *([4] if in_front else []))
    rig.bus.run()
    event = rig.events()[-1]
    assert (event.pointer, event.completion_code) == (bad.addresses[0], spec.CC_TRB_ERROR)
    assert rig.bulk_out.state == spec.EP_ERROR
    assert rig.running, "one endpoint's buffer is not the controller's error"
    rig.bulk_out.queue.clear()
    rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_out.dci, *rig.bulk_out.ring.position)
    rig.works()


@pytest.mark.faults("fake device: submit raised")
def test_a_device_that_raises_costs_one_transfer(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def broken(transfer: Transfer) -> bytes:
        raise ValueError("a bug in a backend")

    rig.device.answers(BULK_IN, broken)
    assert rig.bulk_in.submit(length=8).wait().completion_code == spec.CC_TRANSACTION_ERROR
    assert "submit raised" in caplog.text
    rig.bulk_in.recover()
    rig.works()


@pytest.mark.parametrize("actual", [65, 1 << 20, -1])
def test_a_device_that_claims_what_cannot_be(rig: Rig, actual: int) -> None:
    rig.bulk_in.submit(length=64)
    rig.device.held[BULK_IN].popleft().complete(TransferStatus.COMPLETED, actual)
    rig.bus.run()
    (event,) = rig.events()
    assert event.completion_code in (spec.CC_BABBLE, spec.CC_TRANSACTION_ERROR)
    assert event.length <= 64


def test_a_transfer_that_is_completed_twice_counts_once(rig: Rig) -> None:
    td = rig.bulk_in.submit(length=64)
    (transfer,) = rig.device.held[BULK_IN]
    rig.device.finish(transfer, b"once")
    transfer.complete(TransferStatus.STALL)
    assert td.result() == b"once"
    rig.works()


def test_interrupt_out(rig: Rig) -> None:
    rig.device.answers(INTERRUPT_OUT, 4)
    rig.usb.interrupt_out(INTERRUPT_OUT, b"beep")
    assert rig.device.received[INTERRUPT_OUT] == [b"beep"]


def test_isp_without_ioc_tells_of_short_packets_only(rig: Rig) -> None:
    rig.device.answers(BULK_IN, b"12345678", b"1234")
    buffer = rig.ram.allocate(8)
    rig.bulk_in.submit_trbs([make.normal(buffer, 8, ISP)])
    assert rig.events() == []
    rig.bulk_in.submit_trbs([make.normal(buffer, 8, ISP)])
    assert codes(rig.events()) == [spec.CC_SHORT_PACKET]


def test_31_endpoints(make_rig: Callable[..., Rig]) -> None:
    from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint

    addresses = [number | direction for number in range(1, 16) for direction in (0, 0x80)]
    endpoints = tuple(bulk_endpoint(address, Speed.HIGH) for address in addresses)
    device = FakeDevice(configurations=[Configuration((Interface(0, class_code=0xFF, endpoints=endpoints),))])
    rig = make_rig(device=device)
    assert len(rig.usb.pipes) == 30
    for address in addresses:
        device.answers(address, b"in" if address & 0x80 else 3)
    tds = [
        rig.usb.submit_in(address, 8) if address & 0x80 else rig.usb.submit_out(address, b"out")
        for address in addresses
    ]
    for td in tds:
        assert td.wait().is_good
    assert len(of_type(rig.events(), spec.TRB_TRANSFER_EVENT)) == 0
    with pytest.raises(DriverError, match="not configured"):
        rig.usb.pipe(0x10)
