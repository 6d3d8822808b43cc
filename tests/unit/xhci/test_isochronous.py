"""Isochronous endpoints: what each packet's fate is called, events, and commands with TDs in flight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.xhci.isochronous_kit import CONFIGURATION, IN, ISOCHRONOUS, OUT, packet, pipe, submit, works
from tests.unit.xhci.kit import FakeDevice, Rig, Speed, codes, make, spec
from usbvfiod_core.testing.driver.trb import link
from usbvfiod_core.usb.descriptors import Companion, Configuration, Endpoint, Interface
from usbvfiod_core.usb.transfer import TransferStatus

CONTEXT_SIZES = (32, 64)

Make = Callable[..., Rig]


@pytest.fixture
def rig(make_rig: Make) -> Rig:
    """A device with two isochronous endpoints of a frame's interval."""
    return make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]))


# -- how a TD ends -----------------------------------------------------------------------------------------------------


def test_a_td_becomes_one_transfer_of_one_packet(rig: Rig) -> None:
    out, into = submit(rig, OUT), submit(rig, IN, 300)
    first, second = rig.device.submitted
    assert (first.endpoint, first.type, first.frame, first.length) == (OUT, ISOCHRONOUS, None, 100)
    assert (second.endpoint, second.type, second.frame, second.length) == (IN, ISOCHRONOUS, None, 300)
    assert [(each.offset, each.length) for each in first.packets + second.packets] == [(0, 100), (0, 300)]
    rig.device.answers(OUT, 100)
    rig.device.answers(IN, b"i" * 300)
    rig.handle()
    assert rig.device.received[OUT] == [bytes(range(100))]
    assert into.result() == b"i" * 300
    assert out.completion_code == spec.CC_SUCCESS


@pytest.mark.parametrize("moved", [0, 1, 99])
def test_a_short_packet(rig: Rig, moved: int) -> None:
    td = submit(rig, IN)
    rig.device.answers(IN, b"x" * moved)
    assert td.result() == b"x" * moved
    assert (td.completion_code, td.events[0].length) == (spec.CC_SHORT_PACKET, 100 - moved)
    works(rig, IN)


FATES = [
    (IN, TransferStatus.BABBLE, spec.CC_BABBLE),
    (IN, TransferStatus.ERROR, spec.CC_TRANSACTION_ERROR),
    (IN, TransferStatus.STALL, spec.CC_TRANSACTION_ERROR),
    (IN, TransferStatus.MISSED, spec.CC_MISSED_SERVICE),
    (IN, TransferStatus.OVERRUN, spec.CC_ISOCH_BUFFER_OVERRUN),
    (OUT, TransferStatus.ERROR, spec.CC_TRANSACTION_ERROR),
    (OUT, TransferStatus.MISSED, spec.CC_MISSED_SERVICE),
    (OUT, TransferStatus.OVERRUN, spec.CC_DATA_BUFFER_ERROR),
]


@pytest.mark.parametrize("ioc", [True, False])
@pytest.mark.parametrize(("address", "status", "code"), FATES)
def test_each_fate_of_a_packet_has_its_code_and_none_halts(
    rig: Rig, address: int, status: TransferStatus, code: int, ioc: bool
) -> None:
    endpoint = pipe(rig, address)
    td, behind = submit(rig, address, ioc=ioc), submit(rig, address)
    rig.device.answers(address, packet(status), TransferStatus.COMPLETED)
    rig.handle()
    assert td.completion_code == code
    assert [event.parameter for event in td.events] == [td.addresses[0]]
    assert td.events[0].length == 100
    assert behind.completion_code == spec.CC_SUCCESS
    assert endpoint.state == spec.EP_RUNNING
    works(rig, address)


@pytest.mark.parametrize("status", [TransferStatus.ERROR, TransferStatus.BABBLE])
@pytest.mark.parametrize("address", [IN, OUT])
def test_a_transfer_that_fails_as_a_whole_does_not_halt_either(rig: Rig, address: int, status: TransferStatus) -> None:
    td = submit(rig, address)
    rig.device.answers(address, status)
    rig.handle()
    babble = status is TransferStatus.BABBLE
    assert td.completion_code == (spec.CC_BABBLE if babble else spec.CC_TRANSACTION_ERROR)
    works(rig, address)


