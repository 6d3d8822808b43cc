"""A second controller goes on with the guest of the first: the same memory, devices and interrupts, and its state as
text in between. What the first would do late has no memory to do it to."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.unit.xhci.kit import DirectBus, Rig
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.pci import vfio
from usbvfiod_core.pci.interrupts import Enables, Interrupts, Mechanism
from usbvfiod_core.pci.state import FunctionState
from usbvfiod_core.state import pack, unpack
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.usb.device import Device
from usbvfiod_core.xhci.controller import Controller
from usbvfiod_core.xhci.state import ControllerState

DeviceOf = Callable[[int], Device | None]


def quiet(bus: DirectBus, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Make the controller quiet; `meanwhile` is called when it has begun to be."""
    done: list[bool] = []
    bus.controller.quiet(lambda: done.append(True))
    bus.run()
    meanwhile()
    assert bus.loop.run_until(lambda: bool(done), PATIENCE), "the controller does not become quiet"


def as_text(state: ControllerState) -> Any:
    """The state as another process reads it."""
    return json.loads(json.dumps(pack(state)))


def successor(bus: DirectBus, memory: GuestMemory, signal: Callable[[int], bool], state: ControllerState) -> Controller:
    """A controller as the other process makes it."""
    return Controller(
        memory,
        signal,
        bus.loop,
        usb2_ports=state.usb2_ports,
        usb3_ports=state.usb3_ports,
        interrupters=len(state.interrupters),
        context_size=state.context_size,
    )


def hand_over(
    bus: DirectBus, *, seconds: float = 0.0, device_of: DeviceOf | None = None, mechanism: Mechanism | None = None
) -> Controller:
    """Let a second controller take the place of the bus's, which is quiet, `seconds` later; returns it, running."""
    old = bus.controller
    state = unpack(ControllerState, as_text(old.state()))
    function = FunctionState(b"")
    bus.interrupts.saved_state(function)
    memory = GuestMemory()
    for span in bus.ram.spans:
        memory.map(span.address, span.size, bus.ram.fd, span.offset)
    interrupts = Interrupts(bus.interrupts.vectors)
    new = successor(bus, memory, interrupts.signal, state)
    interrupts.bind(new)
    for vector in range(len(state.interrupters)):
        for index in (vfio.MSI_IRQ, vfio.MSIX_IRQ):
            interrupts.assign(index, vector, partial(bus._interrupt, vector))
    interrupts.assign(vfio.INTX_IRQ, 0, bus._pin)
    chosen = bus.mechanism if mechanism is None else mechanism
    msix, msi = chosen is Mechanism.MSIX, chosen is Mechanism.MSI
    interrupts.take_over(function, Enables(msix=msix, msi=msi, messages=bus.vectors, bus_master=True))
    new.bus_master = old.bus_master
    page = old.shared
    devices = device_of if device_of is not None else partial(old.device_at, enabled=False)
    before = list(bus.signals)
    new.restore(state, devices, None if page is None else page.fd)
    bus.loop.advance(seconds)
    assert bus.signals == before, "nobody is told anything before the controller goes on"
    old.wakeup = lambda: None
    bus.memory.unmap_all()
    if page is not None:
        old.share(False)
    bus.memory, bus.interrupts, bus.controller = memory, interrupts, new
    new.wakeup = bus._schedule
    new.resume()
    bus.run()
    return new


def succeed(rig: Rig, *, seconds: float = 0.0, device_of: DeviceOf | None = None) -> None:
    """The rig's controller becomes quiet, and another one goes on."""
    quiet(rig.bus)
    rig.controller = hand_over(rig.bus, seconds=seconds, device_of=device_of)
