"""A controller is killed, and another one goes on with the guest, whose driver sees its devices unplugged."""

from __future__ import annotations

import random

import pytest

from tests.unit.xhci.crash import KilledBus, recover
from tests.unit.xhci.kit import FakeDevice, Rig, Speed, make, spec
from tests.unit.xhci.succession import succeed
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.state import StateError, pack, unpack
from usbvfiod_core.xhci.controller import Controller
from usbvfiod_core.xhci.kept import within
from usbvfiod_core.xhci.recovery import recovered
from usbvfiod_core.xhci.root_hub import MISSED_SECONDS
from usbvfiod_core.xhci.state import ControllerState


def plug_again(rig: Rig, speed: Speed = Speed.HIGH) -> None:
    """The driver gives up the device that is gone, and gets another one at the same port."""
    rig.controller = rig.bus.controller
    rig.driver.handle_events()
    assert not rig.port.connected
    rig.usb.disable()
    rig.device = FakeDevice(speed)
    assert rig.bus.plug(rig.device, rig.port_id) == rig.port_id
    rig.driver.handle_events()
    rig.usb = rig.driver.enumerate(rig.port_id)


def read(rig: Rig, data: bytes = b"right data") -> None:
    td = rig.bulk_in.submit(length=512)
    rig.bus.run()
    rig.device.finish(rig.device.held[rig.bulk_in.address][0], data)
    rig.handle()
    assert td.data == data


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_the_driver_goes_on(mechanism: Mechanism) -> None:
    rig = Rig(bus=KilledBus(interrupts=mechanism))
    read(rig)
    rig.bulk_in.submit(length=512)
    recover(rig.bus)
    plug_again(rig)
    read(rig)
    assert rig.running
    assert rig.driver.lost_interrupts == 0


@pytest.mark.parametrize("ending", ["slot disabled", "controller reset", "time"])
def test_the_next_device_comes_when_the_driver_has_let_go_of_the_one_before(ending: str) -> None:
    """Whatever is plugged in at once: Linux would ask the device that is gone whether it is still the same."""
    rig = Rig(Speed.SUPER, bus=KilledBus())
    controller = recover(rig.bus)
    rig.device = FakeDevice(Speed.SUPER)
    assert rig.bus.plug(rig.device, rig.port_id) == rig.port_id
    assert controller.hub.name_at(rig.port_id) == rig.device.name
    rig.bus.pause(MISSED_SECONDS / 2)
    rig.driver.handle_events()
    assert not rig.port.connected
    rig.port.clear_changes()
    if ending == "slot disabled":
        rig.usb.disable()
        rig.bus.pause(MISSED_SECONDS / 10)
    elif ending == "controller reset":
        rig.driver.start()
        rig.bus.pause(MISSED_SECONDS / 10)
    else:
        rig.bus.pause(MISSED_SECONDS)
        rig.driver.handle_events()
        assert rig.port.connected
        rig.usb.disable()
    rig.controller = controller
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_a_driver_that_goes_through_its_ports_has_time_for_each() -> None:
    rig = Rig(Speed.SUPER, bus=KilledBus())
    other = rig.driver.enumerate(rig.bus.plug(FakeDevice(Speed.SUPER)))
    recover(rig.bus)
    for port_id in (rig.port_id, other.port.port_id):
        rig.bus.plug(FakeDevice(Speed.SUPER), port_id)
    rig.bus.pause(0.8 * MISSED_SECONDS)
    rig.driver.handle_events()
    rig.usb.disable()
    rig.bus.pause(0.8 * MISSED_SECONDS)
    assert (rig.port.connected, other.port.connected) == (True, False)
    rig.bus.pause(0.4 * MISSED_SECONDS)
    assert other.port.connected


