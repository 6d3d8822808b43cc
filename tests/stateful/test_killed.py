"""A driver whose controller's process is killed at any place of anything that it does, and is followed by another one:
the driver hears that its device is gone, gives it up, and works with the one that is plugged in then."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.unit.xhci.crash import Killed, KilledBus
from tests.unit.xhci.kit import BULK_IN, BULK_OUT, FakeDevice, Rig, Speed, spec
from usbvfiod_core.compiled import BUILD
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.fake_device import INTERRUPT_IN
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.root_hub import MISSED_SECONDS

pytestmark = pytest.mark.skipif(BUILD != "pure", reason="compiled code has no lines at which it could be killed")

LINES = 1200
"""Of the controller's code, executed by one step of a story; some take more, and most less."""


class Story:
    """One driver; all it does is chosen by `numbers`."""

    def __init__(self, numbers: random.Random) -> None:
        self.numbers = numbers
        self.bus = KilledBus(interrupts=numbers.choice(list(Mechanism)), context_size=numbers.choice((32, 64)))
        self.rig = Rig(
            numbers.choice((Speed.HIGH, Speed.SUPER)),
            bus=self.bus,
            event_segments=numbers.choice(((16,), (16, 17), (64,))),
            ring_trbs=numbers.choice((10, 16, 17)),
            interrupts=numbers.choice((False, True)),
        )
        self.steps: list[Callable[[], None]] = [
            self.read,
            self.read,
            self.write,
            self.control,
            self.wait,
            self.stall,
            self.flush,
            self.reconfigure,
            self.reset_device,
            self.replug,
            self.halt,
            self.start,
            self.suspend,
        ]

    def play(self, count: int) -> int:
        """Do so much, and be killed meanwhile; returns how often that has happened."""
        for _ in range(count):
            step = self.numbers.choice(self.steps)
            kills = self.bus.kills
            self.bus.kill_within(self.numbers.randrange(LINES))
            try:
                step()
            except Killed:
                self.bus.kill()
            except DriverError:
                if self.bus.kills == kills:
                    raise
            finally:
                self.bus.spare()
            if not self.numbers.randrange(8):
                self.bus.kill()
            self.rig.controller = self.bus.controller
            if self.bus.kills != kills:
                self.go_on()
            self.read()
        assert self.rig.running
        self.rig.close()
        return self.bus.kills

    def go_on(self) -> None:
        """The device is gone; there may be another one before the driver has seen that."""
        rig = self.rig
        at_once = self.numbers.choice((False, True)) or self.plugged
        missed = self.bus.controller.hub.ports[rig.port_id - 1].missed
        if at_once and not self.plugged:
            self.plug()
        rig.driver.handle_events()
        assert rig.port.connected is (at_once and not missed)
        assert rig.running, "the driver need not reset its controller"
        try:
            if rig.driver.devices.get(rig.usb.slot_id) is rig.usb:
                rig.usb.disable()
        except DriverError as error:  # it was disabled before the kill, or had no event yet
            if error.completion_code != spec.CC_SLOT_NOT_ENABLED:
                raise
            rig.usb.forget()
        if not at_once:
            self.plug()
        self.bus.pause(MISSED_SECONDS)
        rig.driver.handle_events()
        rig.usb = rig.driver.enumerate(rig.port_id)
        rig.port = rig.usb.port

    @property
    def plugged(self) -> bool:
        return self.bus.controller.hub.ports[self.rig.port_id - 1].occupant is not None

    def plug(self) -> None:
        rig = self.rig
        rig.device = FakeDevice(Speed.SUPER if rig.port_id > 8 else Speed.HIGH)
        assert self.bus.plug(rig.device, rig.port_id) == rig.port_id

    # -- what the driver does ----------------------------------------------------------------------------------------

    def read(self) -> None:
        rig = self.rig
        data = bytes(self.numbers.randrange(256) for _ in range(8)) * 8
        td = rig.bulk_in.submit(length=64)
        self.bus.run()
        while rig.device.held[BULK_IN]:
            rig.device.finish(rig.device.held[BULK_IN][0], data)
            self.bus.run()
        td.wait()
        assert td.data == data

    def write(self) -> None:
        rig = self.rig
        td = rig.bulk_out.submit(b"something")
        self.bus.run()
        while rig.device.held[BULK_OUT]:
            rig.device.finish(rig.device.held[BULK_OUT][0], TransferStatus.COMPLETED)
            self.bus.run()
        td.wait()

    def control(self) -> None:
        expected = self.rig.device.device_descriptor.pack()
        assert self.rig.usb.control_in(0, 6, 0x100, 0, 18) == expected

    def wait(self) -> None:
        """Transfers that the device keeps, and that the driver takes away."""
        pipe = self.rig.usb.pipe(INTERRUPT_IN)
        pipe.submit(length=8)
        self.bus.run()
        pipe.flush()

    def stall(self) -> None:
        rig = self.rig
        td = rig.bulk_out.submit(b"something")
        self.bus.run()
        while rig.device.held[BULK_OUT]:
            rig.device.finish(rig.device.held[BULK_OUT][0], TransferStatus.STALL)
            self.bus.run()
        rig.driver.handle_events()
        if td.done:
            rig.bulk_out.recover()
        rig.bulk_out.flush()

    def flush(self) -> None:
        self.rig.bulk_in.flush()

    def reconfigure(self) -> None:
        usb = self.rig.usb
        endpoints = list(usb.interface(0).endpoints)
        usb.configure_endpoints(add=endpoints, drop=[each.address for each in endpoints])
        usb.set_configuration(1)

    def reset_device(self) -> None:
        self.rig.usb.reset()

    def replug(self) -> None:
        rig = self.rig
        self.bus.unplug(rig.port_id)
        rig.driver.handle_events()
        rig.usb.disable()
        self.plug()
        rig.driver.handle_events()
        rig.usb = rig.driver.enumerate(rig.port_id)
        rig.port = rig.usb.port

    def halt(self) -> None:
        self.rig.driver.halt()
        self.rig.driver.run()

    def start(self) -> None:
        """Reset the controller, and begin anew."""
        rig = self.rig
        rig.driver.start()
        rig.usb = rig.driver.enumerate(rig.port_id)
        rig.port = rig.usb.port

    def suspend(self) -> None:
        self.rig.usb.suspend()
        self.rig.usb.resume()


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere(seed: int) -> None:
    assert Story(random.Random(seed)).play(4)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_anywhere_for_long() -> None:
    assert sum(Story(random.Random(seed)).play(25) for seed in range(1000, 1100)) > 500