def test_what_had_come_before_an_error_is_in_the_residue(rig: Rig) -> None:
    td = submit(rig, IN)
    rig.device.answers(IN, packet(TransferStatus.ERROR, b"x" * 60))
    rig.handle()
    assert (td.completion_code, td.events[0].length) == (spec.CC_TRANSACTION_ERROR, 40)


def test_missed_intervals_are_counted(rig: Rig) -> None:
    for status in (TransferStatus.MISSED, TransferStatus.COMPLETED, TransferStatus.ERROR):
        submit(rig, IN)
        rig.device.answers(IN, packet(status, b"x" * 100))
    rig.handle()
    counted = next(each for each in rig.controller.statistics() if each.address == IN)
    assert (counted.transfers, counted.bytes, counted.missed) == (1, 100, 1)
    assert counted.errors == {"Transaction Error": 1, "Ring Overrun": 1}


@pytest.mark.parametrize("address", [IN, OUT])
def test_a_td_of_nothing(rig: Rig, address: int) -> None:
    td = submit(rig, address, 0)
    rig.device.answers(address, TransferStatus.COMPLETED)
    rig.handle()
    assert (td.completion_code, td.actual) == (spec.CC_SUCCESS, 0)


def test_immediate_data(rig: Rig) -> None:
    td = submit(rig, OUT, 8, immediate=True)
    rig.device.answers(OUT, 8)
    rig.handle()
    assert rig.device.received[OUT] == [bytes(range(8))]
    assert td.completion_code == spec.CC_SUCCESS


def test_data_in_several_trbs(rig: Rig) -> None:
    out = submit(rig, OUT, 200, split=(10, 0, 100), scatter=True)
    rig.device.answers(OUT, 200)
    into = submit(rig, IN, 200, split=(50, 50), scatter=True)
    rig.device.answers(IN, bytes(range(120)))
    rig.handle()
    assert rig.device.received[OUT] == [bytes(range(200))]
    assert out.completion_code == spec.CC_SUCCESS
    assert into.result() == bytes(range(120))
    assert into.events[0].parameter == into.addresses[2]


def test_high_bandwidth_and_bursts_are_one_packet(make_rig: Make) -> None:
    high = (Endpoint(IN, ISOCHRONOUS, 1024 | 2 << 11, 1),)
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[Configuration((Interface(0, 0xFF, endpoints=high),))]))
    assert pipe(rig, IN).payload_max == 3072
    td = submit(rig, IN, 3072)
    rig.device.answers(IN, b"h" * 3000)
    assert td.result() == b"h" * 3000

    burst = (Endpoint(OUT, ISOCHRONOUS, 1024, 1, Companion(15, 2, 49152)),)
    rig = make_rig(
        device=FakeDevice(Speed.SUPER, configurations=[Configuration((Interface(0, 0xFF, endpoints=burst),))])
    )
    endpoint = pipe(rig, OUT)
    assert endpoint.payload_max == 49152
    data = bytes(49152)
    td = endpoint.submit(data)
    rig.device.answers(OUT, 49152)
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS
    assert [len(each.packets) for each in rig.device.submitted] == [1]


def test_a_normal_trb_cannot_begin_a_td(rig: Rig) -> None:
    endpoint = pipe(rig, IN)
    buffer = rig.ram.allocate(64)
    endpoint.submit_trbs([make.normal(buffer, 64, spec.TRB_IOC)])
    assert codes(rig.events()) == [spec.CC_TRB_ERROR]
    assert endpoint.state == spec.EP_ERROR


# -- events ------------------------------------------------------------------------------------------------------------


def test_tds_that_want_no_event_give_none(rig: Rig) -> None:
    tds = [submit(rig, IN, ioc=number == 7, isp=False) for number in range(8)]
    rig.device.answers(IN, *[b"x" * 100] * 8)
    rig.bus.run()
    assert codes(rig.events()) == [spec.CC_SUCCESS, spec.CC_RING_OVERRUN]
    assert [transfer.actual for transfer in rig.device.submitted] == [100] * 8
    assert not any(td.events for td in tds)


def test_an_event_data_trb_gives_the_length(rig: Rig) -> None:
    td = submit(rig, IN, 200, event_data=True, isp=False, split=(50,))
    rig.device.answers(IN, bytes(120))
    rig.handle()
    assert (td.completion_code, td.actual) == (spec.CC_SHORT_PACKET, 120)
    assert td.events[0].is_event_data
    assert td.events[0].length == 120


