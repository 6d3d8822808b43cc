"""DMA_UNMAP under transfers: they are taken back before memory goes, and go on when it is there again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, USBCMD, Rig, codes, spec
from usbvfiod_core.testing.fake_device import INTERRUPT_IN
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.remapping import REMAP_SECONDS

EVERYTHING = (0, 1 << 64)


class Unmap:
    """A quiesce under way."""

    def __init__(self, rig: Rig, address: int, size: int) -> None:
        self.done = 0
        rig.controller.quiesce(address, size, self.count)
        rig.bus.run()

    def count(self) -> None:
        self.done += 1


def remap(rig: Rig) -> None:
    """All memory goes and comes back."""
    rig.bus.memory.unmap_all()
    for span in rig.ram.spans:
        rig.bus.memory.map_buffer(span.address, rig.ram.window(span.address, span.size))


def test_with_nothing_in_flight_it_is_done_at_once(rig: Rig) -> None:
    assert Unmap(rig, *EVERYTHING).done == 1
    remap(rig)
    rig.works()


def test_transfers_are_taken_back_and_fetched_again(rig: Rig) -> None:
    tds = [rig.bulk_in.submit(length=8), rig.usb.pipe(INTERRUPT_IN).submit(length=8)]
    assert Unmap(rig, *EVERYTHING).done == 1
    assert rig.device.in_flight == 0
    remap(rig)
    rig.bus.pause(REMAP_SECONDS * 2)
    assert rig.device.in_flight == 2, "without a doorbell"
    rig.device.answers(BULK_IN, b"bulk")
    rig.device.answers(INTERRUPT_IN, b"int")
    rig.handle()
    assert [td.data for td in tds] == [b"bulk", b"int"]
    assert codes(tds[0].events) == [spec.CC_SHORT_PACKET], "no event tells of it"


def test_only_transfers_in_the_range_are_taken_back(rig: Rig) -> None:
    first = rig.ram.allocate(4096, align=4096)
    second = rig.ram.allocate(4096, align=4096)
    rig.bulk_in.submit(length=4096, buffer=first)
    rig.usb.pipe(INTERRUPT_IN).submit(length=64, buffer=second)
    assert Unmap(rig, first, 4096).done == 1
    assert rig.device.held[BULK_IN] == rig.device.held[0x7F]
    assert len(rig.device.held[INTERRUPT_IN]) == 1


def test_it_waits_for_the_device(rig: Rig) -> None:
    rig.device.cancels = False
    td = rig.bulk_in.submit(length=8)
    unmap = Unmap(rig, *EVERYTHING)
    assert unmap.done == 0
    rig.device.answers(BULK_IN, b"in time")
    rig.bus.run()
    assert unmap.done == 1
    assert td.wait().data == b"in time"


@pytest.mark.parametrize("command", [spec.TRB_DISABLE_SLOT, spec.TRB_RESET_DEVICE])
def test_it_waits_for_what_is_being_disabled(rig: Rig, command: int) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.submit_command(command)
    unmap = Unmap(rig, *EVERYTHING)
    assert unmap.done == 0, "the device may still write there"
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert unmap.done == 1


@pytest.mark.parametrize("moved", [0, 100, 256])
def test_what_was_moved_is_not_moved_again(rig: Rig, moved: int) -> None:
    data = bytes(range(256))
    rig.device.cancels = False
    rig.bulk_out.submit(data)
    Unmap(rig, *EVERYTHING)
    rig.device.finish(rig.device.held[BULK_OUT][0], (TransferStatus.CANCELLED, moved))
    rig.device.auto_out.add(BULK_OUT)
    rig.bus.pause(REMAP_SECONDS * 2)
    assert b"".join(rig.device.received[BULK_OUT]) == data


def test_stopped_while_it_waits(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    unmap = Unmap(rig, *EVERYTHING)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert unmap.done == 1
    assert codes(rig.events())[-1] == spec.CC_SUCCESS
    rig.bus.pause(REMAP_SECONDS * 2)
    assert rig.bulk_in.state == spec.EP_STOPPED
    assert rig.device.in_flight == 0, "what was stopped is not fetched again"


@pytest.mark.parametrize("halted", [False, True])
def test_while_halted(make_rig: Callable[..., Rig], halted: bool) -> None:
    rig = make_rig()
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    if halted:
        rig.driver.halt()
    unmap = Unmap(rig, *EVERYTHING)
    assert unmap.done == halted  # a controller that has halted has nothing in flight
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert unmap.done == 1


# -- in two batches: what ends between them finds no event ring and no contexts ----------------------------------------


def away(rig: Rig) -> None:
    """The first batch has what the controller itself needs, and no buffer of a transfer in flight."""
    assert Unmap(rig, 1 << 60, 4096).done == 1
    rig.bus.memory.unmap_all()


def back(rig: Rig) -> None:
    rig.bus.map_ram()
    rig.bus.run()


@pytest.mark.parametrize("second_batch", [False, True])
@pytest.mark.parametrize("cancels", [True, False])
def test_what_has_ended_is_told_when_memory_is_back(rig: Rig, second_batch: bool, cancels: bool) -> None:
    first, second = rig.bulk_in.submit(length=8), rig.bulk_in.submit(length=8)
    rig.device.cancels = cancels
    away(rig)
    rig.device.finish(rig.device.held[BULK_IN][0], b"first")
    if second_batch:
        unmap = Unmap(rig, *EVERYTHING)
        if not cancels:
            assert unmap.done == 0
            rig.device.finish(rig.device.held[BULK_IN][0], TransferStatus.CANCELLED)
            rig.bus.run()
        assert unmap.done == 1, "before memory is back, which would not come back otherwise"
    assert rig.running
    back(rig)
    rig.handle()
    assert (first.done, second.done) == (True, False)
    rig.bus.pause(REMAP_SECONDS * 2)
    assert rig.device.in_flight == 1, "the second one, without a doorbell"
    rig.device.answers(BULK_IN, b"second")
    rig.handle()
    assert (first.data, second.data) == (b"first", b"second")
    assert rig.running


@pytest.mark.parametrize("second_batch", [False, True])
@pytest.mark.parametrize("command", [spec.TRB_STOP_ENDPOINT, spec.TRB_DISABLE_SLOT, spec.TRB_RESET_DEVICE])
def test_a_command_that_waits_for_transfers_ends_when_memory_is_back(
    rig: Rig, command: int, second_batch: bool
) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.events()
    rig.submit_command(command, dci=rig.bulk_in.dci if command == spec.TRB_STOP_ENDPOINT else 0)
    away(rig)
    unmap = Unmap(rig, *EVERYTHING) if second_batch else None
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    assert unmap is None or unmap.done == 1
    assert rig.running
    back(rig)
    assert codes(rig.events())[-1] == spec.CC_SUCCESS
    assert rig.running
    rig.bus.pause(REMAP_SECONDS * 2)
    assert rig.device.in_flight == 0


def test_an_endpoint_halts_when_memory_is_back(rig: Rig) -> None:
    failing, other = rig.bulk_in.submit(length=8), rig.bulk_in.submit(length=8)
    rig.device.cancels = False
    rig.device.finish(rig.device.held[BULK_IN][0], TransferStatus.STALL)
    rig.bus.run()
    away(rig)
    unmap = Unmap(rig, *EVERYTHING)
    rig.device.finish(rig.device.held[BULK_IN][0], TransferStatus.CANCELLED)
    rig.bus.run()
    assert (unmap.done, rig.running) == (1, True)
    back(rig)
    rig.handle()
    assert (failing.completion_code, other.done) == (spec.CC_STALL, False)
    assert rig.bulk_in.state == spec.EP_HALTED


@pytest.mark.parametrize("end", ["reset", "unplugged"])
def test_what_waits_for_memory_holds_up_neither_reset_nor_unplugging(rig: Rig, end: str) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    away(rig)
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    if end == "unplugged":
        rig.bus.unplug(rig.port_id)
        assert rig.device.closed
        back(rig)
        assert rig.running
        assert spec.CC_SUCCESS in codes(rig.events())
        return
    done: list[bool] = []
    rig.controller.reset(lambda: done.append(True))
    rig.bus.run()
    assert done == [True]
    back(rig)
    rig.driver.start()
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_a_controller_that_is_to_be_quiet_waits_for_memory(rig: Rig) -> None:
    """Without an endless loop, and nothing is lost."""
    td = rig.bulk_in.submit(length=8)
    away(rig)
    rig.device.finish(rig.device.held[BULK_IN][0], b"bulk")
    done: list[bool] = []
    assert Unmap(rig, *EVERYTHING).done == 1
    rig.controller.quiet(lambda: done.append(True))
    rig.bus.run()
    assert rig.running
    back(rig)
    assert rig.bus.loop.run_until(lambda: bool(done), 1.0)
    rig.controller.resume()
    rig.handle()
    assert td.data == b"bulk"


def test_the_frame_number_wraps_while_memory_is_away(rig: Rig) -> None:
    rig.bus.write(USBCMD, rig.bus.read(USBCMD) | spec.USBCMD_EWE)
    wrap = (1 << 14) * 125e-6
    rig.bus.pause(wrap - (rig.controller.microframe() * 125e-6) - REMAP_SECONDS / 2)
    rig.events()
    away(rig)
    rig.bus.pause(REMAP_SECONDS * 3 / 4)
    assert rig.running
    back(rig)
    rig.works()


def test_memory_that_does_not_come_back_is_missed(rig: Rig) -> None:
    td = rig.bulk_in.submit(length=8)
    rig.bulk_in.submit(length=8)
    away(rig)
    rig.device.finish(rig.device.held[BULK_IN][0], b"bulk")
    assert Unmap(rig, *EVERYTHING).done == 1
    rig.bus.pause(REMAP_SECONDS * 2)
    assert not rig.running
    assert not td.done
