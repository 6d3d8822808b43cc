"""What a guest queues stays on its rings until there is room for it, and then comes in its order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, CHAIN, IOC, STREAMS, Rig, make, spec, stream_device
from usbvfiod_core.testing.driver import Pipe, Td
from usbvfiod_core.testing.fake_device import INTERRUPT_IN, FakeDevice
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus
from usbvfiod_core.xhci.allowance import LEAST, SHORT, TOTAL, Allowance, Share
from usbvfiod_core.xhci.td import TRB_LIMIT

SIZE = TOTAL // 15
LONG = 1400
"""TRBs of a long TD, of one byte each."""
FIT = 2
"""So many of those, and then there is not room for the longest any more, which the next one may be."""


def long_td(rig: Rig, pipe: Pipe, *, trbs: int = LONG, is_in: bool = True) -> Td:
    buffer = rig.ram.allocate(trbs * 2, align=4096)
    chain = [make.normal(buffer + 2 * index, 1, CHAIN) for index in range(trbs - 1)]
    return pipe.submit_trbs([*chain, make.normal(buffer + 2 * trbs - 2, 1, IOC)], is_in=is_in)


@pytest.fixture
def roomy(make_rig: Callable[..., Rig]) -> Rig:
    """A rig whose rings take eight long TDs."""
    return make_rig(ring_trbs=4096, ring_segments=4)


def held(rig: Rig, endpoint: int) -> list[Transfer]:
    return list(rig.device.held[endpoint])


def test_long_tds_wait_for_those_before_them(roomy: Rig) -> None:
    rig = roomy
    tds = [long_td(rig, rig.bulk_in) for _ in range(6)]
    assert len(held(rig, BULK_IN)) == FIT  # not the eight of a bulk endpoint
    for number in range(6):
        rig.device.finish(held(rig, BULK_IN)[0], bytes([number]) * LONG)
        rig.bus.run()
        rig.handle()
        assert tds[number].completion_code == spec.CC_SUCCESS
        assert len(held(rig, BULK_IN)) == min(FIT, 5 - number)


def test_another_endpoint_goes_on(roomy: Rig) -> None:
    rig = roomy
    for _ in range(6):
        long_td(rig, rig.bulk_in)
    rig.usb.pipe(INTERRUPT_IN).submit(length=8)
    assert len(held(rig, INTERRUPT_IN)) == 1
    long_td(rig, rig.bulk_out, is_in=False)  # its neighbour has three quarters at most
    assert len(held(rig, BULK_OUT)) == 1


def test_a_waiting_td_is_not_lost_when_the_endpoint_is_stopped(roomy: Rig) -> None:
    rig = roomy
    tds = [long_td(rig, rig.bulk_in) for _ in range(6)]
    rig.bulk_in.stop()
    assert held(rig, BULK_IN) == []
    rig.bulk_in.doorbell()
    assert len(held(rig, BULK_IN)) == FIT
    while rig.device.held[BULK_IN]:
        rig.device.finish(held(rig, BULK_IN)[0], bytes(LONG))
        rig.bus.run()
    rig.handle()
    assert all(td.done for td in tds)


def test_room_that_comes_while_it_is_stopped_starts_nothing(roomy: Rig) -> None:
    rig = roomy
    for pipe, is_in in ((rig.bulk_in, True), (rig.bulk_out, False)):
        for _ in range(FIT if is_in else 4):
            long_td(rig, pipe, is_in=is_in)
    assert (len(held(rig, BULK_IN)), len(held(rig, BULK_OUT))) == (FIT, 1)
    rig.bulk_out.stop()
    rig.device.finish(held(rig, BULK_IN)[0], bytes(LONG))
    rig.bus.run()
    assert held(rig, BULK_OUT) == []
    rig.bulk_out.doorbell()
    assert len(held(rig, BULK_OUT)) == 2


def test_what_is_disabled_gives_everything_back(roomy: Rig) -> None:
    rig = roomy
    for _ in range(3):
        for _ in range(4):
            long_td(rig, rig.bulk_in)
        assert len(held(rig, BULK_IN)) == FIT
        rig.usb.set_configuration(0)
        rig.usb.set_configuration(1)
        rig.device.held[BULK_IN].clear()


def test_another_device_has_its_own(roomy: Rig) -> None:
    rig = roomy
    for _ in range(6):
        long_td(rig, rig.bulk_in)
    other = FakeDevice(Speed.HIGH)
    usb = rig.driver.enumerate(rig.bus.plug(other))
    for _ in range(6):
        long_td(rig, usb.pipe(BULK_IN))
    assert len(other.held[BULK_IN]) == FIT


def test_the_longest_td_fits_whatever_else_there_is(roomy: Rig) -> None:
    rig = roomy
    rig.usb.pipe(INTERRUPT_IN).submit(length=8)
    long_td(rig, rig.bulk_in, trbs=TRB_LIMIT)
    assert len(held(rig, BULK_IN)) == 1


def test_streams_share_it(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(device=stream_device(), ring_trbs=4096)
    rig.usb.alloc_streams(0, STREAMS)
    tds = [long_td(rig, rig.usb.stream(BULK_IN, stream)) for stream in range(1, STREAMS + 1)]
    assert len(held(rig, BULK_IN)) == FIT
    for _ in range(STREAMS):
        rig.device.finish(held(rig, BULK_IN)[-1], bytes(LONG))
        rig.bus.run()
    rig.handle()
    assert all(td.done for td in tds)


def test_a_failure_gives_back_what_was_behind_it(roomy: Rig) -> None:
    rig = roomy
    for _ in range(3):
        for _ in range(6):
            long_td(rig, rig.bulk_in)
        assert len(held(rig, BULK_IN)) == FIT
        rig.device.finish(held(rig, BULK_IN)[0], TransferStatus.STALL)
        rig.bus.run()
        rig.handle()
        assert held(rig, BULK_IN) == []
        rig.bulk_in.recover()
        assert len(held(rig, BULK_IN)) == FIT
        rig.bulk_in.flush()


@pytest.mark.parametrize("slots", [1, 15, 64, 255])
def test_one_endpoint_never_has_all(slots: int) -> None:
    allowance = Allowance(slots)
    assert allowance.size >= LEAST
    first, second = (Share(allowance, lambda: None) for _ in range(2))
    while first.take(100):
        pass
    if allowance.size > LEAST:
        assert second.take(100)
    assert second.take(SHORT)
    assert allowance.left >= -(SHORT + 3)


def test_who_waits_is_told_once() -> None:
    told = []
    allowance = Allowance(15)
    first = Share(allowance, lambda: told.append(1))
    taken = [units for _ in range(5) if (units := first.take(LONG))]
    assert not first.take(LONG)
    first.give_back(taken.pop())
    assert told == [1]
    first.give_back(taken.pop())
    assert told == [1]