def test_an_error_in_a_td_with_event_data(rig: Rig) -> None:
    td, behind = submit(rig, OUT, event_data=True), submit(rig, OUT, event_data=True)
    rig.device.answers(OUT, packet(TransferStatus.ERROR), TransferStatus.COMPLETED)
    rig.handle()
    assert td.completion_code == spec.CC_TRANSACTION_ERROR
    assert (behind.completion_code, behind.actual) == (spec.CC_SUCCESS, 100)


def test_bei_puts_off_the_interrupt_but_not_the_event(rig: Rig) -> None:
    submit(rig, IN)  # keeps the ring from running dry
    rig.handle()
    before = rig.bus.signals[0]
    for _ in range(3):
        submit(rig, IN, bei=True)
    rig.device.answers(IN, TransferStatus.COMPLETED)
    rig.handle()
    assert rig.bus.signals[0] == before + 1
    before = rig.bus.signals[0]
    rig.device.answers(IN, TransferStatus.COMPLETED, TransferStatus.COMPLETED)
    rig.bus.run()
    rig.bus.pause(0.01)
    assert rig.bus.signals[0] == before
    assert codes(rig.events()) == [spec.CC_SUCCESS] * 2
    rig.device.answers(IN, TransferStatus.COMPLETED)
    rig.bus.run()
    assert rig.bus.signals[0] == before + 1  # of the overrun
    assert codes(rig.events()) == [spec.CC_SUCCESS, spec.CC_RING_OVERRUN]


@pytest.mark.parametrize(
    ("address", "options", "quiet"),
    [
        (OUT, {}, False),
        (OUT, {"ioc": False}, True),
        (OUT, {"bei": True}, True),
        (OUT, {"ioc": False, "event_data": True}, True),
        (OUT, {"event_data": True}, False),
        (OUT, {"event_data": True, "bei": True}, True),
        (OUT, {"split": [50, 50], "ioc_each": True}, False),
        (IN, {"ioc": False}, False),  # a short packet interrupts
        (IN, {"ioc": False, "isp": False}, True),
        (IN, {"bei": True}, True),
    ],
)
def test_the_device_knows_for_which_td_the_driver_is_not_interrupted(
    rig: Rig, address: int, options: dict[str, Any], quiet: bool
) -> None:
    submit(rig, address, **options)
    (transfer,) = rig.device.submitted
    assert transfer.no_interrupt is quiet


def test_a_link_that_interrupts_belongs_to_the_td_behind_it(rig: Rig) -> None:
    ring = pipe(rig, OUT).ring
    submit(rig, OUT, ioc=False, doorbell=False)
    ring.push(link(ring.enqueue + spec.TRB_SIZE, spec.TRB_IOC))
    submit(rig, OUT, ioc=False)
    assert [each.no_interrupt for each in rig.device.submitted] == [True, False]


def test_each_td_goes_to_its_interrupter(make_rig: Make) -> None:
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]), interrupters=4)
    tds = [submit(rig, OUT, interrupter=number) for number in (0, 3, 1, 3)]
    rig.device.answers(OUT, *[TransferStatus.COMPLETED] * 4)
    rig.bus.run()
    taken = {number: [event.parameter for event in rig.events(number) if event.parameter] for number in (0, 1, 3)}
    assert taken == {
        0: [tds[0].addresses[0]],
        1: [tds[2].addresses[0]],
        3: [td.addresses[0] for td in (tds[1], tds[3])],
    }


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [IN, OUT])
def test_stop_gives_back_what_is_in_flight_and_goes_on_with_it(rig: Rig, address: int) -> None:
    endpoint = pipe(rig, address)
    tds = [submit(rig, address) for _ in range(3)]
    rig.device.answers(address, TransferStatus.COMPLETED)
    (event,) = endpoint.stop()
    assert tds[0].completion_code == spec.CC_SUCCESS
    assert (event.completion_code, event.parameter, event.length) == (spec.CC_STOPPED, tds[1].addresses[0], 100)
    assert rig.device.in_flight == 0
    assert rig.usb.context.dequeue(endpoint.dci) == tds[1].start
    endpoint.doorbell()
    rig.device.answers(address, TransferStatus.COMPLETED, TransferStatus.COMPLETED)
    rig.handle()
    assert [td.completion_code for td in tds] == [spec.CC_SUCCESS] * 3


