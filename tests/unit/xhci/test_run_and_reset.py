"""Starting, halting and resetting the controller at any time (4.2, 4.23, 5.4.1), and what it does when memory fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import (
    BULK_IN,
    BULK_OUT,
    CRCR,
    USBCMD,
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
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.controller import HALT_SECONDS
from usbvfiod_core.xhci.engine import CANCEL_TIMEOUT

CONTEXT_SIZES = (32, 64)

RS, HCRST, INTE = spec.USBCMD_RS, spec.USBCMD_HCRST, spec.USBCMD_INTE
HCH, CNR, HSE, HCE = spec.USBSTS_HCH, spec.USBSTS_CNR, spec.USBSTS_HSE, spec.USBSTS_HCE


def enumerate_again(rig: Rig) -> None:
    """The driver starts over after a reset, and finds the device."""
    rig.driver.start()
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


# -- HCRST -------------------------------------------------------------------------------------------------------


def test_every_register_has_its_reset_value_after_hcrst(rig: Rig, context_size: int) -> None:
    fresh = DirectBus(context_size=context_size)
    rig.bus.unplug(rig.port_id)
    rig.bus.write(USBCMD, HCRST)
    for offset in range(0, reg.REGISTER_SPACE, 4):
        assert rig.bus.read(offset) == fresh.read(offset), hex(offset)
    fresh.close()


@pytest.mark.parametrize("speed", [Speed.HIGH, Speed.SUPER])
def test_hcrst_while_running(make_rig: Callable[..., Rig], speed: Speed) -> None:
    """SeaBIOS and Windows reset without halting first; a device that is there is seen as newly connected."""
    rig = make_rig(speed)
    rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, HCRST | RS | INTE)
    assert rig.bus.read(USBCMD) == 0
    assert rig.usbsts & (HCH | CNR) == HCH
    assert rig.device.in_flight == 0
    assert rig.port.portsc & (spec.PORTSC_CCS | spec.PORTSC_CHANGES) == spec.PORTSC_CCS | spec.PORTSC_CSC
    assert rig.port.enabled == (speed is Speed.SUPER)
    enumerate_again(rig)


def test_hcrst_waits_for_transfers_with_cnr(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, HCRST)
    assert rig.usbsts & (CNR | HCH) == CNR | HCH
    assert rig.bus.read(USBCMD) & HCRST
    rig.device.answers(BULK_IN, b"late")
    rig.bus.run()
    assert rig.usbsts & (CNR | HCH) == HCH, "it is done as soon as the transfer is back"
    assert rig.bus.read(USBCMD) == 0
    rig.device.cancels = True
    enumerate_again(rig)


@pytest.mark.parametrize("value", [RS, RS | INTE, HCRST, HCRST | RS])
def test_writes_while_a_reset_is_under_way_start_nothing(rig: Rig, value: int) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, HCRST)
    rig.bus.write(USBCMD, value)
    rig.bus.write(CRCR, spec.CRCR_CA)
    rig.driver.ring_doorbell(0, 0)
    rig.driver.ring_doorbell(rig.slot_id, 1)
    assert rig.usbsts & (CNR | HCH) == CNR | HCH
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert rig.usbsts & (CNR | HCH) == HCH
    rig.device.cancels = True
    enumerate_again(rig)


def test_hcrst_with_a_device_that_keeps_its_transfer(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, HCRST)
    rig.bus.pause(CANCEL_TIMEOUT)
    assert rig.usbsts & CNR == 0
    assert rig.bus.read(USBCMD) == 0


@pytest.mark.parametrize(
    "command",
    [spec.TRB_STOP_ENDPOINT, spec.TRB_DISABLE_SLOT, spec.TRB_RESET_DEVICE, spec.TRB_CONFIGURE_ENDPOINT],
)
@pytest.mark.parametrize("batch", [False, True])
def test_hcrst_overtakes_a_command_that_waits(rig: Rig, command: int, batch: bool) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    flags = spec.TRB_DC if command == spec.TRB_CONFIGURE_ENDPOINT else 0
    rig.submit_command(command, dci=rig.bulk_in.dci if command == spec.TRB_STOP_ENDPOINT else 0, flags=flags)
    if batch:  # the transfer is back, but nobody has looked yet
        with rig.bus.together():
            rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
            rig.bus.write(USBCMD, HCRST)
    else:
        rig.bus.write(USBCMD, HCRST)
        assert rig.usbsts & CNR, "the transfers of what is being disabled are awaited, too"
        rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
        rig.bus.run()
    assert rig.usbsts & CNR == 0
    rig.device.cancels = True
    rig.driver.commands.queue.clear()
    enumerate_again(rig)


def test_hcrst_with_a_full_event_ring(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(event_segments=(16,))
    rig.device.auto_out.add(BULK_OUT)
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    for _ in range(40):
        rig.bulk_out.submit_trbs([make.immediate(b"x", spec.TRB_IOC)])
    rig.bus.write(USBCMD, HCRST)
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert rig.usbsts & CNR == 0
    rig.device.cancels = True
    enumerate_again(rig)


def test_hcrst_during_a_port_reset(rig: Rig) -> None:
    rig.device.holds_reset = True
    rig.port.write(spec.PORTSC_PR)
    rig.bus.write(USBCMD, HCRST)
    assert rig.port.portsc & (spec.PORTSC_PR | spec.PORTSC_PED) == 0
    rig.device.finish_reset()
    assert rig.port.portsc & (spec.PORTSC_PR | spec.PORTSC_PED | spec.PORTSC_PRC) == 0
    rig.device.holds_reset = False
    enumerate_again(rig)


def test_unplugged_while_a_reset_waits(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, HCRST)
    rig.bus.unplug(rig.port_id)
    assert not rig.device.closed
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert rig.device.closed
    assert rig.usbsts & CNR == 0
    assert not rig.port.connected


def test_device_reset_is_done_when_the_transfers_are_back(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    done: list[int] = []
    rig.controller.reset(lambda: done.append(1))
    rig.controller.reset(lambda: done.append(2))
    rig.bus.run()
    assert done == []
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert done == [1, 2]
    assert not rig.device.closed, "the device stays"
    rig.controller.reset(lambda: done.append(3))
    assert done == [1, 2, 3]


def test_device_reset_while_a_command_waits_and_the_memory_goes(rig: Rig) -> None:
    """The client is gone in the middle of a Disable Slot."""
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.submit_command(spec.TRB_DISABLE_SLOT)
    done: list[int] = []
    rig.bus.memory.unmap_all()
    rig.controller.reset(lambda: done.append(1))
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert done == [1]
    assert rig.usbsts & (HCH | HSE | CNR) == HCH


# -- RS ----------------------------------------------------------------------------------------------------------


def test_halting_takes_transfers_back_and_starting_goes_on(rig: Rig) -> None:
    tds = [rig.bulk_in.submit(length=8) for _ in range(3)]
    for _ in range(3):
        rig.driver.halt()
        assert rig.device.in_flight == 0
        assert rig.bulk_in.state == spec.EP_RUNNING
        assert rig.events() == []
        rig.driver.run()
        assert rig.device.in_flight == 3, "fetched again without a doorbell"
    rig.device.answers(BULK_IN, b"1", b"2", b"3")
    rig.handle()
    assert [td.data for td in tds] == [b"1", b"2", b"3"]


def test_halted_within_16_ms_whatever_the_device_does(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, INTE)
    assert not rig.usbsts & HCH
    rig.bus.pause(HALT_SECONDS)
    assert rig.usbsts & HCH
    assert not caplog.records  # it may well be on its way


def test_what_was_done_when_it_halts_is_reported(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=4)
    rig.bus.write(USBCMD, INTE)
    rig.device.answers(BULK_IN, b"data")
    rig.bus.run()
    assert rig.usbsts & HCH
    assert codes(rig.events()) == [spec.CC_SUCCESS]


def test_started_again_before_all_transfers_are_back(rig: Rig) -> None:
    rig.device.cancels = False
    td = rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, INTE)
    rig.bus.pause(HALT_SECONDS)
    rig.bus.write(USBCMD, RS | INTE)
    assert rig.running
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert rig.device.in_flight == 1, "it goes on without a doorbell"
    rig.device.answers(BULK_IN, b"at last")
    rig.handle()
    assert td.data == b"at last"


def test_back_and_forth_in_one_batch(rig: Rig) -> None:
    td = rig.bulk_in.submit(length=8)
    with rig.bus.together():
        rig.bus.write(USBCMD, INTE)
        rig.bus.write(USBCMD, RS | INTE)
    assert rig.running
    rig.device.answers(BULK_IN, b"ok")
    rig.handle()
    assert td.data == b"ok"
    rig.works()


def test_nothing_is_fetched_while_it_is_halting(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bus.write(USBCMD, INTE)
    assert not rig.usbsts & HCH
    rig.bulk_out.submit(b"x")
    rig.driver.commands.submit(make.command(spec.TRB_NO_OP_COMMAND))
    assert rig.device.held[BULK_OUT] == rig.device.held[0x04]
    assert rig.events() == []
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert rig.usbsts & HCH
    assert rig.device.in_flight == 0


def test_doorbells_while_halted_are_ignored(rig: Rig) -> None:
    rig.driver.halt()
    rig.bulk_in.submit(length=8)
    assert rig.device.in_flight == 0
    assert rig.events() == []


# -- errors of memory (4.24.1) -------------------------------------------------------------------------------------


def test_no_access_to_memory_without_bus_master(rig: Rig) -> None:
    rig.controller.bus_master = False
    rig.bulk_in.submit(length=8)
    assert rig.usbsts & (HSE | HCH) == HSE | HCH
    assert rig.device.in_flight == 0
    rig.controller.bus_master = True
    enumerate_again(rig)


def test_registers_are_written_before_bus_master_is_set(bus: DirectBus) -> None:
    bus.controller.bus_master = False
    driver = GuestDriver(bus)
    driver.reset()
    driver.set_up()
    table = driver.event_rings[0].table
    driver.ram.write(table, bytes(16))  # what is here when RS is set counts
    bus.run()
    assert bus.read(USBSTS) == HCH
    driver.ram.write_u64(table, driver.event_rings[0].dequeue)
    driver.ram.write_u64(table + 8, 256)
    bus.controller.bus_master = True
    driver.run()
    driver.commands.no_op()


@pytest.mark.parametrize("lost", ["event ring", "context"])
def test_memory_that_is_gone_is_a_host_system_error(rig: Rig, lost: str) -> None:
    rig.bulk_in.submit(length=8)
    rig.usb.pipe(0x83).submit(length=8)
    if lost == "event ring":
        rig.bus.memory.unmap_all()
        rig.device.answers(BULK_IN, b"x")
    else:
        view = rig.ram.window(rig.ram.spans[0].address, rig.ram.spans[0].size)
        page = rig.usb.context.address & ~0xFFF
        rig.bus.memory.unmap_all()
        rig.bus.memory.map_buffer(rig.ram.spans[0].address, view[: page - rig.ram.spans[0].address])
        rig.device.answers(BULK_IN, TransferStatus.STALL)
    rig.bus.run()
    assert rig.usbsts & (HSE | HCH) == HSE | HCH
    assert rig.bus.read(USBCMD) & RS == 0
    assert rig.device.in_flight == 0, "nothing is in flight after an error"
    rig.bus.write(USBCMD, RS)
    assert rig.usbsts & HCH, "only a reset helps"
    rig.bus.memory.unmap_all()
    for span in rig.ram.spans:
        rig.bus.memory.map_buffer(span.address, rig.ram.window(span.address, span.size))
    rig.bus.write(USBSTS, HSE)
    assert rig.usbsts & (HSE | HCH) == HCH
    enumerate_again(rig)


def test_an_error_of_memory_leaves_no_endpoint_waiting(rig: Rig) -> None:
    """Nobody accesses a register when a transfer ends by itself: what drains is done in the same run."""
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bulk_out.submit(b"x")
    rig.controller.bus_master = False
    rig.device.finish(rig.device.held[BULK_OUT][0], 1)
    rig.bus.loop.run_ready()
    assert not any(endpoint.draining for endpoint in rig.controller.table.endpoints())
    assert rig.usbsts & (HSE | HCH) == HSE | HCH


def test_a_command_that_fails_on_memory_later_takes_nothing_else_down(rig: Rig) -> None:
    """The context array is gone when the transfers that Disable Slot waits for come back."""
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.submit_command(spec.TRB_DISABLE_SLOT)
    rig.bus.write(reg.OPERATIONAL_BASE + spec.DCBAAP, 0xDEAD_0000, 8)
    rig.bus.pause(CANCEL_TIMEOUT)
    assert rig.usbsts & HSE
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.device.cancels = True
    enumerate_again(rig)


# -- CSS, CRS (4.23.2) ---------------------------------------------------------------------------------------------


def test_save_and_restore(rig: Rig) -> None:
    rig.usb.stop()
    rig.driver.halt()
    rig.bus.write(USBCMD, spec.USBCMD_CSS)
    assert rig.usbsts & (spec.USBSTS_SSS | spec.USBSTS_SRE) == 0
    rig.bus.write(USBCMD, spec.USBCMD_CRS)
    assert rig.usbsts & (spec.USBSTS_RSS | spec.USBSTS_SRE) == 0
    rig.driver.run()
    rig.works()


def restored_registers() -> list[int]:
    """What a driver writes back between CSS and CRS (4.23.2), in the order of the section."""
    operational = [reg.OPERATIONAL_BASE + offset for offset in (spec.DNCTRL, spec.DCBAAP, spec.DCBAAP + 4, spec.CONFIG)]
    runtime = (spec.IMAN, spec.IMOD, spec.ERSTSZ, spec.ERSTBA, spec.ERSTBA + 4, spec.ERDP, spec.ERDP + 4)
    return operational + [reg.interrupter_base(index) + offset for index in range(8) for offset in runtime]


@pytest.mark.parametrize("order", [1, -1])
def test_a_driver_that_writes_every_register_back_before_restoring(rig: Rig, order: int) -> None:
    """Writing ERSTBA begins an event ring anew, but Restore State brings the saved position and cycle back."""
    for _ in range(300):  # into the second round of the event ring
        rig.driver.commands.no_op()
    values = {offset: rig.bus.read(offset) for offset in restored_registers()}
    for _ in range(3):
        rig.usb.stop()
        rig.driver.halt()
        rig.bus.write(USBCMD, spec.USBCMD_CSS)
        values.update({offset: rig.bus.read(offset) for offset in restored_registers()})
        for offset in restored_registers()[::order]:
            rig.bus.write(offset, 0)
        for offset in restored_registers()[::order]:
            rig.bus.write(offset, values[offset])
        rig.bus.write(USBCMD, spec.USBCMD_CRS)
        assert not rig.usbsts & spec.USBSTS_SRE
        rig.driver.run()
        rig.works()


@pytest.mark.parametrize("bit", [spec.USBCMD_CSS, spec.USBCMD_CRS])
def test_saving_or_restoring_while_it_runs_is_an_error(rig: Rig, bit: int) -> None:
    rig.bus.write(USBCMD, rig.bus.read(USBCMD) | bit)
    assert rig.usbsts & spec.USBSTS_SRE
    assert rig.running
    rig.works()


def test_restore_of_what_was_never_saved(rig: Rig) -> None:
    rig.driver.halt()
    rig.bus.write(USBCMD, spec.USBCMD_CSS)
    rig.driver.reset()
    rig.bus.write(USBCMD, spec.USBCMD_CRS)
    assert rig.usbsts & spec.USBSTS_SRE
    rig.bus.write(USBSTS, spec.USBSTS_SRE)
    assert not rig.usbsts & spec.USBSTS_SRE
    enumerate_again(rig)


def test_other_devices_go_on_when_one_is_reset(rig: Rig) -> None:
    other = FakeDevice(Speed.SUPER)
    second = rig.driver.enumerate(rig.bus.plug(other))
    td = second.submit_in(BULK_IN, 8)
    rig.usb.reset()
    rig.usb.disable()
    rig.bus.unplug(rig.port_id)
    other.answers(BULK_IN, b"still")
    assert td.result() == b"still"
    assert of_type(rig.events(), spec.TRB_TRANSFER_EVENT) == []


# -- a driver that believes that the controller runs (a VM that was restored beside another one) ---------------------


@pytest.mark.parametrize(("doorbell", "target"), [(0, 0), (1, 1), (3, 4), (8, 31)])
def test_a_doorbell_before_anything_else_is_a_host_controller_error(doorbell: int, target: int) -> None:
    bus = DirectBus()
    bus.plug(FakeDevice())
    bus.write(reg.DOORBELL_BASE + 4 * doorbell, target)
    assert bus.read(USBSTS) & (HCH | HSE | HCE) == HCH | HCE
    assert bus.read(USBSTS) & spec.USBSTS_EINT, "or Linux takes the interrupt for another device's"
    assert bus.signals[0] == 1, "though the driver has enabled none"
    bus.write(reg.DOORBELL_BASE + 4 * doorbell, target)
    assert bus.signals[0] == 1
    bus.write(USBCMD, RS | INTE)
    assert bus.read(USBSTS) & (HCH | HCE) == HCH | HCE, "only a reset helps"
    driver = GuestDriver(bus).start()
    assert not bus.read(USBSTS) & HCE
    assert driver.enumerate(1).descriptor is not None
    bus.close()


@pytest.mark.parametrize("first", [HCRST, 0, INTE])
def test_a_driver_that_begins_may_ring_doorbells_in_any_order(first: int) -> None:
    """All drivers write USBCMD before they ring: Linux, FreeBSD, EDK II, SeaBIOS and U-Boot halt or reset it first."""
    bus = DirectBus()
    bus.write(USBCMD, first)
    bus.write(reg.DOORBELL_BASE, 0)
    bus.write(reg.DOORBELL_BASE + 4, 1)
    assert bus.read(USBSTS) & (HCH | HSE | HCE) == HCH
    assert bus.signals[0] == 0
    driver = GuestDriver(bus).start()
    bus.write(USBCMD, INTE)
    bus.write(reg.DOORBELL_BASE, 0)
    assert not bus.read(USBSTS) & HCE, "halted, and it knows"
    assert driver is not None
    bus.close()


def test_power_on_comes_with_a_client_and_its_reset(rig: Rig) -> None:
    """DEVICE_RESET, or another client: the driver that has started the controller before is another one."""
    rig.controller.reset(lambda: None)
    rig.bus.write(reg.DOORBELL_BASE, 0)
    assert rig.usbsts & HCE
    rig.bus.write(USBCMD, HCRST)
    rig.bus.write(reg.DOORBELL_BASE, 0)
    assert not rig.usbsts & HCE
    enumerate_again(rig)


def test_linux_recovers_by_restoring(rig: Rig) -> None:
    """xhci_resume: registers, CRS, and a reset if that sets SRE or HCE; also if a doorbell came first."""
    for rings in (False, True):
        rig.controller.reset(lambda: None)
        if rings:
            rig.bus.write(reg.DOORBELL_BASE, 0)
        rig.bus.write(USBCMD, spec.USBCMD_CRS)
        assert rig.usbsts & (spec.USBSTS_SRE | HCE)
        enumerate_again(rig)
