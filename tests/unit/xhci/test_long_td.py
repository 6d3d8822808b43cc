"""TDs of hundreds of TRBs: read in steps between which others have their turn, and given to the device whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, CHAIN, IOC, Rig, make, reg, spec
from usbvfiod_core.testing.driver import Pipe, Td
from usbvfiod_core.testing.driver import Trb as RingTrb
from usbvfiod_core.testing.fake_device import INTERRUPT_IN
from usbvfiod_core.xhci import engine, turns
from usbvfiod_core.xhci.remapping import REMAP_SECONDS
from usbvfiod_core.xhci.td import STEP, TRB_LIMIT

SIZES = [STEP, STEP + 1, 2 * STEP, 1000, TRB_LIMIT]


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """A rig whose rings take the longest TD."""
    return make_rig(ring_trbs=4096, ring_segments=3)


def spread(rig: Rig, count: int) -> list[RingTrb]:
    """A TD of so many TRBs of one byte, each at a place of its own."""
    buffer = rig.ram.allocate(2 * count, align=4096)
    return [make.normal(buffer + 2 * index, 1, CHAIN if index < count - 1 else IOC) for index in range(count)]


def submit(rig: Rig, pipe: Pipe, count: int, *, written: int | None = None) -> Td:
    """Put it on the ring; of what is not `written` the cycle bits are wrong."""
    td = pipe.submit_trbs(spread(rig, count), is_in=pipe is rig.bulk_in, doorbell=False)
    if written is not None:
        write(rig, td, written, count)
    pipe.doorbell()
    return td


def write(rig: Rig, td: Td, start: int, end: int) -> None:
    """Turn the cycle bits of these TRBs over."""
    for address in td.addresses[start:end]:
        rig.ram.dwords(address, 4)[3] ^= spec.TRB_CYCLE


def half_read(rig: Rig) -> Td:
    """The longest TD, of which the controller has read a part."""
    td = rig.bulk_in.submit_trbs(spread(rig, TRB_LIMIT), doorbell=False)
    begin(rig, rig.bulk_in)
    rig.controller.run()
    assert not rig.device.held[BULK_IN]
    return td


def begin(rig: Rig, pipe: Pipe) -> None:
    """Ring the doorbell and let the controller work for no longer than a run."""
    rig.controller.write(reg.DOORBELL_BASE + 4 * rig.slot_id, pipe.dci, 4)
    rig.controller.run()


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is over after one step."""
    now = 0

    def clock() -> int:
        nonlocal now
        now += turns.RUN_NS // 2
        return now

    monkeypatch.setattr(turns, "monotonic_ns", clock)
    monkeypatch.setattr(engine, "monotonic_ns", clock)


def remap(rig: Rig) -> None:
    """All memory goes and comes back."""
    rig.bus.memory.unmap_all()
    for span in rig.ram.spans:
        rig.bus.memory.map_buffer(span.address, rig.ram.window(span.address, span.size))


@pytest.mark.parametrize("count", SIZES)
def test_it_is_one_transfer(rig: Rig, count: int) -> None:
    td = submit(rig, rig.bulk_in, count)
    (transfer,) = rig.device.held[BULK_IN]
    assert transfer.length == count
    data = bytes(index % 251 for index in range(count))
    rig.device.finish(transfer, data)
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS
    assert [rig.ram.read(trb.parameter, 1)[0] for trb in td.trbs] == list(data)


def test_its_neighbours_are_one_window_within_a_step(rig: Rig) -> None:
    buffer = rig.ram.allocate(1000, align=4096)
    chain = [make.normal(buffer + index, 1, CHAIN) for index in range(999)]
    rig.bulk_out.submit_trbs([*chain, make.normal(buffer + 999, 1, IOC)], is_in=False)
    (transfer,) = rig.device.held[BULK_OUT]
    assert [len(window) for window in transfer.windows] == [STEP, STEP, STEP, 1000 - 3 * STEP]


@pytest.mark.usefixtures("short_runs")
def test_others_have_their_turn_between_its_steps(rig: Rig) -> None:
    interrupt = rig.usb.pipe(INTERRUPT_IN)
    half_read(rig)
    interrupt.submit_trbs([make.normal(rig.ram.allocate(8), 8, IOC)], doorbell=False)
    begin(rig, interrupt)
    assert rig.device.held[INTERRUPT_IN]
    assert not rig.device.held[BULK_IN]
    rig.bus.run()
    assert rig.device.held[BULK_IN]


