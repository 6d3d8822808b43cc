"""What a driver does with the controller itself: its registers, its event rings, and waiting for events (4.17, 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...pci.interrupts import Mechanism
from ...xhci import spec
from ..bus import Bus
from ..limits import scaled
from .capabilities import Capabilities, read_capabilities
from .errors import DriverError, DriverTimeoutError, ProtocolError
from .rings import EventRing
from .trb import Event

_SLICE = 0.1
LINUX_EVENTS = 128
"""Half a segment of Linux's event rings: after so many events and one it writes ERDP before it goes on."""
_TRANSFER = spec.TRB_TRANSFER_EVENT << spec.TRB_TYPE_SHIFT
_TYPE = spec.TRB_TYPE_MASK


class EventTarget(Protocol):
    """Who events of one kind are for: a pipe, or the command ring."""

    def handle(self, event: Event) -> None: ...


class PipeTarget(EventTarget, Protocol):
    """A pipe: the Transfer Events of its endpoint are for it."""

    @property
    def slot_id(self) -> int: ...

    @property
    def dci(self) -> int: ...


class ControllerSide:
    """The part of `GuestDriver` that knows the controller and no device; see there for what it can be told."""

    command_target: EventTarget
    """Who hears of Command Completion Events."""

    def __init__(
        self,
        bus: Bus,
        *,
        interrupts: bool,
        qword_writes: bool,
        interrupters: int,
        timeout: float,
        strict: bool,
        linux: bool,
    ) -> None:
        self.bus = bus
        self.ram = bus.ram
        self.timeout = timeout
        self.strict = strict
        self.linux = linux
        self.interrupts = interrupts
        self.qword_writes = qword_writes
        self.capabilities: Capabilities = read_capabilities(bus)
        self.event_rings: list[EventRing] = []
        self.port_changes: set[int] = set()
        self.other_events: list[Event] = []
        self.lost_interrupts = 0
        self.late = scaled(1.0)
        self._interrupters = interrupters
        self._tags = 0
        self._pipes: dict[int, PipeTarget] = {}

    # -- events ----------------------------------------------------------------------------------------------------

    def next_event(self, timeout: float | None = None, interrupter: int = 0) -> Event:
        """Take the next event of an interrupter as it is; nobody else learns of it. Raises DriverTimeoutError."""
        ring = self.event_rings[interrupter]
        self._wait(lambda: ring.waiting, "no event", timeout, None)
        event = ring.take()
        assert event is not None
        self.acknowledge(interrupter)
        return event

    def no_event(self, seconds: float = 0.05, interrupter: int = 0) -> None:
        """Raises ProtocolError if an event comes within `seconds`."""
        self.bus.pause(seconds)
        event = self.event_rings[interrupter].take()
        if event is not None:
            raise ProtocolError("an event that nobody expects", event.completion_code, event)

    def handle_events(self) -> int:
        """Take all events there are, hand them to the commands and TDs they are for; how many there were.

        As Linux's driver only when there has been an interrupt, unless interrupts are off.
        """
        if self.linux and self.interrupts:
            ring = self.event_rings[0] if self.event_rings else None
            return self._handle_interrupt() if ring is not None and ring.waiting and self._signalled(0) else 0
        count = 0
        for number, ring in enumerate(self.event_rings):
            self._clear_pending(number)
            event = ring.take()
            if event is None:
                continue
            try:
                while event is not None:
                    count += 1
                    self._dispatch(event)
                    event = ring.take()
            finally:
                self.acknowledge(number)
        return count

    def acknowledge(self, interrupter: int = 0) -> None:
        """Write ERDP with what has been taken, and clear Event Handler Busy (5.5.2.3.3)."""
        ring = self.event_rings[interrupter]
        self._clear_pending(interrupter)
        value = ring.dequeue | ring.segment_index | spec.ERDP_EHB
        self.write_64(self.interrupter_offset(interrupter) + spec.ERDP, value)
        ring.moved = False

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float | None = None) -> None:
        """Handle events until `condition()`. Raises DriverTimeoutError saying `what`."""
        handle = self._handle_interrupt if self.linux and self.interrupts else self.handle_events
        self._wait(condition, what, timeout, handle)

    def poll_until(self, condition: Callable[[], bool], what: str, timeout: float | None = None) -> None:
        """Handle events and look at `condition()` again and again, as for a register. Raises DriverTimeoutError."""
        deadline = self.bus.clock() + (self.timeout if timeout is None else timeout)
        pause = 0.0002
        while not condition():
            if self.bus.clock() >= deadline:
                raise DriverTimeoutError(self._state(f"{what} in time"))
            self.bus.pause(pause)
            self.handle_events()
            pause = min(pause * 2, 0.01)

    # -- registers -------------------------------------------------------------------------------------------------

    def read_operational(self, offset: int) -> int:
        """An operational register (5.4)."""
        return self.bus.read(self.capabilities.operational_offset + offset)

    def write_operational(self, offset: int, value: int) -> None:
        """An operational register of 32 bits."""
        self.bus.write(self.capabilities.operational_offset + offset, value)

    def write_operational_64(self, offset: int, value: int) -> None:
        """An operational register of 64 bits."""
        self.write_64(self.capabilities.operational_offset + offset, value)

    def write_64(self, offset: int, value: int) -> None:
        """A 64-bit register: at once, or low half first (5.1)."""
        if self.qword_writes:
            self.bus.write(offset, value, 8)
        else:
            self.bus.write(offset, value & 0xFFFF_FFFF)
            self.bus.write(offset + 4, value >> 32)

    def interrupter_offset(self, number: int) -> int:
        """Offset in BAR0 of an interrupter's registers (5.5.2)."""
        return self.capabilities.runtime_offset + spec.INTERRUPTERS + number * spec.INTERRUPTER_STRIDE

    def ring_doorbell(self, slot_id: int, target: int, stream_id: int = 0) -> None:
        """Write any doorbell (5.6)."""
        offset = self.capabilities.doorbell_offset + 4 * slot_id
        self.bus.write(offset, target | stream_id << spec.DOORBELL_STREAM_SHIFT)
        if self.linux:
            self.bus.read(offset)  # flushes the write

    # -- for devices and pipes -------------------------------------------------------------------------------------

    def next_tag(self) -> int:
        """A parameter for an Event Data TRB that no other one has."""
        self._tags += 1
        return 0xED00_0000_0000_0000 | self._tags

    def add_pipe(self, pipe: PipeTarget) -> None:
        """Transfer Events of the pipe's endpoint go to it."""
        self._pipes[pipe.slot_id << 5 | pipe.dci] = pipe

    def remove_pipe(self, pipe: PipeTarget) -> None:
        """They are unexpected from now on."""
        self._pipes.pop(pipe.slot_id << 5 | pipe.dci, None)

    # -- own -------------------------------------------------------------------------------------------------------

    def _handle_interrupt(self) -> int:
        """What Linux's driver does in its interrupt handler (`xhci_irq`): how many events there were."""
        status = self.read_operational(spec.USBSTS)
        if not status & spec.USBSTS_EINT:
            return 0
        self.write_operational(spec.USBSTS, status)
        if self.bus.mechanism is Mechanism.INTX:
            offset = self.interrupter_offset(0) + spec.IMAN
            self.bus.write(offset, self.bus.read(offset) | spec.IMAN_IP)
        ring, count, since = self.event_rings[0], 0, 0
        event = ring.take()
        try:
            while event is not None:
                count += 1
                since += 1
                self._dispatch(event)
                if since > LINUX_EVENTS:
                    self._move_dequeue(0)
                    since = 0
                event = ring.take()
        finally:
            self._move_dequeue(spec.ERDP_EHB)
        return count

    def _move_dequeue(self, busy: int) -> None:
        """As `xhci_update_erst_dequeue`: read ERDP, and write it if the pointer has moved."""
        ring, offset = self.event_rings[0], self.interrupter_offset(0) + spec.ERDP
        there = self.bus.read(offset) | self.bus.read(offset + 4) << 32
        if there & ~0xF != ring.dequeue:
            self.write_64(offset, ring.dequeue | ring.segment_index | busy)
            ring.moved = False

    def _clear_pending(self, interrupter: int) -> None:
        """Lower the interrupt pin, which no message does for us (4.17.5). Before events are taken: one that comes
        after that interrupts again."""
        if self.bus.mechanism is Mechanism.INTX and self.interrupts:
            offset = self.interrupter_offset(interrupter) + spec.IMAN
            value = self.bus.read(offset)
            if value & spec.IMAN_IP:
                self.write_operational(spec.USBSTS, spec.USBSTS_EINT)
                self.bus.write(offset, value)

    def _dispatch(self, event: Event) -> None:
        control = event.control
        if control & _TYPE == _TRANSFER:
            pipe = self._pipes.get(control >> 24 << 5 | control >> 16 & 0x1F)
            if pipe is None:
                raise ProtocolError("a Transfer Event for an endpoint that is not in use", event.completion_code, event)
            pipe.handle(event)
        elif event.type == spec.TRB_COMMAND_COMPLETION:
            self.command_target.handle(event)
        elif event.type == spec.TRB_PORT_STATUS_CHANGE:
            if not 1 <= event.port_id <= self.capabilities.max_ports or event.completion_code != spec.CC_SUCCESS:
                raise ProtocolError("a Port Status Change Event that cannot be", event.completion_code, event)
            self.port_changes.add(event.port_id)
        else:
            self.other_events.append(event)

    def _wait(
        self, condition: Callable[[], bool], what: str, timeout: float | None, handle: Callable[[], int] | None
    ) -> None:
        bus = self.bus
        deadline = bus.clock() + (self.timeout if timeout is None else timeout)
        if self.linux and self.interrupts:
            while not condition():
                remaining = deadline - bus.clock()
                if remaining <= 0:
                    raise DriverTimeoutError(self._state(f"{what} in time"))
                if self._signalled(remaining) and handle is not None:
                    handle()
            return
        signalled = True
        while True:
            if handle is not None:
                if not signalled:
                    self._await_late_interrupt(max(deadline - bus.clock(), 0.0))
                handle()
            if condition():
                return
            remaining = deadline - bus.clock()
            if remaining <= 0:
                raise DriverTimeoutError(self._state(f"{what} in time"))
            if not signalled and self.read_operational(spec.USBSTS) & (spec.USBSTS_HSE | spec.USBSTS_HCE):
                raise DriverError(self._state(f"{what}, the controller has stopped"))
            if self.interrupts:
                signalled = self._signalled(min(remaining, _SLICE))
            else:
                bus.pause(min(remaining, 0.001))

    def _await_late_interrupt(self, timeout: float) -> None:
        """If there are events, their interrupt has to come, and may be on its way. To take them before would tell the
        controller that none is needed any more."""
        if any(ring.waiting for ring in self.event_rings) and not self._signalled(min(self.late, timeout)):
            self.lost_interrupts += 1

    def _signalled(self, timeout: float) -> bool:
        """Wait for an interrupt; whether there was one."""
        if self._interrupters == 1:
            return self.bus.wait_for_interrupt(0, timeout)
        return bool(self.bus.wait_for_any(timeout))

    def _state(self, what: str) -> str:
        status = self.read_operational(spec.USBSTS)
        names = [
            name for name in ("HCH", "HSE", "HCE", "CNR", "EINT", "PCD") if status & getattr(spec, f"USBSTS_{name}")
        ]
        return f"{what}; USBSTS {status:#x} ({' '.join(names) or 'running'})"

    def _poll_operational(self, offset: int, mask: int, value: int, what: str) -> None:
        self.poll_until(lambda: self.read_operational(offset) & mask == value, what)
