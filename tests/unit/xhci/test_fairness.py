"""What a guest puts on one ring does not keep the others waiting, and a ring that only goes round ends by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import (
    BULK_IN,
    BULK_OUT,
    IOC,
    STREAMS,
    FakeDevice,
    Rig,
    Speed,
    make,
    reg,
    spec,
    stream_device,
)
from usbvfiod_core.testing.driver import Pipe
from usbvfiod_core.testing.fake_device import INTERRUPT_IN, INTERRUPT_OUT
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.transfer import Transfer
from usbvfiod_core.xhci import engine, turns

NO_OP = spec.TRB_NO_OP << spec.TRB_TYPE_SHIFT | spec.TRB_CYCLE
NORMAL = spec.TRB_NORMAL << spec.TRB_TYPE_SHIFT | spec.TRB_CYCLE
TURNS = 12
LOOKS = [0.5, 8, 16]
"""Looks at the clock in a run's time: fewer than all who wait take."""
LINK = spec.TRB_LINK << spec.TRB_TYPE_SHIFT | spec.TRB_CYCLE


class CountedClock:
    """A clock in which each look takes `step` nanoseconds: time is counted work."""

    def __init__(self) -> None:
        self.now = 0
        self.step = 1000

    def __call__(self) -> int:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> CountedClock:
    clock = CountedClock()
    monkeypatch.setattr(turns, "monotonic_ns", clock)
    monkeypatch.setattr(engine, "monotonic_ns", clock)
    return clock


def endless(rig: Rig, pipe: Pipe, *, control: int = NO_OP, trbs: int = 16, entry: int = 0) -> int:
    """Stop a pipe and point it at a ring of TDs of one TRB whose Link TRB does not toggle: it never ends. It is entered
    behind `entry` more TRBs, to which it does not come back. Returns its address."""
    base = rig.ram.allocate((entry + trbs + 1) * spec.TRB_SIZE, align=4096)
    words = rig.ram.dwords(base, 4 * (entry + trbs + 1))
    for index in range(entry + trbs):
        words[4 * index + 3] = control
    start = base + entry * spec.TRB_SIZE
    words[-4:] = memoryview(b"".join(each.to_bytes(4, "little") for each in (start, 0, 0, LINK))).cast("I")
    if pipe.state == spec.EP_RUNNING:
        pipe.stop()
    pipe.set_dequeue((base, 1))
    return base


def ring(rig: Rig, pipe: Pipe, stream_id: int = 0) -> None:
    """Ring a doorbell, and do nothing about it yet."""
    rig.controller.write(reg.DOORBELL_BASE + 4 * rig.slot_id, stream_id << 16 | pipe.dci, 4)


@pytest.mark.parametrize("entry", [0, 5])
def test_a_ring_that_only_goes_round_waits_for_a_doorbell(rig: Rig, entry: int) -> None:
    endless(rig, rig.bulk_out, entry=entry)
    rig.bulk_out.doorbell()
    assert not rig.controller.run()  # nothing is left to do: a server sleeps now
    assert rig.bulk_out.state == spec.EP_RUNNING


def test_a_doorbell_lets_it_go_round_again(rig: Rig) -> None:
    base = endless(rig, rig.bulk_out)
    rig.bulk_out.doorbell()
    rig.device.submitted.clear()
    for index in range(16):  # all of them, as a driver cannot know where the controller stands
        rig.ram.dwords(base + index * spec.TRB_SIZE, 4)[3] = NORMAL
    rig.controller.run()
    assert not rig.device.submitted
    rig.bulk_out.doorbell()
    assert rig.device.submitted


def test_no_ops_of_a_driver_are_no_loop(rig: Rig) -> None:
    """Linux turns cancelled TDs into No Ops, and it may do so for longer than its ring."""
    for _ in range(3 * rig.bulk_out.ring.capacity):
        rig.bulk_out.submit_trbs([make.no_op(IOC)]).wait()


def test_an_endless_ring_keeps_no_other_endpoint_waiting(rig: Rig, clock: CountedClock) -> None:
    rig.device.auto_out.add(BULK_OUT)
    endless(rig, rig.bulk_out, control=NORMAL)
    rig.bulk_in.submit(length=64, doorbell=False)
    rig.device.submitted.clear()
    ring(rig, rig.bulk_out)
    ring(rig, rig.bulk_in)
    assert rig.controller.run()
    submitted = [transfer.endpoint for transfer in rig.device.submitted]
    assert submitted.count(BULK_OUT) > 1
    assert submitted.count(BULK_IN) == 1


def test_what_becomes_ready_comes_before_what_has_had_its_share(rig: Rig, clock: CountedClock) -> None:
    rig.device.auto_out.add(BULK_OUT)
    endless(rig, rig.bulk_out, control=NORMAL)
    ring(rig, rig.bulk_out)
    assert rig.controller.run()
    rig.bulk_in.submit(length=64, doorbell=False)
    rig.device.submitted.clear()
    ring(rig, rig.bulk_in)
    assert rig.controller.run()
    submitted = [transfer.endpoint for transfer in rig.device.submitted]
    assert submitted[0] == BULK_IN
    assert submitted.count(BULK_OUT) > 1  # and that one goes on


