"""The command ring: CRCR, order, stop and abort (4.6.1, 4.9.3, 5.4.5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, CRCR, Rig, codes, make, of_type, spec
from usbvfiod_core.testing.driver import ProducerRing
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci import coverage

NO_OP = make.command(spec.TRB_NO_OP_COMMAND)


def test_commands_complete_in_order_each_with_its_pointer(rig: Rig) -> None:
    queued = [rig.driver.commands.submit(NO_OP, doorbell=False) for _ in range(20)]
    assert rig.events() == []
    rig.driver.ring_doorbell(0, 0)
    events = rig.events()
    assert [event.pointer for event in events] == [command.address for command in queued]
    assert {(event.completion_code, event.slot_id) for event in events} == {(spec.CC_SUCCESS, 0)}


def test_more_commands_than_one_run_takes(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(command_trbs=256)
    for _ in range(200):
        rig.driver.commands.submit(NO_OP, doorbell=False)
    rig.driver.ring_doorbell(0, 0)
    rig.handle()
    assert not rig.driver.commands.queue


def test_crr_is_set_by_the_doorbell_and_cleared_by_halting(rig: Rig) -> None:
    assert rig.bus.read(CRCR) == spec.CRCR_CRR
    rig.driver.halt()
    assert rig.bus.read(CRCR) == 0
    rig.driver.run()
    assert rig.bus.read(CRCR) == 0
    rig.driver.commands.no_op()
    assert rig.bus.read(CRCR, 8) == spec.CRCR_CRR


REFUSED = [number for number, row in coverage.COMMAND_TRBS.items() if isinstance(row, coverage.Refused)]


@pytest.mark.parametrize("type", [0, 1, 6 + 34, *REFUSED, 32, 48, 49, 63])
def test_commands_that_are_unknown_or_not_supported(rig: Rig, type: int) -> None:
    event = rig.driver.command(make.trb(type))
    assert event.completion_code == spec.CC_TRB_ERROR
    rig.driver.commands.no_op()


def test_a_pointer_is_ignored_while_the_ring_runs(rig: Rig) -> None:
    rig.driver.write_operational_64(spec.CRCR, 0xDEAD_0000 | spec.CRCR_RCS)
    rig.driver.commands.no_op()


def test_a_new_ring_when_it_has_stopped(rig: Rig) -> None:
    rig.driver.commands.stop()
    rig.driver.commands.ring = ProducerRing(rig.ram, 32, high=True)
    rig.driver.write_operational_64(spec.CRCR, rig.driver.commands.ring.base | spec.CRCR_RCS)
    rig.driver.commands.no_op()


@pytest.mark.parametrize("flag", [spec.CRCR_CS, spec.CRCR_CA, spec.CRCR_CS | spec.CRCR_CA])
def test_stopping_an_idle_ring(rig: Rig, flag: int) -> None:
    rig.bus.write(CRCR, flag)
    (event,) = rig.events()
    assert (event.type, event.completion_code) == (spec.TRB_COMMAND_COMPLETION, spec.CC_COMMAND_RING_STOPPED)
    assert event.pointer == rig.driver.commands.ring.enqueue
    assert rig.bus.read(CRCR) == 0
    rig.driver.commands.no_op()


def waiting_stop(rig: Rig) -> None:
    """A Stop Endpoint command that waits for the device."""
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)


def test_a_command_that_waits_holds_the_ones_behind_it_and_nothing_else(rig: Rig) -> None:
    waiting_stop(rig)
    rig.driver.commands.submit(NO_OP)
    assert rig.events() == []
    assert rig.bus.read(CRCR) == spec.CRCR_CRR
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert codes(rig.events()) == [spec.CC_STOPPED, spec.CC_SUCCESS, spec.CC_SUCCESS]


def test_command_stop_waits_for_the_command_in_progress(rig: Rig) -> None:
    waiting_stop(rig)
    behind = rig.driver.commands.submit(NO_OP)
    rig.bus.write(CRCR, spec.CRCR_CS)
    assert rig.events() == []
    assert rig.bus.read(CRCR) & spec.CRCR_CRR
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    events = of_type(rig.events(), spec.TRB_COMMAND_COMPLETION)
    assert codes(events) == [spec.CC_SUCCESS, spec.CC_COMMAND_RING_STOPPED]
    assert events[1].pointer == behind.address, "the command that is executed next"
    assert not rig.bus.read(CRCR)
    rig.driver.ring_doorbell(0, 0)
    assert [event.pointer for event in rig.events()] == [behind.address]


def test_command_abort_gives_up_on_the_command_in_progress(rig: Rig) -> None:
    waiting_stop(rig)
    stop = rig.driver.commands.queue[0]
    behind = rig.driver.commands.submit(NO_OP)
    rig.bus.write(CRCR, spec.CRCR_CA)
    events = rig.events()
    assert codes(events) == [spec.CC_COMMAND_ABORTED, spec.CC_COMMAND_RING_STOPPED]
    assert [event.pointer for event in events] == [stop.address, behind.address]
    assert events[0].slot_id == rig.slot_id
    rig.driver.ring_doorbell(0, 0)
    assert codes(rig.events()) == [spec.CC_SUCCESS]
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert of_type(rig.events(), spec.TRB_COMMAND_COMPLETION) == [], "no second completion of what was aborted"


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("qword", [False, True])
def test_linux_aborts_with_its_next_trb_in_the_pointer(rig: Rig, batch: bool, qword: bool) -> None:
    """It writes pointer and CA in two halves; whether the pointer counts or not, the ring goes on at that TRB."""
    waiting_stop(rig)
    behind = rig.driver.commands.submit(NO_OP)
    value = behind.address | spec.CRCR_CA
    rig.driver.qword_writes = qword
    if batch:
        with rig.bus.together():
            rig.driver.write_operational_64(spec.CRCR, value)
    else:
        rig.driver.write_operational_64(spec.CRCR, value)
    assert codes(rig.events()) == [spec.CC_COMMAND_ABORTED, spec.CC_COMMAND_RING_STOPPED]
    rig.driver.ring_doorbell(0, 0)
    assert [event.pointer for event in rig.events()] == [behind.address]


def test_linux_aborts_a_ring_above_4_gib(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.driver.commands.stop()
    rig.driver.commands.ring = ring = ProducerRing(rig.ram, 32, high=True)
    rig.driver.write_operational_64(spec.CRCR, ring.base | spec.CRCR_RCS)
    rig.driver.commands.no_op()
    waiting_stop(rig)
    rig.driver.write_operational_64(spec.CRCR, ring.enqueue | spec.CRCR_CA)
    rig.events()
    rig.driver.commands.queue.clear()
    rig.driver.commands.no_op()


@pytest.mark.parametrize("order", ["low, high", "high, low", "8 bytes"])
def test_a_new_ring_after_a_lone_low_write_stopped_the_old_one(rig: Rig, order: str) -> None:
    rig.bus.write(CRCR, spec.CRCR_CS)
    rig.events()
    rig.driver.commands.ring = ring = ProducerRing(rig.ram, 32, high=True)
    value = ring.base | spec.CRCR_RCS
    if order == "8 bytes":
        rig.bus.write(CRCR, value, 8)
    else:
        halves = [(CRCR, value & 0xFFFF_FFFF), (CRCR + 4, value >> 32)]
        for offset, half in halves if order == "low, high" else reversed(halves):
            rig.bus.write(offset, half)
    rig.driver.commands.no_op()


def test_the_position_survives_a_stop_and_a_halt(rig: Rig) -> None:
    for _ in range(3):
        rig.driver.commands.no_op()
        rig.driver.commands.stop()
        rig.driver.commands.no_op()
        rig.driver.halt()
        rig.driver.run()
    rig.works()


@pytest.mark.parametrize("kind", ["loop", "outside"])
def test_a_broken_command_ring_stops_the_controller_until_a_reset(rig: Rig, kind: str) -> None:
    rig.driver.commands.stop()
    ring = ProducerRing(rig.ram, 16)
    ring.write(ring.base, make.trb(spec.TRB_LINK, ring.base if kind == "loop" else 0xDEAD_0000, 0, 1))
    rig.driver.write_operational_64(spec.CRCR, ring.base | 1)
    rig.driver.ring_doorbell(0, 0)
    assert rig.usbsts & (spec.USBSTS_HSE | spec.USBSTS_HCE)
    assert rig.usbsts & spec.USBSTS_HCH
    rig.driver.start()
    rig.driver.commands.no_op()


def test_a_link_with_ioc_on_the_command_ring(rig: Rig) -> None:
    rig.driver.commands.stop()
    ring = ProducerRing(rig.ram, 16)
    link = ring.push(make.link(ring.base + 0x80, spec.TRB_IOC))
    ring.write(ring.base + 0x80, make.trb(spec.TRB_NO_OP_COMMAND, control=1))
    rig.driver.write_operational_64(spec.CRCR, ring.base | 1)
    rig.driver.ring_doorbell(0, 0)
    assert [event.pointer for event in rig.events()] == [link, ring.base + 0x80]


def test_a_doorbell_while_halted_is_ignored(rig: Rig) -> None:
    rig.driver.halt()
    queued = rig.driver.commands.submit(NO_OP)
    assert rig.events() == []
    rig.driver.run()
    assert rig.events() == []
    rig.driver.ring_doorbell(0, 0)
    assert [event.pointer for event in rig.events()] == [queued.address]


@pytest.mark.parametrize("target", [1, 2, 31, 255])
def test_doorbell_0_has_one_target(rig: Rig, target: int) -> None:
    rig.driver.commands.submit(NO_OP, doorbell=False)
    rig.driver.ring_doorbell(0, target)
    assert rig.events() == []
