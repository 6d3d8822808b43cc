"""A controller that becomes quiet, and a second one that goes on with what the first has told of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.xhci.isochronous_kit import CONFIGURATION, OUT, pipe, submit
from tests.unit.xhci.kit import (
    BULK_IN,
    BULK_OUT,
    MFINDEX,
    STREAMS,
    USBCMD,
    DirectBus,
    FakeDevice,
    GuestDriver,
    Rig,
    Speed,
    codes,
    of_type,
    reg,
    spec,
    stream_device,
)
from tests.unit.xhci.mapped import MappedBus
from tests.unit.xhci.succession import hand_over, quiet, succeed
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.fake_device import INTERRUPT_IN, INTERRUPT_OUT
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.interrupter import IMOD_UNIT
from usbvfiod_core.xhci.quiescence import ISOCHRONOUS_SECONDS, MOVING_SECONDS

Make = Callable[..., Rig]
CONTEXT_SIZES = (32, 64)
IMOD = reg.interrupter_base(0) + spec.IMOD


def begin(rig: Rig) -> list[bool]:
    """Ask for quiet, and let happen what can; what is returned fills when it is there."""
    done: list[bool] = []
    rig.controller.quiet(lambda: done.append(True))
    rig.bus.run()
    return done


# -- becoming quiet --------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_and_doorbells_are_kept(rig: Rig) -> None:
    quiet(rig.bus)
    rig.device.auto_out.add(BULK_OUT)
    td = rig.bulk_out.submit(b"abc")
    rig.bus.pause(1.0)
    assert rig.device.received[BULK_OUT] == []
    rig.controller = hand_over(rig.bus)
    assert td.result() == b""
    assert rig.device.received[BULK_OUT] == [b"abc"]


def test_a_control_transfer_is_waited_for(rig: Rig) -> None:
    rig.device.answers(0, None)
    td = rig.usb.control.submit_control(SetupPacket(0x80, 6, 0x100, 0, 18))
    done = begin(rig)
    rig.bus.pause(5.0)
    assert done == []
    assert rig.device.cancelled == []
    rig.device.answers(0, b"d" * 18)
    rig.bus.run()
    assert done == [True]
    rig.controller = hand_over(rig.bus)
    assert td.result() == b"d" * 18
    rig.works()


def test_who_is_not_quiet_may_go_on(rig: Rig) -> None:
    """A control transfer takes longer than anybody waits."""
    rig.device.answers(0, None)
    control = rig.usb.control.submit_control(SetupPacket(0x80, 6, 0x100, 0, 18))
    bulk = rig.usb.submit_in(BULK_IN, 64)
    done = begin(rig)
    rig.bus.pause(2.0)
    rig.controller.resume()
    rig.bus.run()
    rig.device.answers(BULK_IN, b"bulk")
    assert bulk.result() == b"bulk"
    rig.device.answers(0, b"d" * 18)
    assert control.result() == b"d" * 18
    rig.bus.pause(1.0)
    assert done == []


def test_a_device_that_keeps_a_transfer_is_given_up_on(rig: Rig) -> None:
    rig.device.cancels = False
    td = rig.usb.submit_in(BULK_IN, 64)
    quiet(rig.bus)
    kept = rig.device.held[BULK_IN].popleft()
    rig.device.cancels = True
    rig.controller = hand_over(rig.bus)
    kept.complete(TransferStatus.COMPLETED, 64)
    rig.device.answers(BULK_IN, b"new")
    assert td.result() == b"new"


def test_what_would_lose_by_being_cancelled_is_waited_for_a_moment(rig: Rig) -> None:
    rig.device.cancel_loses = True
    moving, idle = rig.usb.submit_in(BULK_IN, 64), rig.bulk_out.submit(b"kept")
    done = begin(rig)
    rig.bus.pause(MOVING_SECONDS / 2)
    assert (done, rig.device.cancelled) == ([], [])
    rig.device.answers(BULK_IN, b"moved")
    rig.bus.run()
    assert done == []
    rig.bus.pause(MOVING_SECONDS)
    assert done == [True]
    assert len(rig.device.cancelled) == 1
    rig.device.received[BULK_OUT].clear()
    rig.device.auto_out.add(BULK_OUT)
    rig.controller = hand_over(rig.bus)
    assert moving.result() == b"moved"
    assert idle.result() == b""
    assert rig.device.received[BULK_OUT] == [b"kept"]


def test_interrupt_out_that_would_lose_is_waited_for_and_interrupt_in_is_not(rig: Rig) -> None:
    rig.device.cancel_loses = True
    report, moving = rig.usb.submit_in(INTERRUPT_IN, 8), rig.usb.submit_out(INTERRUPT_OUT, b"beep")
    done = begin(rig)
    rig.bus.pause(MOVING_SECONDS / 2)
    assert done == []
    assert [each.endpoint for each in rig.device.cancelled] == [INTERRUPT_IN]
    rig.device.answers(INTERRUPT_OUT, 4)
    rig.bus.run()
    assert done == [True]
    rig.controller = hand_over(rig.bus)
    assert moving.result() == b""
    assert rig.device.received[INTERRUPT_OUT] == [b"beep"], "once"
    rig.device.answers(INTERRUPT_IN, b"report")
    assert report.result() == b"report"


def test_what_a_device_leaves_under_way_is_not_waited_for(rig: Rig) -> None:
    rig.device.cancel_loses = rig.device.keeps_requests = True
    reading = rig.usb.submit_in(BULK_IN, 64)
    rig.bulk_out.submit(b"not waited for")
    done = begin(rig)
    assert {each.endpoint for each in rig.device.taken_back} == {BULK_IN, BULK_OUT}
    assert rig.device.cancelled == rig.device.taken_back
    assert done == [True]
    rig.controller = hand_over(rig.bus)
    rig.device.answers(BULK_IN, b"read")
    assert reading.result() == b"read"


def test_what_the_driver_stops_is_not_kept(rig: Rig) -> None:
    rig.device.cancel_loses = rig.device.keeps_requests = True
    rig.usb.submit_in(BULK_IN, 64)
    rig.bulk_in.stop()
    assert [each.endpoint for each in rig.device.cancelled] == [BULK_IN]
    assert rig.device.taken_back == []


def test_interrupt_out_that_the_device_does_not_take_is_sent_again(rig: Rig) -> None:
    rig.device.cancel_loses = True
    idle = rig.usb.submit_out(INTERRUPT_OUT, b"beep")
    done = begin(rig)
    rig.bus.pause(MOVING_SECONDS / 2)
    assert (done, rig.device.cancelled) == ([], [])
    rig.bus.pause(MOVING_SECONDS)
    assert done == [True]
    assert [each.endpoint for each in rig.device.cancelled] == [INTERRUPT_OUT]
    rig.device.received[INTERRUPT_OUT].clear()
    rig.device.auto_out.add(INTERRUPT_OUT)
    rig.controller = hand_over(rig.bus)
    assert idle.result() == b""
    assert rig.device.received[INTERRUPT_OUT] == [b"beep"]


def test_a_command_is_waited_for(rig: Rig) -> None:
    rig.device.cancels = False
    rig.usb.submit_in(BULK_IN, 64)
    command = rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    later = rig.submit_command(spec.TRB_NO_OP_COMMAND)
    done = begin(rig)
    assert done == []
    rig.device.finish(rig.device.held[BULK_IN][0], TransferStatus.CANCELLED)
    rig.bus.pause(0.01)
    assert done == [True]
    assert codes(of_type(rig.events(), spec.TRB_COMMAND_COMPLETION)) == [spec.CC_SUCCESS]
    rig.controller = hand_over(rig.bus)
    assert codes(of_type(rig.events(), spec.TRB_COMMAND_COMPLETION)) == [spec.CC_SUCCESS], "the one behind it"
    assert command.trb is not later.trb


def test_a_reset_of_a_port_is_waited_for(rig: Rig) -> None:
    rig.device.holds_reset = True
    portsc = reg.port_base(rig.port_id) + spec.PORTSC
    rig.bus.write(portsc, rig.bus.read(portsc) & spec.PORTSC_PP | spec.PORTSC_PR)
    done = begin(rig)
    rig.bus.pause(1.0)
    assert done == []
    rig.device.finish_reset()
    rig.bus.pause(0.01)
    assert done == [True]
    rig.controller = hand_over(rig.bus)
    assert rig.bus.read(portsc) & (spec.PORTSC_PR | spec.PORTSC_PRC) == spec.PORTSC_PRC
    assert rig.device.resets == 2, "the second controller does not reset it again"


def test_a_reset_that_was_asked_for_while_quiet_is_done_afterwards(rig: Rig) -> None:
    quiet(rig.bus)
    portsc = reg.port_base(rig.port_id) + spec.PORTSC
    rig.bus.write(portsc, rig.bus.read(portsc) & spec.PORTSC_PP | spec.PORTSC_PR)
    assert rig.device.resets == 1
    rig.controller = hand_over(rig.bus)
    assert rig.device.resets == 2
    assert rig.bus.read(portsc) & (spec.PORTSC_PR | spec.PORTSC_PRC) == spec.PORTSC_PRC


# -- going on --------------------------------------------------------------------------------------------------------


def test_halted_and_stopped_endpoints_stay_so(rig: Rig) -> None:
    td = rig.usb.submit_in(BULK_IN, 64)
    rig.device.answers(BULK_IN, TransferStatus.STALL)
    rig.handle()
    rig.bulk_out.stop()
    succeed(rig)
    assert (rig.bulk_in.state, rig.bulk_out.state) == (spec.EP_HALTED, spec.EP_STOPPED)
    assert td.completion_code == spec.CC_STALL
    rig.bulk_in.recover()
    rig.works()


def test_streams(make_rig: Make) -> None:
    rig = make_rig(device=stream_device())
    rig.usb.alloc_streams(0, STREAMS)
    tds = [rig.usb.stream(BULK_IN, number).submit(length=64) for number in (1, 5, STREAMS)]
    late: list[Any] = []
    quiet(rig.bus, lambda: late.append(rig.usb.stream(BULK_IN, 7).submit(length=64)))
    assert rig.device.in_flight == 0
    rig.controller = hand_over(rig.bus)
    held = {transfer.stream_id: transfer for transfer in rig.device.held[BULK_IN]}
    assert sorted(held) == [1, 5, 7, STREAMS]
    for number, transfer in held.items():
        rig.device.finish(transfer, b"stream %d" % number)
    rig.handle()
    found = [td.result() for td in (*tds, *late)]
    assert found == [b"stream 1", b"stream 5", b"stream %d" % STREAMS, b"stream 7"]


def test_isochronous_transfers_end_by_themselves(make_rig: Make) -> None:
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]))
    tds = [submit(rig, OUT) for _ in range(4)]
    done = begin(rig)
    assert done == []
    rig.device.answers(OUT, *[TransferStatus.COMPLETED] * 4)
    rig.bus.run()
    assert done == [True]
    assert rig.device.cancelled == []
    assert codes(rig.events()) == [spec.CC_SUCCESS] * 4, "no underrun is told: the driver could not know"
    rig.controller = hand_over(rig.bus)
    assert codes(rig.events()) == [spec.CC_RING_UNDERRUN]
    assert len(rig.device.received[OUT]) == len(tds)
    assert pipe(rig, OUT).state == spec.EP_RUNNING


def test_isochronous_transfers_that_take_long_are_taken_back(make_rig: Make) -> None:
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]))
    td = submit(rig, OUT)
    done = begin(rig)
    rig.bus.pause(ISOCHRONOUS_SECONDS * 1.1)
    assert done == [True]
    rig.controller = hand_over(rig.bus)
    rig.device.answers(OUT, TransferStatus.COMPLETED)
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS


def test_a_device_that_is_not_there_any_more_is_unplugged(rig: Rig) -> None:
    other = FakeDevice(Speed.SUPER)
    port_id = rig.bus.plug(other)
    second = rig.driver.enumerate(port_id)
    td = second.submit_in(BULK_IN, 64)
    rig.usb.submit_in(BULK_IN, 64)
    there = {port_id: other}
    succeed(rig, device_of=there.get)
    assert not rig.driver.port(rig.port_id).connected
    assert not rig.device.closed, "whoever has kept it decides what becomes of it"
    other.answers(BULK_IN, b"still")
    assert td.result() == b"still"
    rig.driver.handle_events()
    rig.usb.disable()
    again = FakeDevice()
    rig.device, rig.port_id = again, rig.bus.plug(again)
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_events_that_a_full_ring_has_kept_come_later(make_rig: Make) -> None:
    rig = make_rig(event_segments=(16,), ring_trbs=256)
    rig.device.auto_out.add(BULK_OUT)
    tds = [rig.bulk_out.submit(bytes([number]), doorbell=False) for number in range(100)]
    rig.bulk_out.doorbell()
    for _ in range(5):
        succeed(rig)
    while rig.driver.handle_events():
        succeed(rig)
    assert [td.completion_code for td in tds] == [spec.CC_SUCCESS] * 100
    assert rig.device.received[BULK_OUT] == [bytes([number]) for number in range(100)]


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_an_interrupt_that_waits_for_its_time_is_sent_once(make_rig: Make, mechanism: Mechanism) -> None:
    rig = make_rig(bus=DirectBus(interrupts=mechanism))
    rig.device.auto_out.add(BULK_OUT)
    rig.bus.write(IMOD, 0xFFFF)
    rig.bus.pause(1.0)
    rig.driver.handle_events()
    rig.bulk_out.submit(b"first")
    rig.driver.handle_events()
    rig.bus.signals[:] = [0] * len(rig.bus.signals)
    rig.bulk_out.submit(b"second")
    succeed(rig)
    assert rig.bus.signals[0] == 0
    rig.bus.pause(0xFFFF * IMOD_UNIT * 1.1)
    assert rig.bus.signals[0] == 1
    rig.bus.pause(1.0)
    assert rig.bus.signals[0] == 1
    assert rig.driver.handle_events() == 1


def test_interrupts_that_the_driver_has_not_taken_are_told_once(make_rig: Make) -> None:
    for mechanism in Mechanism:
        rig = make_rig(bus=DirectBus(interrupts=mechanism))
        rig.device.auto_out.add(BULK_OUT)
        rig.bus.signals[:] = [0] * len(rig.bus.signals)
        rig.bulk_out.submit(b"x")
        told = rig.bus.signals[0]
        succeed(rig)
        assert rig.bus.signals[0] == told
        rig.driver.handle_events()
        rig.works()


def test_mapped_registers_go_on() -> None:
    rig = Rig(bus=MappedBus())
    rig.device.auto_out.add(BULK_OUT)
    for number in range(20):
        td = rig.bulk_out.submit(bytes([number]))
        quiet(rig.bus)
        rig.driver.handle_events()
        rig.controller = hand_over(rig.bus)
        assert td.result() == b""
    rig.works()
    rig.close()


def test_a_saved_controller_is_restored_by_the_next(rig: Rig) -> None:
    rig.driver.halt()
    rig.bus.write(USBCMD, spec.USBCMD_CSS)
    succeed(rig)
    rig.bus.write(USBCMD, spec.USBCMD_CRS)
    assert not rig.usbsts & spec.USBSTS_SRE
    rig.driver.run()
    rig.works()


def test_a_controller_that_has_failed_stays_so_until_a_reset(rig: Rig) -> None:
    rig.controller.host_controller_error("of a test")
    succeed(rig)
    assert rig.usbsts & spec.USBSTS_HCE
    rig.bus.write(USBCMD, spec.USBCMD_RS)
    assert rig.usbsts & spec.USBSTS_HCH
    rig.driver.start()
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_the_bus_time_goes_on(rig: Rig) -> None:
    command = rig.bus.read(USBCMD)
    rig.bus.write(USBCMD, command | spec.USBCMD_EWE)
    rig.events()
    before, at = rig.bus.read(MFINDEX), rig.bus.clock()
    quiet(rig.bus)
    rig.controller = hand_over(rig.bus, seconds=0.75)
    passed = round((rig.bus.clock() - at) / spec.MICROFRAME)
    assert abs((rig.bus.read(MFINDEX) - before - passed + 0x2000 & 0x3FFF) - 0x2000) <= 2
    rig.bus.pause(2.0)
    wraps = (before + round((rig.bus.clock() - at) / spec.MICROFRAME)) // 0x4000
    assert len(of_type(rig.events(), spec.TRB_MFINDEX_WRAP)) == wraps


@pytest.mark.parametrize("refused", [False, True])
def test_a_wrap_that_comes_while_it_stands_still_is_told_afterwards(rig: Rig, refused: bool) -> None:
    rig.bus.write(USBCMD, rig.bus.read(USBCMD) | spec.USBCMD_EWE)
    rig.events()
    rig.bus.pause((0x4000 - rig.bus.read(MFINDEX) - 100) * spec.MICROFRAME)
    quiet(rig.bus)
    if refused:
        rig.bus.pause(0.1)
        assert of_type(rig.events(), spec.TRB_MFINDEX_WRAP) == []
        rig.controller.resume()
        rig.bus.run()
    else:
        rig.controller = hand_over(rig.bus, seconds=0.1)
    assert len(of_type(rig.events(), spec.TRB_MFINDEX_WRAP)) == 1
    rig.bus.pause(0x4000 * spec.MICROFRAME)
    assert len(of_type(rig.events(), spec.TRB_MFINDEX_WRAP)) == 1


def test_255_ports() -> None:
    bus = DirectBus(usb2_ports=100, usb3_ports=155)
    driver = GuestDriver(bus).start()
    fakes = {bus.plug(fake): fake for fake in (FakeDevice(Speed.SUPER) for _ in range(155))}
    devices = {port_id: driver.enumerate(port_id) for port_id in fakes}
    tds = {port_id: device.submit_in(BULK_IN, 8) for port_id, device in devices.items()}
    quiet(bus)
    hand_over(bus)
    for port_id, fake in fakes.items():
        fake.answers(BULK_IN, b"%d" % port_id)
    driver.handle_events()
    assert {port_id: td.result() for port_id, td in tds.items()} == {port_id: b"%d" % port_id for port_id in fakes}
    bus.close()


def test_memory_that_is_unmapped_for_a_moment(rig: Rig) -> None:
    td = rig.usb.submit_in(BULK_IN, 64)
    rig.controller.quiesce(0, 1 << 62, lambda: None)
    assert rig.controller.memory_expected
    succeed(rig)
    rig.bus.pause(0.2)
    assert not rig.controller.memory_expected
    rig.device.answers(BULK_IN, b"back")
    assert td.result() == b"back"