def test_an_upgrade_meanwhile_waits_for_the_driver_as_well() -> None:
    rig = Rig(Speed.SUPER, bus=KilledBus())
    rig.controller = recover(rig.bus)
    rig.device = FakeDevice(Speed.SUPER)
    rig.bus.plug(rig.device, rig.port_id)
    succeed(rig, device_of={rig.port_id: rig.device}.get)
    rig.bus.pause(MISSED_SECONDS / 2)
    assert not rig.port.connected
    rig.driver.handle_events()
    rig.usb.disable()
    rig.bus.pause(MISSED_SECONDS / 10)
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_a_driver_that_is_not_there_is_not_waited_for() -> None:
    """Its controller is halted: it looks at the ports anew when it starts it."""
    rig = Rig(Speed.SUPER, bus=KilledBus())
    rig.driver.halt()
    recover(rig.bus)
    rig.bus.plug(FakeDevice(Speed.SUPER), rig.port_id)
    assert rig.port.connected


def test_an_interrupt_that_was_not_sent_is_sent() -> None:
    """The process is killed between an event and its interrupt."""
    rig = Rig(bus=KilledBus(), interrupts=True)
    bus = rig.bus
    td = rig.bulk_in.submit(length=512)
    rig.device.finish(rig.device.held[rig.bulk_in.address][0], b"x" * 512)
    before = bus.signals[0]
    rig.controller.interrupters.dirty.clear()
    rig.controller._turns.settle()
    assert bus.signals[0] == before
    recover(bus)
    assert bus.signals[0] > before
    rig.driver.handle_events()
    assert td.data == b"x" * 512


@pytest.mark.parametrize("published", [False, True])
def test_a_command_has_one_event(published: bool) -> None:
    """The process is killed when a command is executed, and before or behind its event; the rest is as if it were
    executed in time."""
    rig = Rig(bus=KilledBus())
    kept = rig.controller.kept.command
    before = list(kept)
    command = rig.driver.commands.submit(make.command(spec.TRB_NO_OP_COMMAND))
    rig.bus.run()
    ring = rig.controller.interrupters.primary.ring
    position = ring.position
    for index, word in enumerate(before):
        kept[index] = word
    if not published:
        ring._segments[0].dwords[4 * position - 1] ^= 1
    recover(rig.bus)
    ring = rig.bus.controller.interrupters.primary.ring
    assert ring.position == position + 1, "its event, if that was missing, and one of the port"
    rig.driver.handle_events()
    assert command.event is not None
    assert command.event.completion_code == spec.CC_SUCCESS
    plug_again(rig)
    read(rig)


def test_a_state_that_makes_no_sense_is_refused_or_works() -> None:
    numbers = random.Random(5)
    refused = 0
    rig = Rig(bus=KilledBus())
    read(rig)
    controller = rig.controller
    registers, command = bytes(controller.registers.bytes), bytes(controller.kept.command.cast("B"))
    slots = bytes(controller.kept.slots)
    for _ in range(40):
        kept = within(None, memoryview(bytearray(command + slots)))
        content = bytearray(registers)
        for _ in range(numbers.randrange(1, 6)):
            places = memoryview(content), kept.slots, kept.command.cast("B")
            place = numbers.choice(places)
            interesting = numbers.choice([range(0x40), range(0x40, 0x80), range(0x440, 0x500), range(0x2000, 0x2040)])
            place[numbers.choice(interesting) % len(place)] = numbers.choice([0, 1, 0xFF, numbers.randrange(256)])
        try:
            state = recovered(memoryview(content), kept, rig.bus.memory, None)
            new = Controller(
                rig.bus.memory,
                lambda number: True,
                rig.bus.loop,
                usb2_ports=8,
                usb3_ports=7,
                interrupters=8,
            )
            new.bus_master = True
            new.restore(unpack(ControllerState, pack(state)), lambda port_id: None)
        except StateError:
            refused += 1
            continue
        new.resume()
        new.run()
        for offset in range(0x40, 0x80, 4):
            new.write(offset, numbers.randrange(1 << 32), 4)
            new.run()
    assert refused < 40
