"""A device handed over from one loop to another, as from one process to the next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.backend import Backend
from usbvfiod_core.usb.device import Device
from usbvfiod_core.usb.handover import Handover

D = TypeVar("D", bound=Device)


def travelled(handover: Handover) -> Handover:
    """As it comes out of a socket: what JSON makes of the state, and other descriptors of the same open files."""
    state = json.loads(json.dumps(handover.state))
    return Handover(state, {name: os.dup(fd) for name, fd in handover.descriptors.items()})


def settle(device: Device, loop: StepLoop) -> None:
    """Wait until nothing goes on in the device."""
    settled: list[None] = []
    device.when_settled(lambda: settled.append(None))
    assert loop.run_until(lambda: bool(settled), PATIENCE)
    assert len(settled) == 1


def heir(device: Device, loop: StepLoop, take_over: Callable[[Handover], D]) -> D:
    """The device that goes on in the place of `device`, which is forgotten, and whose loop is closed."""
    settle(device, loop)
    made = take_over(travelled(device.hand_over()))
    device.forget()
    assert loop.watched == ()
    loop.close()
    return made


class Relay:
    """The bench of a device that is handed over again and again, each time to another backend on another loop."""

    def __init__(self, make_backend: Callable[[], Backend], address: str, options: Any) -> None:
        self.make_backend = make_backend
        self.address = address
        self.options = options
        self.loop = StepLoop(virtual_time=False)
        self.device = make_backend().open(address, options, self.loop)
        self.bench = DeviceBench(self.device, self.loop)

    def settle(self) -> None:
        """Wait until nothing goes on in the device."""
        settle(self.device, self.loop)

    def told(self) -> Handover:
        """What another process gets."""
        return travelled(self.device.hand_over())

    def hand_over(self) -> None:
        """Another process goes on."""
        loop = StepLoop(virtual_time=False)
        backend = self.make_backend()
        self.device = heir(
            self.device, self.loop, lambda given: backend.take_over(self.address, self.options, loop, given)
        )
        self.loop = loop
        self.bench = DeviceBench(self.device, loop)