def test_what_ends_while_the_endpoint_is_being_stopped_is_reported_with_its_own_code(rig: Rig) -> None:
    endpoint = pipe(rig, IN)
    tds = [submit(rig, IN) for _ in range(3)]
    rig.device.cancels = False
    command = rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=endpoint.dci)
    rig.bus.run()
    first, second, third = list(rig.device.held[IN])
    rig.device.finish(first, b"x" * 100)
    second.packets[0].status = TransferStatus.MISSED
    rig.device.finish(second, 0)
    rig.device.finish(third, TransferStatus.CANCELLED)
    rig.handle()
    assert command.done
    assert [td.completion_code for td in tds] == [spec.CC_SUCCESS, spec.CC_MISSED_SERVICE, 0]
    assert endpoint.state == spec.EP_STOPPED
    assert rig.usb.context.dequeue(endpoint.dci) == tds[2].start


@pytest.mark.parametrize(
    ("address", "moved", "code"),
    [
        (IN, 100, spec.CC_SUCCESS),
        (IN, 30, spec.CC_SHORT_PACKET),
        (OUT, 100, spec.CC_SUCCESS),
        (OUT, 30, spec.CC_TRANSACTION_ERROR),
    ],
)
def test_a_packet_that_was_moved_as_it_was_cancelled_is_not_moved_again(
    rig: Rig, address: int, moved: int, code: int
) -> None:
    endpoint = pipe(rig, address)
    tds = [submit(rig, address) for _ in range(2)]
    rig.device.cancels = False
    command = rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=endpoint.dci)
    rig.bus.run()
    first, second = list(rig.device.held[address])
    rig.device.finish(first, (TransferStatus.CANCELLED, b"x" * moved if address == IN else moved))
    rig.device.finish(second, TransferStatus.CANCELLED)
    rig.handle()
    assert command.done
    assert (tds[0].completion_code, tds[0].actual) == (code, moved)
    assert rig.usb.context.dequeue(endpoint.dci) == tds[1].start
    endpoint.doorbell()
    rig.bus.run()
    assert [transfer.length for transfer in rig.device.held[address]] == [100]


def test_set_dequeue_skips_a_td_in_flight(rig: Rig) -> None:
    endpoint = pipe(rig, OUT)
    skipped, kept = submit(rig, OUT), submit(rig, OUT)
    endpoint.cancel(skipped)
    assert (skipped.done, skipped.completion_code) == (True, 0)
    rig.device.answers(OUT, TransferStatus.COMPLETED)
    rig.handle()
    assert kept.completion_code == spec.CC_SUCCESS


def test_tds_turned_into_no_ops(rig: Rig) -> None:
    endpoint = pipe(rig, OUT)
    first, second, third = [submit(rig, OUT) for _ in range(3)]
    endpoint.cancel(second)
    rig.device.answers(OUT, TransferStatus.COMPLETED, TransferStatus.COMPLETED)
    rig.handle()
    assert [td.completion_code for td in (first, second, third)] == [spec.CC_SUCCESS, 0, spec.CC_SUCCESS]


def test_dropping_the_endpoint_cancels_what_is_in_flight(rig: Rig) -> None:
    dci = pipe(rig, IN).dci
    for _ in range(5):
        submit(rig, IN)
    rig.usb.configure_endpoints(add=[], drop=[IN])
    assert rig.device.in_flight == 0
    assert rig.usb.context.endpoint_state(dci) == spec.EP_DISABLED
    assert rig.running
    works(rig, OUT)


def test_disabling_the_slot_and_unplugging_with_tds_in_flight(make_rig: Make) -> None:
    for end in (lambda rig: rig.usb.disable(), lambda rig: rig.bus.unplug(rig.port_id), lambda rig: rig.bus.reset()):
        rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]))
        for address in (IN, OUT, IN, OUT):
            submit(rig, address)
        end(rig)  # type: ignore[no-untyped-call]
        assert rig.device.in_flight == 0


def test_work_ahead_is_bounded(make_rig: Make) -> None:
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]), ring_trbs=256)
    with rig.bus.together():
        tds = [submit(rig, OUT, ioc=number % 16 == 15) for number in range(160)]
    ahead = rig.device.in_flight
    assert 8 <= ahead <= 128
    for _ in range(160):
        rig.device.answers(OUT, TransferStatus.COMPLETED)
        rig.bus.run()
        assert rig.device.in_flight <= ahead
    rig.driver.handle_events()
    assert all(td.done for td in tds)
    assert codes(pipe(rig, OUT).starved) == [spec.CC_RING_UNDERRUN]