@pytest.mark.usefixtures("short_runs")
def test_stopped_between_its_steps_it_has_not_been_begun(rig: Rig) -> None:
    td = half_read(rig)
    (stopped,) = rig.bulk_in.stop()
    assert stopped.pointer == td.addresses[0]
    assert rig.bulk_in.dequeue[0] == td.addresses[0]
    short = [*td.trbs[:10], make.normal(rig.ram.allocate(8), 8, IOC)]
    for address, trb in zip(td.addresses, short, strict=False):  # the driver may write something else there meanwhile
        rig.ram.dwords(address, 4)[2:4] = memoryview(
            b"".join(word.to_bytes(4, "little") for word in (trb.status, trb.control | spec.TRB_CYCLE))
        ).cast("I")
    rig.bulk_in.doorbell()
    rig.bus.run()
    assert rig.device.held[BULK_IN][0].length == 18


@pytest.mark.usefixtures("short_runs")
def test_disabled_between_its_steps_it_holds_nothing(rig: Rig) -> None:
    for _ in range(3):
        half_read(rig)
        rig.usb.set_configuration(0)
        rig.usb.set_configuration(1)


@pytest.mark.usefixtures("short_runs")
def test_memory_that_is_unmapped_between_its_steps_is_let_go(rig: Rig) -> None:
    half_read(rig)
    done: list[bool] = []
    rig.controller.quiesce(0, 1 << 63, lambda: done.append(True))
    rig.controller.run()
    assert done
    assert not rig.device.held[BULK_IN]
    remap(rig)
    rig.bus.pause(2 * REMAP_SECONDS)
    assert rig.device.held[BULK_IN][0].length == TRB_LIMIT, "without a doorbell"


@pytest.mark.usefixtures("short_runs")
def test_memory_that_is_mapped_anew_between_its_steps(rig: Rig) -> None:
    half_read(rig)
    remap(rig)
    rig.bus.run()
    assert rig.device.held[BULK_IN][0].length == TRB_LIMIT


def test_the_rest_is_not_written_yet(rig: Rig) -> None:
    td = submit(rig, rig.bulk_in, 1000, written=800)
    assert not rig.device.held[BULK_IN]
    write(rig, td, 800, 1000)
    rig.bulk_in.doorbell()
    assert rig.device.held[BULK_IN][0].length == 1000


def test_a_part_of_it_that_ends_with_event_data_will_do(rig: Rig) -> None:
    part = 2 * STEP
    buffer = rig.ram.allocate(1024 * (part + 1), align=4096)
    trbs = [make.normal(buffer + 1024 * index, 1024, CHAIN) for index in range(part)]
    trbs += [make.event_data(0x5EED, CHAIN | IOC), make.normal(buffer + 1024 * part, 1024, IOC)]
    td = rig.bulk_in.submit_trbs(trbs, doorbell=False)
    write(rig, td, part + 1, part + 2)
    rig.bulk_in.doorbell()
    assert rig.device.held[BULK_IN][0].length == 1024 * part


@pytest.mark.parametrize("count", [TRB_LIMIT + 1, TRB_LIMIT + STEP])
def test_one_that_is_too_long_is_a_trb_error(rig: Rig, count: int) -> None:
    bad = submit(rig, rig.bulk_in, count)
    (event,) = rig.events()
    assert (event.pointer, event.completion_code) == (bad.addresses[TRB_LIMIT - 1], spec.CC_TRB_ERROR)
    assert rig.bulk_in.state == spec.EP_ERROR


@pytest.mark.parametrize("wrong", [STEP - 1, STEP, 3 * STEP + 5])
def test_a_wrong_trb_in_any_step_is_named(rig: Rig, wrong: int) -> None:
    trbs = spread(rig, 1000)
    trbs[wrong] = make.normal(0x0800_0000, 1, CHAIN)
    bad = rig.bulk_in.submit_trbs(trbs)
    (event,) = rig.events()
    assert (event.pointer, event.completion_code) == (bad.addresses[wrong], spec.CC_TRB_ERROR)
    assert not rig.device.held[BULK_IN]
