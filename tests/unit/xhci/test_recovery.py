"""A controller is killed, and another one goes on with the guest, whose driver sees its devices unplugged."""

from __future__ import annotations

import pytest

from tests.unit.xhci.crash import KilledBus, recover
from tests.unit.xhci.kit import FakeDevice, Rig, Speed
from usbvfiod_core.pci.interrupts import Mechanism


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
