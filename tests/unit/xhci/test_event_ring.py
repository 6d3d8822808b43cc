"""The event ring (4.9.4): segments, wrapping, and what happens to events when the driver is slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.unit.xhci.kit import (
    BULK_OUT,
    USBSTS,
    DirectBus,
    FakeDevice,
    GuestDriver,
    Rig,
    Speed,
    codes,
    make,
    of_type,
    reg,
    spec,
)
from usbvfiod_core.errors import GuestMemoryError
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.testing.driver import EventRing as DriverRing
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.xhci.event_ring import EventRing

CONTROL = spec.TRB_TRANSFER_EVENT << 10


class Pair:
    """The controller's event ring and the driver's view of the same memory."""

    def __init__(self, segments: tuple[int, ...]) -> None:
        self.ram = GuestRam([(0x10_0000, 1 << 20)])
        self.memory = GuestMemory()
        for span in self.ram.spans:
            self.memory.map_buffer(span.address, self.ram.window(span.address, span.size))
        self.driver = DriverRing(self.ram, segments)
        self.ring = EventRing(self.memory)

    def set_up(self) -> None:
        self.ring.set_up(self.driver.table, len(self.driver.segments))
        self.ring.move_dequeue(self.driver.dequeue)

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.ring.publish(number, number, CONTROL)

    def take(self, limit: int = 10_000) -> list[int]:
        """What the driver finds, as numbers; -1 for Event Ring Full."""
        found: list[int] = []
        while len(found) < limit and (event := self.driver.take()) is not None:
            full = event.type == spec.TRB_HOST_CONTROLLER and event.completion_code == spec.CC_EVENT_RING_FULL
            found.append(-1 if full else event.parameter)
        return found

    def acknowledge(self) -> None:
        self.ring.move_dequeue(self.driver.dequeue)
        self.ring.release()


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make_pair(*segments: int) -> Pair:
        pairs.append(Pair(segments))
        return pairs[-1]

    yield make_pair
    for each in pairs:
        each.ram.close()


@pytest.mark.parametrize("segments", [(16,), (16, 16), (16, 40, 17), (16,) * 32], ids=str)
def test_events_come_in_order_through_all_segments(pair: Callable[..., Pair], segments: tuple[int, ...]) -> None:
    both = pair(*segments)
    both.set_up()
    number = 0
    for round_ in range(3 * sum(segments)):
        batch = list(range(number, number + round_ % 7))
        both.publish(*batch)
        assert both.take() == batch
        assert both.ring.empty == (not batch)
        both.acknowledge()
        assert both.ring.empty
        number += len(batch)


@pytest.mark.parametrize("segments", [(16,), (16, 24)], ids=str)
@pytest.mark.parametrize("before", [0, 1, 14, 15, 16, 30])
def test_a_full_ring_says_so_once_and_loses_nothing(
    pair: Callable[..., Pair], segments: tuple[int, ...], before: int
) -> None:
    both, size = pair(*segments), sum(segments)
    both.set_up()
    for number in range(before):
        both.publish(number)
        both.take()
        both.acknowledge()
    numbers = list(range(1000, 1000 + 3 * size))
    both.publish(*numbers)
    taken = both.take()
    assert taken == [*numbers[: size - 2], -1], "one entry stays free, the last but one takes the error"
    assert len(both.ring.held) == 2 * size + 2
    while True:
        both.acknowledge()
        if both.ring.empty:
            break
        got = both.take()
        assert got, "held events come as soon as there is room"
        taken += got
    assert [number for number in taken if number >= 0] == numbers


def test_held_events_stay_in_front_of_later_ones(pair: Callable[..., Pair]) -> None:
    both = pair(16)
    both.set_up()
    both.publish(*range(20))
    assert both.take(5) == [0, 1, 2, 3, 4]
    both.publish(20)
    both.acknowledge()
    both.publish(21)
    rest = both.take()
    for _ in range(4):
        both.acknowledge()
        rest += both.take()
    assert [number for number in rest if number >= 0] == list(range(5, 22))


def test_events_wait_for_a_ring(pair: Callable[..., Pair]) -> None:
    both = pair(16)
    both.publish(1, 2)
    assert not both.ring.ready
    assert list(both.ring.held) == [(1, 1, CONTROL), (2, 2, CONTROL)]
    both.set_up()
    both.ring.release()
    assert both.take() == [1, 2]


def test_a_dequeue_pointer_into_no_segment_changes_nothing(pair: Callable[..., Pair]) -> None:
    both = pair(16)
    both.set_up()
    both.publish(*range(14))
    for pointer in (0, both.driver.dequeue - 16, both.driver.dequeue + 16 * 16, (1 << 64) - 16):
        both.ring.move_dequeue(pointer)
    both.publish(14, 15)
    assert both.take() == [*range(14), -1]


def test_entries_of_an_illegal_size_end_the_table(pair: Callable[..., Pair]) -> None:
    for size in (0, 15, 4097, 0xFFFF):
        both = pair(16, 16)
        both.ram.write_u64(both.driver.table + 24, size)
        both.set_up()
        both.publish(*range(15))
        assert both.take() == [*range(14), -1]


def test_a_table_or_segment_outside_memory(pair: Callable[..., Pair]) -> None:
    both = pair(16)
    with pytest.raises(GuestMemoryError):
        both.ring.set_up(0xDEAD_0000, 1)
    both.ram.write_u64(both.driver.table, 0xDEAD_0000)
    with pytest.raises(GuestMemoryError):
        both.ring.set_up(both.driver.table, 1)
    assert not both.ring.ready
    both.publish(1)
    assert len(both.ring.held) == 1


# -- the same through a whole controller -------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [(16,), (16, 16), (17, 23, 16)], ids=str)
def test_a_driver_with_small_segments(make_rig: Callable[..., Rig], segments: tuple[int, ...]) -> None:
    rig = make_rig(event_segments=segments)
    rig.device.auto_out.add(BULK_OUT)
    for number in range(100):
        rig.usb.bulk_out(BULK_OUT, bytes([number]))
    assert rig.driver.other_events == []
    assert rig.driver.lost_interrupts == 0


def test_a_full_ring_stops_the_fetching_and_a_driver_that_catches_up_gets_all(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(event_segments=(16,), ring_trbs=256)
    rig.device.auto_out.add(BULK_OUT)
    rig.events()
    tds = [rig.bulk_out.submit(bytes([number]), doorbell=False) for number in range(100)]
    rig.bulk_out.doorbell()
    assert len(rig.device.received[BULK_OUT]) < 30, "nothing new is fetched while the event ring is full"
    command = rig.driver.commands.submit(make.command(spec.TRB_NO_OP_COMMAND))
    assert command.event is None
    rig.driver.wait_until(lambda: all(td.done for td in tds) and command.done, "the rest")
    assert rig.device.received[BULK_OUT] == [bytes([number]) for number in range(100)]
    full = of_type(rig.driver.other_events, spec.TRB_HOST_CONTROLLER)
    assert full
    assert set(codes(full)) == {spec.CC_EVENT_RING_FULL}
    assert rig.running, "a full event ring is no Host Controller Error"


def test_port_changes_of_all_ports_fill_a_small_ring(bus: DirectBus) -> None:
    for speed in [Speed.HIGH] * 8 + [Speed.SUPER] * 7:
        bus.plug(FakeDevice(speed))
    driver = GuestDriver(bus, event_segments=(16,)).start()
    driver.wait_until(lambda: len(driver.port_changes) == 15, "a Port Status Change Event for each port")


class ErdpFirst(GuestDriver):
    """SeaBIOS and FreeBSD write ERDP before ERSTBA, Linux after."""

    order = (spec.ERDP, spec.ERSTBA)

    def set_up(self) -> None:
        super().set_up()
        base = self.interrupter_offset(0)
        for register in self.order:
            value = self.event_rings[0].dequeue if register == spec.ERDP else self.event_rings[0].table
            self.write_64(base + register, value)


class ErdpLast(ErdpFirst):
    order = (spec.ERSTBA, spec.ERDP)


class HighFirst(GuestDriver):
    """A driver that writes the upper half of every 64-bit register first."""

    def write_64(self, offset: int, value: int) -> None:
        self.bus.write(offset + 4, value >> 32)
        self.bus.write(offset, value & 0xFFFF_FFFF)


@pytest.mark.parametrize("kind", [GuestDriver, ErdpFirst, ErdpLast, HighFirst])
@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("qword", [False, True])
def test_every_order_of_setting_a_ring_up(kind: type[GuestDriver], high: bool, qword: bool) -> None:
    bus = DirectBus(ram=GuestRam([(0x10_0000, 8 << 20), (0x23_4560_0000, 8 << 20)]))
    driver = kind(bus, high=high, qword_writes=qword)
    for _ in range(2):  # also after a reset
        driver.start()
        driver.commands.no_op()
        for _ in range(300):
            driver.commands.no_op()
        assert not bus.read(USBSTS) & spec.USBSTS_HSE
    bus.close()


def test_a_driver_that_writes_low_halves_only(bus: DirectBus) -> None:
    driver = GuestDriver(bus, high=False)
    driver.reset()

    def low_only(offset: int, value: int) -> None:
        assert not value >> 32
        bus.write(offset, value)

    driver.write_64 = low_only  # type: ignore[method-assign]
    driver.set_up()
    driver.run()
    driver.commands.no_op()


def test_a_ring_that_is_exchanged_while_the_controller_is_halted(rig: Rig) -> None:
    rig.driver.halt()
    rig.driver.event_rings[0] = ring = DriverRing(rig.ram, (32, 16))
    base = rig.driver.interrupter_offset(0)
    rig.bus.write(base + spec.ERSTSZ, 2)
    rig.driver.write_64(base + spec.ERDP, ring.dequeue)
    rig.driver.write_64(base + spec.ERSTBA, ring.table)
    rig.driver.run()
    for _ in range(60):
        rig.driver.commands.no_op()


def test_a_halt_and_a_start_keep_the_ring(rig: Rig) -> None:
    rig.driver.commands.no_op()
    rig.driver.halt()
    rig.driver.run()
    rig.driver.commands.no_op()
    rig.works()


def test_a_segment_table_outside_memory_is_a_host_system_error(bus: DirectBus) -> None:
    driver = GuestDriver(bus)
    driver.reset()
    driver.set_up()
    driver.write_64(reg.interrupter_base(0) + spec.ERSTBA, 0xDEAD_0000)
    bus.write(reg.OPERATIONAL_BASE + spec.USBCMD, spec.USBCMD_RS)
    driver.ring_doorbell(0, 0)
    assert bus.read(USBSTS) & (spec.USBSTS_HSE | spec.USBSTS_HCH) == spec.USBSTS_HSE | spec.USBSTS_HCH
    driver.start()
    driver.commands.no_op()
