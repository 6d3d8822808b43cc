"""Controllers with other numbers of ports than the usual fifteen, up to the 255 that xHCI allows (5.3.3)."""

from __future__ import annotations

from itertools import cycle, islice

import pytest

from tests.unit.xhci.kit import FakeDevice, GuestDriver, Speed, reg, spec
from usbvfiod_core import ConfigError
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.fake_device import INTERRUPT_IN

COUNTS = [(1, 1), (8, 7), (31, 15), (24, 40), (64, 1), (127, 1), (100, 155), (254, 1), (1, 254)]


@pytest.mark.parametrize(("usb2", "usb3"), COUNTS)
def test_the_capabilities_name_every_port(usb2: int, usb3: int) -> None:
    found = GuestDriver(DirectBus(usb2_ports=usb2, usb3_ports=usb3)).start().capabilities
    assert found.max_ports == usb2 + usb3
    assert found.max_slots == max(64, usb2 + usb3), "memtest86+ takes the number of slots for that of ports"
    assert [found.major_of(port_id) for port_id in range(1, found.max_ports + 1)] == [2] * usb2 + [3] * usb3


@pytest.mark.parametrize(("usb2", "usb3"), [(254, 1), (1, 254), (8, 7)])
def test_no_two_registers_share_a_place(usb2: int, usb3: int) -> None:
    """The port registers grow towards the runtime registers, and behind these are the doorbells."""
    offsets = [offset for _, offset, _ in reg.register_map(usb2 + usb3, 8)]
    assert len(set(offsets)) == len(offsets)
    assert max(offset for offset in offsets if offset < reg.RUNTIME_BASE) == reg.port_base(usb2 + usb3) + spec.PORTHLPMC
    assert max(offsets) < reg.DOORBELL_BASE
    bus = DirectBus(usb2_ports=usb2, usb3_ports=usb3)
    assert bus.read(spec.RTSOFF) % 32 == 0
    assert bus.read(spec.DBOFF) + 4 * 256 <= reg.REGISTER_SPACE


@pytest.mark.parametrize(("usb2", "usb3"), [(31, 15), (128, 127)])
def test_a_device_in_every_port(usb2: int, usb3: int) -> None:
    bus = DirectBus(usb2_ports=usb2, usb3_ports=usb3)
    driver = GuestDriver(bus, ring_trbs=8).start()
    speeds = [*islice(cycle([Speed.LOW, Speed.FULL, Speed.HIGH]), usb2), *[Speed.SUPER] * usb3]
    fakes = {}
    for port_id, speed in enumerate(speeds, 1):
        fakes[port_id] = FakeDevice(speed)
        assert bus.plug(fakes[port_id]) == port_id
    for kind, speed in ((2, Speed.HIGH), (3, Speed.SUPER)):
        with pytest.raises(ConfigError, match=f"no free USB {kind} port"):
            bus.plug(FakeDevice(speed))
    devices = {port_id: driver.enumerate(port_id) for port_id in fakes}
    assert {device.slot_id for device in devices.values()} == set(range(1, usb2 + usb3 + 1))
    for port_id, device in devices.items():
        fakes[port_id].answers(INTERRUPT_IN, bytes([port_id]))
        assert device.interrupt_in(INTERRUPT_IN, 8) == bytes([port_id])
    counted = {each.port_id: each.slot_id for each in bus.controller.statistics() if each.address == INTERRUPT_IN}
    assert counted == {port_id: device.slot_id for port_id, device in devices.items()}
    for port_id in (1, usb2, usb2 + 1, usb2 + usb3):
        bus.unplug(port_id)
        assert not driver.port(port_id).connected
        assert bus.plug(FakeDevice(fakes[port_id].speed), port_id) == port_id
    bus.close()


def test_every_port_is_told_of_at_the_start() -> None:
    """The events of 255 ports do not fit into an event ring of sixteen: the rest comes when there is room."""
    bus = DirectBus(usb2_ports=200, usb3_ports=55)
    for _ in range(200):
        bus.plug(FakeDevice(Speed.FULL))
    for _ in range(55):
        bus.plug(FakeDevice(Speed.SUPER))
    driver = GuestDriver(bus, event_segments=(16,)).start()
    for _ in range(64):
        driver.handle_events()
        bus.run()
    assert driver.port_changes == set(range(1, 256))
    bus.close()


def test_the_bandwidth_of_every_port() -> None:
    bus = DirectBus(usb2_ports=100, usb3_ports=155)
    driver = GuestDriver(bus).start()
    table = driver.ram.allocate(256)
    driver.commands.get_port_bandwidth(table, Speed.SUPER)
    assert driver.ram.read(table, 256) == bytes(101) + bytes([90]) * 155


@pytest.mark.parametrize(("usb2", "usb3"), [(0, 7), (8, 0), (255, 1), (128, 128)])
def test_numbers_that_cannot_be(usb2: int, usb3: int) -> None:
    with pytest.raises(ValueError, match="255 in all"):
        DirectBus(usb2_ports=usb2, usb3_ports=usb3)
