"""One root hub port, and what it tells: for the tests of ports."""

from __future__ import annotations

from tests.unit.xhci.kit import DirectBus, FakeDevice, GuestDriver, Speed, reg, spec
from usbvfiod_core.testing.driver import Port


class Hub:
    """A running controller and one port with, or for, one device."""

    def __init__(self, speed: Speed, *, plugged: bool = True, running: bool = True) -> None:
        self.bus = DirectBus()
        self.driver = GuestDriver(self.bus)
        self.driver.reset()
        self.driver.set_up()
        if running:
            self.driver.run()
        self.device = FakeDevice(speed)
        self.port: Port = self.driver.port(1 if speed < Speed.SUPER else 9)
        self.offset = reg.port_base(self.port.port_id)
        if plugged:
            self.bus.plug(self.device)
            self.port.clear_changes()
            self.events()

    def events(self) -> int:
        """How many Port Status Change Events there were; there must be no others, and for no other port."""
        self.bus.run()
        count, ring = 0, self.driver.event_rings[0]
        while (event := ring.take()) is not None:
            assert (event.type, event.port_id) == (spec.TRB_PORT_STATUS_CHANGE, self.port.port_id)
            assert event.completion_code == spec.CC_SUCCESS
            count += 1
        self.driver.acknowledge()
        return count

    def write(self, value: int) -> None:
        """Write PORTSC exactly so."""
        self.bus.write(self.offset, value)

    @property
    def changes(self) -> int:
        return self.port.portsc & spec.PORTSC_CHANGES
