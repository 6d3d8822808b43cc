"""Interrupters whose registers the guest writes in a page that it has mapped: nobody tells the controller."""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Iterator
from copy import copy

import pytest

from tests.unit.xhci.kit import BULK_OUT, USBCMD, USBSTS, Rig, reg, spec
from tests.unit.xhci.mapped import MappedBus
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.xhci.shared_interrupter import FIRST_LOOK, LAST_LOOK

IMAN = reg.interrupter_base(0) + spec.IMAN
IMOD = reg.interrupter_base(0) + spec.IMOD
ERSTSZ = reg.interrupter_base(0) + spec.ERSTSZ
ERSTBA = reg.interrupter_base(0) + spec.ERSTBA
ERDP = reg.interrupter_base(0) + spec.ERDP
IP, IE, EHB, EINT = spec.IMAN_IP, spec.IMAN_IE, spec.ERDP_EHB, spec.USBSTS_EINT


class Shared(Rig):
    """A rig whose device takes all OUT data: `send` makes an event."""

    def __init__(self, **options: int) -> None:
        super().__init__(bus=MappedBus(**options))
        self.device.auto_out.add(BULK_OUT)
        self.handle()
        self.bus.write(USBSTS, EINT)
        self.bus.signals[:] = [0] * len(self.bus.signals)

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self.bulk_out.submit(b"x")

    def taken(self) -> int:
        """Handle the events there are; how many they were."""
        return self.driver.handle_events()

    @property
    def signals(self) -> int:
        return self.bus.signals[0]


def halted(rig: Rig) -> int:
    """Halt the controller; what USBCMD was before."""
    command = rig.bus.read(USBCMD)
    rig.bus.write(USBCMD, command & ~spec.USBCMD_RS)
    rig.bus.pause(0.02)
    assert rig.usbsts & spec.USBSTS_HCH
    return command


def timers(rig: Rig) -> int:
    """How many callbacks wait for their time."""
    return sum(not timer.cancelled for _, _, timer in rig.bus.loop._timers)


@pytest.fixture
def shared() -> Iterator[Shared]:
    rig = Shared()
    yield rig
    rig.close()


class TestBits:
    def test_nothing_shows_in_the_page(self, shared: Shared) -> None:
        shared.bus.write(IMAN, 0)
        pointer = shared.bus.read(ERDP, 8) & ~0xF
        shared.bus.write(ERDP, pointer, 8)
        shared.send()
        assert shared.bus.read(IMAN) == 0
        assert shared.bus.read(ERDP, 8) == pointer
        assert shared.usbsts & EINT

    def test_what_a_driver_writes_as_1_stays_and_means_nothing(self, shared: Shared) -> None:
        shared.bus.write(IMAN, IP | IE)
        shared.bus.write(ERDP, shared.bus.read(ERDP) | EHB)
        for count in range(1, 4):
            shared.send()
            assert shared.signals == count
        assert shared.taken() == 3
        assert shared.bus.read(IMAN) == IP | IE
        shared.works()

    def test_a_busy_handler_is_interrupted_again(self, shared: Shared) -> None:
        """Nobody can tell when it has finished, so an event that it may have missed is told at once."""
        shared.send(3)
        assert shared.signals == 3

    def test_moderation_still_limits_interrupts(self, shared: Shared) -> None:
        shared.bus.write(IMOD, 4000)
        shared.send(10)
        assert shared.signals == 1
        shared.bus.pause(0.001)
        assert shared.signals == 2
        assert shared.taken() == 10