def test_what_a_device_ends_while_it_takes_something_is_told_in_the_same_run(rig: Rig, clock: CountedClock) -> None:
    """It may be pulled out right after."""
    reading = [rig.bulk_in.submit(length=64), rig.usb.pipe(INTERRUPT_IN).submit(length=8)]

    def answer(transfer: Transfer) -> int:
        for endpoint in (BULK_IN, INTERRUPT_IN):
            rig.device.finish(rig.device.held[endpoint][0], b"last")
        return transfer.length

    rig.device.answers(BULK_OUT, answer)
    rig.bulk_out.submit(b"go", doorbell=False)
    ring(rig, rig.bulk_out)
    assert not rig.controller.run()
    rig.bus.unplug(rig.port_id)
    rig.handle()
    assert [td.result() for td in reading] == [b"last", b"last"]


def test_a_machine_on_which_every_look_takes_too_long_comes_on(rig: Rig, clock: CountedClock) -> None:
    """A share of the time may be over before the ring has been looked at: hundreds of endpoints, a slow processor."""
    clock.step = 2 * turns.RUN_NS
    rig.device.auto_out.update((BULK_OUT, INTERRUPT_OUT))
    writing = [pipe.submit(b"x") for pipe in (rig.bulk_out, rig.bulk_out, rig.usb.pipe(INTERRUPT_OUT))]
    for td in writing:
        td.wait()
    assert len(rig.device.submitted) == 3


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("looks", LOOKS, ids="{}-looks-a-run".format)
def test_none_is_left_out_where_a_run_is_enough_for_few(
    make_rig: Callable[..., Rig], clock: CountedClock, count: int, looks: float
) -> None:
    """A device that answers at once makes all its endpoints ready again by the next run, and each has had as many turns
    as every other."""
    addresses = [0x81 + number for number in range(count)]
    interface = Interface(0, 0xFF, endpoints=tuple(bulk_endpoint(address, Speed.HIGH) for address in addresses))
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[Configuration((interface,))]))
    for address in addresses:
        endless(rig, rig.usb.pipe(address), control=NORMAL)
    clock.step = int(turns.RUN_NS / looks)
    for address in addresses:
        ring(rig, rig.usb.pipe(address))
    had = dict.fromkeys(addresses, 0)
    for _ in range(TURNS * count):
        rig.controller.run()
        for address in addresses:
            held = list(rig.device.held[address])
            had[address] += bool(held)
            for transfer in held:
                rig.device.finish(transfer, b"")
    assert max(had.values()) <= 2 * min(had.values()), had


def test_a_run_ends_in_time(rig: Rig, clock: CountedClock) -> None:
    rig.device.auto_out.add(BULK_OUT)
    endless(rig, rig.bulk_out, control=NORMAL)
    ring(rig, rig.bulk_out)
    before = clock.now
    assert rig.controller.run()
    assert clock.now - before < 2 * turns.RUN_NS


def test_streams_take_turns(make_rig: Callable[..., Rig], clock: CountedClock) -> None:
    """A stream that never ends is one of those that are due, not the one before all others."""
    rig = make_rig(device=stream_device())
    rig.usb.alloc_streams(0, STREAMS)
    rig.device.auto_out.add(BULK_OUT)
    endless(rig, rig.usb.stream(BULK_OUT, 1), control=NORMAL)
    rig.usb.stream(BULK_OUT, 2).submit(b"a turn", doorbell=False)
    rig.device.submitted.clear()
    ring(rig, rig.bulk_out, 1)
    ring(rig, rig.bulk_out, 2)
    assert rig.controller.run()
    assert rig.controller.run()
    submitted = [transfer.stream_id for transfer in rig.device.submitted]
    assert submitted.count(1) > 1
    assert submitted.count(2) == 1


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("looks", LOOKS, ids="{}-looks-a-run".format)
def test_no_stream_is_left_out_where_a_run_is_enough_for_few(
    make_rig: Callable[..., Rig], clock: CountedClock, count: int, looks: float
) -> None:
    rig = make_rig(device=stream_device())
    rig.usb.alloc_streams(0, STREAMS)
    numbers = range(1, count + 1)
    for number in numbers:
        endless(rig, rig.usb.stream(BULK_OUT, number), control=NORMAL)
    clock.step = int(turns.RUN_NS / looks)
    for number in numbers:
        ring(rig, rig.bulk_out, number)
    had = dict.fromkeys(numbers, 0)
    for _ in range(TURNS * count):
        rig.controller.run()
        held = list(rig.device.held[BULK_OUT])
        for number in {transfer.stream_id for transfer in held}:
            had[number] += 1
        for transfer in held:
            rig.device.finish(transfer, transfer.length)
    assert max(had.values()) <= 2 * min(had.values()), had
