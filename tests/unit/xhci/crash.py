"""A controller whose process is killed, and another one that goes on with the guest: all that it gets of the first is
what is in its registers, in `kept` and in the guest's memory. Devices and transfers are gone with the process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from types import CodeType, FrameType
from typing import Any

from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.pci import vfio
from usbvfiod_core.pci.interrupts import Enables, Interrupts, Mechanism
from usbvfiod_core.state import pack, unpack
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.xhci.controller import Controller
from usbvfiod_core.xhci.recovery import recovered
from usbvfiod_core.xhci.state import ControllerState

_SOURCES = ("/usbvfiod_core/xhci/", "/usbvfiod_core/memory.py")


class Killed(BaseException):
    """The process has ended here; nothing may catch it."""


class KilledBus(DirectBus):
    """A bus whose controller is killed when `left` more lines of the controller's code have been executed, and another
    one goes on (`after` is called then), in the middle of whatever the driver does. A write that was not done is done
    again, as its message is executed again."""

    left = -1
    kills = 0
    after: Callable[[], object] = staticmethod(lambda: None)

    def kill_within(self, lines: int) -> None:
        """Kill it after so many lines."""
        self.left = lines
        sys.settrace(self._trace)

    def spare(self) -> None:
        """Do not kill it any more."""
        self.left = -1
        sys.settrace(None)

    def kill(self) -> None:
        """Kill it now, between two messages."""
        self.spare()
        self.kills += 1
        recover(self)
        self.after()

    def write(self, offset: int, value: int, size: int = 4) -> None:
        try:
            self.controller.write(offset, value, size)
        except Killed:
            self.kill()
            self.controller.write(offset, value, size)
        self.end_of_interrupt()
        if not self._held:
            self.run()

    def run(self) -> None:
        self._schedule()
        while True:
            try:
                self.loop.run_ready()
                return
            except Killed:
                self.kill()

    def read(self, offset: int, size: int = 4) -> int:
        if not self._held:
            self.run()
        try:
            value = self.controller.read(offset, size)
        except Killed:
            self.kill()
            value = self.controller.read(offset, size)
        self.end_of_interrupt()
        return value

    def pause(self, seconds: float) -> None:
        until = self.loop.time() + seconds
        while True:
            try:
                self.loop.advance(max(until - self.loop.time(), 0.0))
                return
            except Killed:
                self.kill()

    def _await_signal(self, vector: int | None, timeout: float) -> None:
        until = self.loop.time() + timeout
        while True:
            try:
                super()._await_signal(vector, max(until - self.loop.time(), 0.0))
                return
            except Killed:
                self.kill()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if _counts(frame.f_code) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise Killed
        return self._line


def _counts(code: CodeType) -> bool:
    return any(source in code.co_filename for source in _SOURCES)


def recover(bus: DirectBus) -> Controller:
    """Let another controller take the place of the bus's, which was killed; returns it, running."""
    old = bus.controller
    page = old.shared
    memory = GuestMemory()
    for span in bus.ram.spans:
        memory.map(span.address, span.size, bus.ram.fd, span.offset)
    content = None if page is None else memoryview(old.registers.bytes)[page.offset : page.offset + page.size]
    state = recovered(memoryview(old.registers.bytes), old.kept, memory, content)
    state = unpack(ControllerState, json.loads(json.dumps(pack(state))))
    interrupts = Interrupts(bus.interrupts.vectors)
    new = Controller(
        memory,
        interrupts.signal,
        bus.loop,
        usb2_ports=state.usb2_ports,
        usb3_ports=state.usb3_ports,
        interrupters=len(state.interrupters),
        context_size=state.context_size,
    )
    interrupts.bind(new)
    for vector in range(len(state.interrupters)):
        for index in (vfio.MSI_IRQ, vfio.MSIX_IRQ):
            interrupts.assign(index, vector, partial(bus._interrupt, vector))
    interrupts.assign(vfio.INTX_IRQ, 0, bus._pin)
    msix, msi = bus.mechanism is Mechanism.MSIX, bus.mechanism is Mechanism.MSI
    interrupts.configure(Enables(msix=msix, msi=msi, messages=bus.vectors, bus_master=True))
    new.bus_master = old.bus_master
    new.restore(state, lambda port_id: None, None if page is None else page.fd)
    _end(bus, old)
    bus.memory, bus.interrupts, bus.controller = memory, interrupts, new
    bus._scheduled = False
    new.wakeup = bus._schedule
    new.resume()
    bus.run()
    return new


def _end(bus: DirectBus, old: Controller) -> None:
    """The process is gone: nothing of it is called any more, and it reaches no memory."""
    old.wakeup = lambda: None
    bus.memory.unmap_all()
    bus.loop._ready.clear()
    bus.loop._timers.clear()