class TestLookingAgain:
    def test_an_interrupt_that_is_enabled_later(self, shared: Shared) -> None:
        shared.bus.write(IMAN, 0)
        shared.send()
        assert shared.signals == 0
        shared.bus.write(IMAN, IE)
        assert shared.signals == 0
        shared.bus.pause(FIRST_LOOK)
        assert shared.signals == 1

    def test_a_ring_that_becomes_free(self) -> None:
        """The events of 40 ports and a ring of 16: they come as it is emptied."""
        bus = MappedBus(usb2_ports=40, usb3_ports=1)
        for _ in range(40):
            bus.plug(FakeDevice(Speed.FULL))
        driver = GuestDriver(bus, event_segments=(16,)).start()
        for _ in range(5):
            driver.handle_events()
            bus.pause(FIRST_LOOK)
        assert driver.port_changes == set(range(1, 41))
        bus.close()

    def test_less_and_less_often_and_not_for_ever(self, shared: Shared) -> None:
        shared.bus.write(IMAN, 0)
        shared.send()
        shared.bus.pause(2 * LAST_LOOK)
        assert timers(shared) == 0
        shared.bus.write(IMAN, IE)
        shared.bus.pause(60)
        assert shared.signals == 0

    def test_whatever_the_guest_does_is_a_look(self, shared: Shared) -> None:
        shared.bus.write(IMAN, 0)
        shared.send()
        shared.bus.pause(2 * LAST_LOOK)
        shared.bus.write(IMAN, IE)
        shared.bus.write(reg.DOORBELL_BASE + 4 * 60, 2)  # of a slot that is not enabled
        assert shared.signals == 1

    def test_nothing_is_looked_at_while_nothing_waits(self, shared: Shared) -> None:
        shared.send()
        shared.taken()
        assert timers(shared) == 0


class TestTables:
    def test_the_same_table_again_after_a_reset(self, shared: Shared) -> None:
        for _ in range(3):
            shared.bus.reset()
            assert shared.bus.read(ERSTBA, 8) == 0
            usb = GuestDriver(shared.bus).start().enumerate(shared.port_id)
            assert usb.get_descriptor(1, 0, 18)[:2] == b"\x12\x01"

    def test_a_driver_that_halts_and_goes_on(self, shared: Shared) -> None:
        shared.send(5)
        shared.taken()
        command = halted(shared)
        shared.bus.write(USBCMD, command)
        shared.send(3)
        assert shared.taken() == 3
        shared.works()

    def test_a_driver_that_halts_and_begins_anew_with_the_same_table(self, shared: Shared) -> None:
        shared.send(5)
        shared.taken()
        command = halted(shared)
        ring = shared.driver.event_rings[0]
        shared.driver.event_rings[0] = begun = copy(ring)
        begun._segment, begun._place, begun._view, begun.cycle = 0, 0, ring._views[0], 1
        for view in ring._views:
            view.cast("B")[:] = bytes(view.nbytes)
        shared.bus.write(ERSTBA, shared.bus.read(ERSTBA, 8), 8)
        shared.bus.write(ERDP, begun.dequeue, 8)
        shared.bus.write(USBCMD, command)
        shared.send(2)
        assert shared.taken() == 2

    def test_a_table_that_is_half_written_leaves_the_ring_as_it_is(self, shared: Shared) -> None:
        table = shared.bus.read(ERSTBA, 8)
        shared.bus.write(ERSTBA + 4, 0x7FFF_FFFF)
        shared.send(2)
        assert shared.running
        assert shared.taken() == 2
        shared.bus.write(ERSTBA, table, 8)
        assert shared.running

    def test_size_nought_takes_a_secondary_ring_away(self) -> None:
        rig = Shared()
        second = reg.interrupter_base(1)
        rig.bus.write(second + spec.ERSTSZ, 0)
        rig.driver.commands.no_op()
        rig.works()
        rig.close()

    @pytest.mark.parametrize("pointer", [0, 0xFFFF_FFFF_FFFF_FFF0, 0x1000])
    def test_a_pointer_into_no_segment_changes_nothing(self, shared: Shared, pointer: int) -> None:
        right = shared.bus.read(ERDP, 8)
        shared.bus.write(ERDP, pointer, 8)
        shared.send(2)
        shared.bus.write(ERDP, right, 8)
        assert shared.taken() == 2
        assert shared.running

    def test_the_halves_of_a_pointer_come_one_by_one(self, shared: Shared) -> None:
        for _ in range(50):
            shared.send()
            before = shared.bus.read(ERDP, 8)
            shared.bus.write(ERDP, 0x30)  # low half first: into nowhere
            shared.send()
            shared.bus.write(ERDP, before, 8)
            assert shared.taken() == 2
        assert shared.running


