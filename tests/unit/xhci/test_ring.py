"""Rings as the controller consumes them (4.9): cycle bits, Link TRBs, pages, and where memory ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, IOC, Rig, make, spec
from usbvfiod_core.errors import GuestMemoryError
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.testing.driver import ProducerRing, Trb
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.xhci.ring import LINK_LIMIT, ConsumerRing, RingLoopError

BASE = 0x10_0000
HIGH = 0x7F_FFFF_0000


class Memory:
    """Some pages of guest memory with TRBs."""

    def __init__(self, layout: list[tuple[int, int]]) -> None:
        self.ram = GuestRam(layout)
        self.memory = GuestMemory()
        for span in self.ram.spans:
            self.memory.map_buffer(span.address, self.ram.window(span.address, span.size))

    def put(self, address: int, trb: Trb, cycle: int = 1) -> None:
        view = self.ram.dwords(address, 4)
        view[0], view[1] = trb.parameter & 0xFFFF_FFFF, trb.parameter >> 32
        view[2], view[3] = trb.status, trb.control & ~1 | cycle

    def ring(self, address: int = BASE, cycle: int = 1) -> ConsumerRing:
        return ConsumerRing(self.memory, address, cycle)


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory([(BASE, 0x4000), (HIGH, 0x2000)])
    yield memory
    memory.ram.close()


def test_a_trb_is_taken_when_its_cycle_bit_is_ours(memory: Memory) -> None:
    ring = memory.ring()
    assert ring.read() is None
    memory.put(BASE, make.normal(0x1234_5678_9ABC, 77, IOC), cycle=0)
    assert ring.read() is None
    assert ring.address == BASE
    memory.put(BASE, make.normal(0x1234_5678_9ABC, 77, IOC), cycle=1)
    trb = ring.read()
    assert trb is not None
    assert (trb.address, trb.parameter, trb.status, trb.type) == (BASE, 0x1234_5678_9ABC, 77, spec.TRB_NORMAL)
    assert trb.control == spec.TRB_NORMAL << 10 | IOC | 1
    assert ring.address == BASE + 16
    assert ring.read() is None


def test_a_link_moves_on_and_toggles_only_with_tc(memory: Memory) -> None:
    memory.put(BASE, make.link(BASE + 0x100))
    memory.put(BASE + 0x100, make.link(BASE + 0x200, spec.TRB_TC))
    memory.put(BASE + 0x200, make.no_op(), cycle=0)
    ring = memory.ring()
    trb = ring.read()
    assert trb is not None
    assert trb.address == BASE + 0x200
    assert ring.cycle == 0


def test_a_link_that_is_not_ours_yet_is_not_followed(memory: Memory) -> None:
    memory.put(BASE, make.link(BASE + 0x100), cycle=0)
    memory.put(BASE + 0x100, make.no_op())
    ring = memory.ring()
    assert ring.read() is None
    assert ring.address == BASE
    memory.put(BASE, make.link(BASE + 0x100), cycle=1)
    trb = ring.read()
    assert trb is not None
    assert trb.address == BASE + 0x100


def test_a_ring_goes_round_and_round(memory: Memory) -> None:
    ring, cycle = memory.ring(), 1
    memory.put(BASE + 0x30, make.link(BASE, spec.TRB_TC), cycle=0)
    for turn in range(6):
        for place in range(3):
            memory.put(BASE + 16 * place, make.normal(turn, place), cycle)
            trb = ring.read()
            assert trb is not None
            assert (trb.parameter, trb.status) == (turn, place)
            assert ring.read() is None
        memory.put(BASE + 0x30, make.link(BASE, spec.TRB_TC), cycle)
        assert ring.read() is None
        cycle ^= 1
        assert (ring.address, ring.cycle) == (BASE, cycle)


def test_links_with_ioc_are_remembered_once(memory: Memory) -> None:
    memory.put(BASE, make.link(BASE + 0x100, IOC))
    memory.put(BASE + 0x100, make.no_op())
    ring = memory.ring()
    assert ring.read() is not None
    assert [link.address for link in ring.link_ioc] == [BASE]


def test_a_link_to_itself_is_a_loop(memory: Memory) -> None:
    memory.put(BASE, make.link(BASE))
    with pytest.raises(RingLoopError):
        memory.ring().read()


def test_links_in_a_circle_are_a_loop(memory: Memory) -> None:
    memory.put(BASE, make.link(BASE + 0x40))
    memory.put(BASE + 0x40, make.link(BASE + 0x80))
    memory.put(BASE + 0x80, make.link(BASE))
    with pytest.raises(RingLoopError):
        memory.ring().read()


def test_a_link_to_itself_that_toggles_ends_at_once(memory: Memory) -> None:
    memory.put(BASE, make.link(BASE, spec.TRB_TC))
    assert memory.ring().read() is None


@pytest.mark.parametrize(("links", "loop"), [(1, False), (LINK_LIMIT - 1, False), (LINK_LIMIT, True)])
def test_how_many_links_may_follow_one_another(memory: Memory, links: int, loop: bool) -> None:
    for index in range(links):
        memory.put(BASE + 32 * index, make.link(BASE + 32 * (index + 1)))
    memory.put(BASE + 32 * links, make.no_op())
    ring = memory.ring()
    if loop:
        with pytest.raises(RingLoopError):
            ring.read()
    else:
        assert ring.read() is not None


def test_a_ring_crosses_a_page(memory: Memory) -> None:
    for index in range(4):
        memory.put(BASE + 0xFE0 + 16 * index, make.normal(index, index))
    ring = memory.ring(BASE + 0xFE0)
    assert [trb.status for _ in range(4) if (trb := ring.read())] == [0, 1, 2, 3]
    assert ring.read() is None


def test_a_ring_above_4_gib_on_the_last_page_of_a_region(memory: Memory) -> None:
    last = HIGH + 0x2000 - 32
    memory.put(last, make.normal(1, 1))
    memory.put(last + 16, make.link(HIGH, spec.TRB_TC))
    memory.put(HIGH, make.normal(2, 2), cycle=0)
    ring = memory.ring(last)
    assert [trb.address for _ in range(2) if (trb := ring.read())] == [last, HIGH]


def test_a_ring_that_runs_out_of_its_region(memory: Memory) -> None:
    last = BASE + 0x4000 - 16
    memory.put(last, make.normal(1, 1))
    ring = memory.ring(last)
    assert ring.read() is not None
    with pytest.raises(GuestMemoryError):
        ring.read()


@pytest.mark.parametrize("toggle", [0, spec.TRB_TC])
def test_a_link_out_of_memory_leaves_the_position_at_the_link(memory: Memory, toggle: int) -> None:
    memory.put(BASE, make.link(0xDEAD_0000, toggle))
    ring = memory.ring()
    with pytest.raises(GuestMemoryError):
        ring.read()
    assert (ring.address, ring.cycle) == (BASE, 1)


def test_memory_that_was_mapped_anew_is_looked_up_anew(memory: Memory) -> None:
    ring = memory.ring()
    memory.put(BASE, make.normal(1, 1))
    assert ring.read() is not None
    memory.memory.unmap_all()
    with pytest.raises(GuestMemoryError):
        ring.read()
    other = bytearray(0x1000)
    other[16:32] = (
        (7).to_bytes(8, "little") + (7).to_bytes(4, "little") + (spec.TRB_NORMAL << 10 | 1).to_bytes(4, "little")
    )
    memory.memory.map_buffer(BASE, other)
    trb = ring.read()
    assert trb is not None
    assert trb.parameter == 7


# -- the same through a whole controller ------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [1, 2, 5])
@pytest.mark.parametrize("high", [False, True])
def test_transfer_and_command_rings_of_a_few_trbs(make_rig: Callable[..., Rig], segments: int, high: bool) -> None:
    rig = make_rig(ring_trbs=8, ring_segments=segments, command_trbs=4, high=high)
    rig.device.auto_out.add(BULK_OUT)
    for number in range(70):
        data = bytes([number]) * 24
        rig.usb.bulk_out(BULK_OUT, data, split=[1, 7, 8][: number % 4])
        rig.device.answers(BULK_IN, data)
        assert rig.usb.bulk_in(BULK_IN, 24, split=[5] * (number % 3)) == data
        rig.driver.commands.no_op()
    assert rig.device.received[BULK_OUT] == [bytes([number]) * 24 for number in range(70)]


def test_link_with_ioc_gives_an_event_of_its_own(rig: Rig) -> None:
    """4.11.5.1: FreeBSD asks for it."""
    pipe, ring = rig.bulk_out, ProducerRing(rig.ram, 16)
    pipe.stop()
    rig.driver.commands.set_dequeue(rig.slot_id, pipe.dci, ring.base, 1)
    rig.device.auto_out.add(BULK_OUT)
    first = ring.push(make.immediate(b"one", IOC))
    link = ring.push(make.link(ring.base + 0x80, IOC))
    ring.write(ring.base + 0x80, make.trb(spec.TRB_NORMAL, 0x6F7774, 3, IOC | spec.TRB_IDT | 1))
    pipe.doorbell()
    events = rig.events()
    assert [event.pointer for event in events] == [first, link, ring.base + 0x80]
    assert [(event.completion_code, event.length) for event in events] == [(spec.CC_SUCCESS, 0)] * 3
    assert rig.device.received[BULK_OUT] == [b"one", b"two"]


def test_link_with_ioc_while_a_transfer_is_stopped_is_not_lost(rig: Rig) -> None:
    pipe, ring = rig.bulk_out, ProducerRing(rig.ram, 16)
    pipe.stop()
    rig.driver.commands.set_dequeue(rig.slot_id, pipe.dci, ring.base, 1)
    link = ring.push(make.link(ring.base + 0x80, IOC))
    ring.write(ring.base + 0x80, make.trb(spec.TRB_NORMAL, 0x6F7774, 3, IOC | spec.TRB_IDT | 1))
    rig.device.cancels = False
    pipe.doorbell()
    rig.driver.commands.submit(make.command(spec.TRB_STOP_ENDPOINT, slot_id=rig.slot_id, dci=pipe.dci))
    rig.device.answers(BULK_OUT, 3)
    rig.bus.run()
    events = rig.events()
    assert [event.pointer for event in events[:2]] == [link, ring.base + 0x80]
    assert events[-1].type == spec.TRB_COMMAND_COMPLETION


@pytest.mark.parametrize("kind", ["loop", "outside", "hole"])
def test_bad_transfer_rings_put_the_endpoint_into_error(rig: Rig, kind: str) -> None:
    pipe, ring = rig.bulk_out, ProducerRing(rig.ram, 16)
    pipe.stop()
    base = ring.base
    target = {"loop": base, "outside": 0xFFFF_FFFF_FFFF_F000, "hole": 0}[kind]
    rig.driver.commands.set_dequeue(rig.slot_id, pipe.dci, base, 1)
    ring.write(base, make.trb(spec.TRB_LINK, target, 0, 1))
    pipe.doorbell()
    (event,) = rig.events()
    assert (event.type, event.completion_code) == (spec.TRB_TRANSFER_EVENT, spec.CC_TRB_ERROR)
    assert pipe.state == spec.EP_ERROR
    assert rig.usb.context.dequeue(pipe.dci) == (base, 1)
    pipe.set_dequeue()
    rig.works()
