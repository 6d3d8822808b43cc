"""The guest's xHCI driver: brings a controller up, hands events to those who wait for them (4.2, 4.17)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from ...pci.interrupts import Mechanism
from ...xhci import spec
from ..bus import Bus
from ..limits import PATIENCE
from .capabilities import Capabilities, read_capabilities
from .commands import Commands
from .device import UsbDevice
from .errors import DriverError, DriverTimeoutError, ProtocolError
from .pipe import Pipe
from .ports import Port
from .rings import EventRing
from .td import Td
from .trb import Event, Trb

DEVICE_CONTEXTS = 256

_SLICE = 0.1
_TRANSFER = spec.TRB_TRANSFER_EVENT << spec.TRB_TYPE_SHIFT
_TYPE = spec.TRB_TYPE_MASK


class GuestDriver:
    """A guest-side xHCI driver over a `Bus`. `start` brings the controller up; `enumerate` makes a device usable.

    interrupters    event rings to set up, 1 or more; commands and port changes report to the first
    event_segments  sizes in TRBs of each event ring's segments
    command_trbs    size of the command ring; `ring_trbs` and `ring_segments` of transfer rings
    interrupts      False: never enable interrupts, poll as a firmware does
    moderation      IMOD interval, in units of 250 ns
    qword_writes    write 64-bit registers at once instead of low half, high half
    high            True: rings above 4 GiB; False: below; None: wherever there is room
    timeout         seconds that anything may take, of the time of the bus
    strict          False: overlook what a controller leaves out of its contexts, to measure others than ours

    It checks the controller on the way and raises `ProtocolError` for what the specification forbids.
    `devices` are the devices by slot id; `port_changes` the ports whose Port Status Change Events came (the owner
    clears it); `other_events` what is neither transfer, command nor port; `lost_interrupts` counts events that were
    found without a signal long after.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        interrupters: int = 1,
        event_segments: Sequence[int] = (256,),
        command_trbs: int = 64,
        ring_trbs: int = 64,
        ring_segments: int = 1,
        interrupts: bool = True,
        moderation: int = 0,
        qword_writes: bool = False,
        high: bool | None = None,
        timeout: float = PATIENCE,
        strict: bool = True,
    ) -> None:
        self.bus = bus
        self.ram = bus.ram
        self.timeout = timeout
        self.strict = strict
        self.interrupts = interrupts
        self.moderation = moderation
        self.qword_writes = qword_writes
        self.ring_trbs = ring_trbs
        self.ring_segments = ring_segments
        self.capabilities: Capabilities = read_capabilities(bus)
        own_vectors = bus.mechanism is Mechanism.MSIX
        if interrupters > self.capabilities.max_interrupters or (own_vectors and interrupters > bus.vectors):
            raise DriverError(f"{interrupters} interrupters, the controller has {self.capabilities.max_interrupters}")
        if len(event_segments) > self.capabilities.erst_max:
            raise DriverError(f"{len(event_segments)} segments, the controller allows {self.capabilities.erst_max}")
        self._interrupters = interrupters
        self._event_segments = tuple(event_segments)
        self._command_trbs = command_trbs
        self._high = high
        self._allocations: list[int] = []
        self._tags = 0
        self._pipes: dict[int, Pipe] = {}
        self.commands: Commands
        self.event_rings: list[EventRing] = []
        self.dcbaa = 0
        self.devices: dict[int, UsbDevice] = {}
        self.port_changes: set[int] = set()
        self.other_events: list[Event] = []
        self.lost_interrupts = 0

    def __enter__(self) -> GuestDriver:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.halt()

    # -- bringing the controller up --------------------------------------------------------------------------------

    def start(self) -> GuestDriver:
        """Reset the controller, set up all structures and run it (4.2). Returns itself."""
        self.reset()
        self.set_up()
        self.run()
        return self

    def reset(self) -> None:
        """Halt and reset the controller (HCRST, 5.4.1), and forget all slots."""
        self.halt()
        self.write_operational(spec.USBCMD, spec.USBCMD_HCRST)
        self._poll_operational(spec.USBCMD, spec.USBCMD_HCRST, 0, "HCRST stays set")
        self._poll_operational(spec.USBSTS, spec.USBSTS_CNR, 0, "Controller Not Ready stays set")
        if not self.read_operational(spec.USBSTS) & spec.USBSTS_HCH:
            raise ProtocolError("the controller is not halted after a reset")
        for device in list(self.devices.values()):
            device.forget()
        self.port_changes.clear()

    def set_up(self) -> None:
        """Give the halted controller its command ring, event rings and device context array."""
        for address in self._allocations:
            self.ram.free(address)
        for ring in self.event_rings:
            ring.free()
        self._allocations.clear()
        self.dcbaa = self._take(DEVICE_CONTEXTS * 8)
        if self.capabilities.scratchpads:
            array = self._take(self.capabilities.scratchpads * 8)
            for index in range(self.capabilities.scratchpads):
                self.ram.write_u64(array + index * 8, self._take(self.capabilities.page_size, page=True))
            self.ram.write_u64(self.dcbaa, array)
        self.commands = Commands(self, self._command_trbs)
        self.write_operational(spec.CONFIG, self.capabilities.max_slots)
        self.write_operational_64(spec.DCBAAP, self.dcbaa)
        self.write_operational_64(spec.CRCR, self.commands.ring.base | spec.CRCR_RCS)
        self.event_rings = [
            EventRing(self.ram, self._event_segments, high=self._high) for _ in range(self._interrupters)
        ]
        for number, ring in enumerate(self.event_rings):
            base = self.interrupter_offset(number)
            self.bus.write(base + spec.ERSTSZ, len(ring.segments))
            self.write_64(base + spec.ERDP, ring.dequeue)
            self.write_64(base + spec.ERSTBA, ring.table)
            self.bus.write(base + spec.IMOD, self.moderation)
            self.bus.write(base + spec.IMAN, spec.IMAN_IP | (spec.IMAN_IE if self.interrupts else 0))

    def run(self) -> None:
        """Set Run/Stop and wait until the controller is not halted any more."""
        self.write_operational(spec.USBCMD, spec.USBCMD_RS | (spec.USBCMD_INTE if self.interrupts else 0))
        self._poll_operational(spec.USBSTS, spec.USBSTS_HCH, 0, "the controller does not run")

    def halt(self) -> None:
        """Clear Run/Stop and wait until the controller is halted (16 ms, 5.4.1.1)."""
        command = self.read_operational(spec.USBCMD)
        self.write_operational(spec.USBCMD, command & ~(spec.USBCMD_RS | spec.USBCMD_INTE))
        self._poll_operational(spec.USBSTS, spec.USBSTS_HCH, spec.USBSTS_HCH, "the controller does not halt")

    # -- devices and ports -----------------------------------------------------------------------------------------

    @property
    def ports(self) -> list[Port]:
        """All root hub ports."""
        return [self.port(port_id) for port_id in range(1, self.capabilities.max_ports + 1)]

    def port(self, port_id: int) -> Port:
        """One root hub port, counted from 1."""
        return Port(self, port_id, self.capabilities.major_of(port_id))

    def connected_ports(self) -> list[Port]:
        """The ports with a device, enumerated or not."""
        return [port for port in self.ports if port.connected]

    def wait_for_port(self, timeout: float | None = None) -> Port:
        """Wait until there is a device that is not enumerated yet; its port."""
        found: list[Port] = []

        def look() -> bool:
            taken = {device.port.port_id for device in self.devices.values()}
            found.extend(port for port in self.connected_ports() if port.port_id not in taken)
            return bool(found)

        self.poll_until(look, "no device connects", timeout)
        return found[0]

    def enumerate(
        self, port_id: int | None = None, *, block_set_address: bool = False, configure: bool = True
    ) -> UsbDevice:
        """Reset the port, enable a slot, address the device, read its descriptors and configure it (4.3).

        Without `port_id` the first device that is not enumerated yet. `block_set_address` addresses the device in two
        steps (BSR). `configure=False` leaves it in the Address state. On a failure the slot is given back.
        """
        port = self.wait_for_port() if port_id is None else self.port(port_id)
        port.wait_connected()
        if port.major == 2 or not port.enabled:
            port.reset()
        port.clear_changes()
        device = UsbDevice(self, port)
        try:
            device.enumerate(block_set_address=block_set_address)
            if configure and device.configurations:
                device.set_configuration(device.configurations[0].value)
        except BaseException:
            device.disable()
            raise
        return device

    # -- events ----------------------------------------------------------------------------------------------------

    def next_event(self, timeout: float | None = None, interrupter: int = 0) -> Event:
        """Take the next event of an interrupter as it is; nobody else learns of it. Raises DriverTimeoutError."""
        ring = self.event_rings[interrupter]
        self._wait(lambda: ring.waiting, "no event", timeout, lambda: 0)
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
        """Take all events there are, hand them to the commands and TDs they are for; how many there were."""
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
        self._wait(condition, what, timeout, self.handle_events)

    def wait_for_td(self, td: Td, timeout: float | None = None) -> None:
        """Handle events until the TD is done. Raises DriverTimeoutError."""
        self.handle_events()
        if not td.done:
            what = f"endpoint {td.pipe.address:#04x} of slot {td.pipe.slot_id}: a transfer is not done"
            self._wait(lambda: td.done, what, timeout, self.handle_events)

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

    def command(self, trb: Trb, timeout: float | None = None) -> Event:
        """Run any command TRB and return its completion event, whatever its code."""
        return self.commands.execute(trb, timeout)

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
        value = target | stream_id << spec.DOORBELL_STREAM_SHIFT
        self.bus.write(self.capabilities.doorbell_offset + 4 * slot_id, value)

    # -- for devices and pipes -------------------------------------------------------------------------------------

    def next_tag(self) -> int:
        """A parameter for an Event Data TRB that no other one has."""
        self._tags += 1
        return 0xED00_0000_0000_0000 | self._tags

    def add_pipe(self, pipe: Pipe) -> None:
        """Transfer Events of the pipe's endpoint go to it."""
        self._pipes[pipe.slot_id << 5 | pipe.dci] = pipe

    def remove_pipe(self, pipe: Pipe) -> None:
        """They are unexpected from now on."""
        self._pipes.pop(pipe.slot_id << 5 | pipe.dci, None)

    # -- own -------------------------------------------------------------------------------------------------------

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
            self.commands.handle(event)
        elif event.type == spec.TRB_PORT_STATUS_CHANGE:
            if not 1 <= event.port_id <= self.capabilities.max_ports or event.completion_code != spec.CC_SUCCESS:
                raise ProtocolError("a Port Status Change Event that cannot be", event.completion_code, event)
            self.port_changes.add(event.port_id)
        else:
            self.other_events.append(event)

    def _wait(self, condition: Callable[[], bool], what: str, timeout: float | None, handle: Callable[[], int]) -> None:
        bus = self.bus
        deadline = bus.clock() + (self.timeout if timeout is None else timeout)
        signalled = True
        while True:
            if handle() and not signalled:
                self.lost_interrupts += 1
            if condition():
                return
            remaining = deadline - bus.clock()
            if remaining <= 0:
                raise DriverTimeoutError(self._state(f"{what} in time"))
            if not signalled and self.read_operational(spec.USBSTS) & (spec.USBSTS_HSE | spec.USBSTS_HCE):
                raise DriverError(self._state(f"{what}, the controller has stopped"))
            if not self.interrupts:
                bus.pause(min(remaining, 0.001))
            elif self._interrupters == 1:
                signalled = bus.wait_for_interrupt(0, min(remaining, _SLICE))
            else:
                signalled = bool(bus.wait_for_any(min(remaining, _SLICE)))

    def _state(self, what: str) -> str:
        status = self.read_operational(spec.USBSTS)
        names = [
            name for name in ("HCH", "HSE", "HCE", "CNR", "EINT", "PCD") if status & getattr(spec, f"USBSTS_{name}")
        ]
        return f"{what}; USBSTS {status:#x} ({' '.join(names) or 'running'})"

    def _poll_operational(self, offset: int, mask: int, value: int, what: str) -> None:
        self.poll_until(lambda: self.read_operational(offset) & mask == value, what)

    def _take(self, length: int, *, page: bool = False) -> int:
        align = self.capabilities.page_size if page else 64
        address = self.ram.allocate(length, align=align, boundary=max(align, 4096), high=self._high)
        self._allocations.append(address)
        return address