class TestSaving:
    def test_saved_and_restored(self, shared: Shared) -> None:
        shared.send(3)
        shared.taken()
        kept = [shared.bus.read(each, size) for each, size in ((IMAN, 4), (ERSTSZ, 4), (ERSTBA, 8), (ERDP, 8))]
        command = halted(shared)
        shared.bus.write(USBCMD, command & ~spec.USBCMD_RS | spec.USBCMD_CSS)
        for each, size, value in zip((IMAN, ERSTSZ, ERSTBA, ERDP), (4, 4, 8, 8), kept, strict=True):
            shared.bus.write(each, value, size)
        shared.bus.write(USBCMD, command & ~spec.USBCMD_RS | spec.USBCMD_CRS)
        assert not shared.usbsts & spec.USBSTS_SRE
        shared.bus.write(USBCMD, command)
        shared.send(4)
        assert shared.taken() == 4


def test_the_pin_is_let_go_when_the_handler_clears_eint(shared: Shared) -> None:
    shared.bus.use_interrupts(Mechanism.INTX)
    shared.send()
    assert shared.controller.pending_interrupts == 1
    shared.bus.write(USBSTS, EINT)
    assert shared.controller.pending_interrupts == 0
    assert shared.taken() == 1
    shared.send()
    assert shared.controller.pending_interrupts == 1


def test_resets_clear_the_page(shared: Shared) -> None:
    shared.bus.reset()
    assert shared.bus.read(IMAN) == 0
    assert shared.bus.read(IMOD) == spec.IMOD_DEFAULT
    assert (shared.bus.read(ERSTSZ), shared.bus.read(ERSTBA, 8), shared.bus.read(ERDP, 8)) == (0, 0, 0)


def test_the_next_client_may_not_map_it_and_the_last_one_sees_nothing_of_it(shared: Shared) -> None:
    bus = shared.bus
    assert isinstance(bus, MappedBus)
    bus.reset()
    bus.controller.share(False)
    assert bus.controller.shared is None
    bus.page[: 4 * 8] = b"\xff" * 32
    bus.controller.write(IMAN, IE, 4)
    assert bus.controller.read(IMAN, 4) == IE
    assert bus.page[:4] == b"\xff" * 4
    bus.controller.share(True)


def test_the_file_holds_the_page_alone_and_keeps_its_size(shared: Shared) -> None:
    area = shared.controller.shared
    assert area is not None
    with mmap.mmap(area.fd, 0) as whole:
        assert len(whole) == area.offset + area.size
        assert not any(whole[: area.offset])
    for size in (0, area.offset, 1 << 20):
        with pytest.raises(PermissionError):
            os.truncate(area.fd, size)


@pytest.mark.parametrize("seed", range(20))
def test_random_stores_hurt_only_the_guest(seed: int) -> None:
    """Any dword of the page has any value at any time; after a reset everything works."""
    chance = random.Random(seed)
    rig = Shared()
    bus = rig.bus
    assert isinstance(bus, MappedBus)
    kept = bytes(bus.page[:256])
    for _ in range(200):
        at = 4 * chance.randrange(64)
        value = chance.choice((0, 0xFFFF_FFFF, chance.getrandbits(32), struct.unpack_from("<I", kept, at)[0]))
        bus.page[at : at + 4] = struct.pack("<I", value)
        if not chance.randrange(4):
            bus.write(reg.DOORBELL_BASE + 4 * rig.slot_id, rig.bulk_out.dci)
            bus.pause(chance.random() / 500)
    bus.reset()
    usb = GuestDriver(bus).start().enumerate(rig.port_id)
    assert usb.get_descriptor(1, 0, 18)[:2] == b"\x12\x01"
    rig.close()
