"""The driver's rings by themselves, read as a controller reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbvfiod_core.testing.driver import DriverError, EventRing, ProducerRing, ProtocolError, cut
from usbvfiod_core.testing.driver.trb import Trb, no_op, normal, trb
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.xhci import spec

RAM = GuestRam()


class Consumer:
    """A controller's walk over a ring (4.9.2)."""

    def __init__(self, ring: ProducerRing) -> None:
        self.ring = ring
        self.address = ring.base
        self.cycle = 1
        self.chained_link = False

    def take(self) -> tuple[int, Trb] | None:
        for _ in range(10):
            found = self.ring.read(self.address)
            if found.control & spec.TRB_CYCLE != self.cycle:
                return None
            if found.type != spec.TRB_LINK:
                address = self.address
                self.address += spec.TRB_SIZE
                return address, found
            self.chained_link = bool(found.control & spec.TRB_CH)
            self.address = found.parameter
            self.cycle ^= bool(found.control & spec.TRB_TC)
        raise AssertionError("only Link TRBs")


@settings(max_examples=50, deadline=None)
@given(
    trbs=st.integers(3, 9),
    segments=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_what_is_pushed_is_read_in_order(trbs: int, segments: int, sizes: list[int]) -> None:
    ring = ProducerRing(RAM, trbs, segments=segments)
    consumer = Consumer(ring)
    number = 0
    for size in sizes:
        size = min(size, ring.capacity)
        td = [normal(number + each, 1, spec.TRB_CH if each < size - 1 else 0) for each in range(size)]
        start = ring.position
        addresses = ring.push_td(td)
        assert start in ((addresses[0], consumer.cycle), (addresses[0], consumer.cycle ^ 1))
        for each in range(size):
            taken = consumer.take()
            assert taken is not None
            assert taken[0] == addresses[each]
            assert taken[1].parameter == number + each
        assert consumer.take() is None
        assert (consumer.address, consumer.cycle) == ring.position or ring.pending == size
        ring.retire(size)
        number += size
    ring.free()


def test_a_td_across_a_link_is_chained_through_it() -> None:
    ring = ProducerRing(RAM, 4)
    consumer = Consumer(ring)
    ring.push_td([normal(0, 0), normal(0, 0)])
    assert consumer.take()
    assert consumer.take()
    ring.retire(2)
    ring.push_td([normal(1, 1, spec.TRB_CH), normal(2, 2)])
    assert consumer.take()
    assert consumer.take()
    assert consumer.chained_link
    ring.retire(2)
    ring.push_td([normal(0, 0), normal(0, 0)])
    assert consumer.take()
    assert consumer.take()
    assert consumer.take() is None  # it has read the Link by now
    assert not consumer.chained_link
    ring.free()


class WatchedRing(ProducerRing):
    """Looks at the ring after each TRB, as a controller may."""

    seen: list[tuple[int, Trb] | None]

    def push(self, trb: Trb, *, cycle: int | None = None) -> int:
        address = super().push(trb, cycle=cycle)
        self.seen.append(Consumer(self).take())
        return address


def test_a_td_is_handed_over_at_once() -> None:
    ring = WatchedRing(RAM, 16)
    ring.seen = []
    ring.push_td([normal(1, 1, spec.TRB_CH), normal(2, 2, spec.TRB_CH), normal(3, 3)])
    assert ring.seen == [None, None, None]
    assert Consumer(ring).take() is not None
    ring.free()


def test_a_full_ring_is_not_overwritten() -> None:
    ring = ProducerRing(RAM, 4)
    ring.push_td([no_op(), no_op()])
    assert ring.space == 0
    with pytest.raises(DriverError, match="full"):
        ring.push(no_op())
    with pytest.raises(DriverError, match="2 TRBs do not fit on the ring, 0 are free"):
        ring.push_td([no_op(), no_op()])
    ring.retire(1)
    ring.push(no_op())
    with pytest.raises(ProtocolError, match="more TRBs were executed"):
        ring.retire(5)
    ring.free()


def test_a_forced_cycle_bit_hides_a_trb() -> None:
    ring = ProducerRing(RAM, 8)
    ring.push(no_op(), cycle=0)
    assert Consumer(ring).take() is None
    ring.free()


def test_no_ops_keep_their_cycle_and_unchain_the_link() -> None:
    ring = ProducerRing(RAM, 4)
    consumer = Consumer(ring)
    ring.push_td([normal(0, 0), normal(0, 0)])
    assert consumer.take()
    assert consumer.take()
    ring.retire(2)
    addresses = ring.push_td([normal(1, 1, spec.TRB_CH), normal(2, 2)])
    ring.write_no_ops(addresses)
    kinds = [taken[1].type for taken in (consumer.take() for _ in range(2)) if taken is not None]
    assert kinds == [spec.TRB_NO_OP, spec.TRB_NO_OP]
    assert not consumer.chained_link
    ring.free()


@pytest.mark.parametrize("segments", [(16,), (16, 32, 16)])
def test_events_are_taken_once_in_order(segments: tuple[int, ...]) -> None:
    ring = EventRing(RAM, segments)
    entries = [(RAM.read_u64(ring.table + 16 * n), RAM.read_u64(ring.table + 16 * n + 8)) for n in range(len(segments))]
    assert [size for _, size in entries] == list(segments)
    places = [base + 16 * n for base, size in entries for n in range(size)]
    number = 0
    for lap in range(3):
        for place in places:
            assert ring.take() is None
            assert ring.dequeue == place
            RAM.write_u64(place, number)
            event = trb(spec.TRB_TRANSFER_EVENT, control=1 - lap % 2)
            RAM.write_u32(place + 8, spec.CC_SUCCESS << 24)
            RAM.write_u32(place + 12, event.control)
            assert ring.waiting
            taken = ring.take()
            assert taken is not None
            assert (taken.parameter, taken.address, taken.completion_code) == (number, place, spec.CC_SUCCESS)
            number += 1
    ring.free()


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 18), st.lists(st.integers(0, 5000), max_size=5))
def test_pieces_of_a_buffer(address: int, length: int, split: list[int]) -> None:
    length += sum(split)
    pieces = cut(address, length, split)
    at = address
    for start, size in pieces:
        assert start == at
        assert 0 <= size <= 65536
        assert not size or start // 65536 == (start + size - 1) // 65536
        at += size
    assert at == address + length
    assert pieces
