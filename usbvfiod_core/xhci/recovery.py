"""The state of a controller whose process was killed: found out from its registers, from the little that it had said
(`kept`), and from the guest's memory.

It is what the driver can know. Event rings go on behind the last event in them. Slots and endpoints are as their
contexts say, and their transfers go nowhere: the devices were unplugged when the process ended, and the driver gives
its TDs up when it hears that. A command is executed again if its event is missing, which does no harm: what it has done
already is in the contexts. What was half done is finished: a reset, a halt.
"""

from __future__ import annotations

from typing import Final

from ..errors import GuestMemoryError
from ..memory import GuestMemory
from ..state import StateError, require
from . import registers as reg
from . import spec, states
from .contexts import ENDPOINT_TYPES, EndpointContext
from .event_ring import ERST_MAX
from .kept import DEQUEUE, EVENTS, IGNORED, POINTER, STOPPING, Kept
from .ring import ConsumerRing, RingLoopError
from .state import (
    CommandRingState,
    ControllerState,
    EndpointState,
    EventRingState,
    InterrupterState,
    MappedState,
    PortState,
    RingState,
    SegmentState,
    SlotState,
    StreamsState,
)

_USBCMD: Final = reg.OPERATIONAL_BASE + spec.USBCMD >> 2
_USBSTS: Final = reg.OPERATIONAL_BASE + spec.USBSTS >> 2
_CRCR: Final = reg.OPERATIONAL_BASE + spec.CRCR >> 2
_DCBAAP: Final = reg.OPERATIONAL_BASE + spec.DCBAAP >> 2
_PAGE: Final = reg.INTERRUPTER_PAGE
_COMPLETION: Final = spec.TRB_COMMAND_COMPLETION << spec.TRB_TYPE_SHIFT
_PROTOCOLS: Final = (0x20, 0x30)
"""Where the Supported Protocol capabilities are (`registers`): USB 2, USB 3."""


def recovered(
    registers: memoryview, kept: Kept, memory: GuestMemory, page: memoryview | None, *, withholding: bool = False
) -> ControllerState:
    """The state of the controller that has had these registers, the bytes of its register space; for `restore` of one
    in which nothing is plugged in. `page` is the page of the interrupters' registers if the client maps them; those of
    `registers` do not count then. Raises StateError."""
    try:
        return _Finding(registers, kept, memory, page).state(withholding)
    except GuestMemoryError as error:
        raise StateError(f"interrupters: an event ring is out of reach: {error}") from None


class _Finding:
    def __init__(self, registers: memoryview, kept: Kept, memory: GuestMemory, page: memoryview | None) -> None:
        content = bytearray(registers)
        if page is not None:
            content[_PAGE : _PAGE + len(page)] = page
        self._dwords = dwords = memoryview(content).cast("I")
        self._kept = kept
        self._memory = memory
        self._page = page
        counts = [dwords[(at >> 2) + 2] >> 8 & 0xFF for at in _PROTOCOLS]
        self._usb2_ports, self._usb3_ports = counts
        self._interrupters = dwords[spec.HCSPARAMS1 >> 2] >> 8 & 0x7FF
        self._stride = 64 if dwords[spec.HCCPARAMS1 >> 2] & spec.HCC1_CSZ else 32
        self._ports = sum(counts)
        possible = min(counts) >= 1 and self._ports <= spec.MAX_PORTS and 1 <= self._interrupters <= 32
        require(possible, "registers", "no controller has so many ports or interrupters")
        self._max_slots = max(reg.MIN_SLOTS, self._ports)

    def state(self, withholding: bool) -> ControllerState:
        dwords, shared = self._dwords, self._page is not None
        if dwords[_USBSTS] & spec.USBSTS_CNR or dwords[_USBCMD] & spec.USBCMD_HCRST:
            self._reset()
        failed = bool(dwords[_USBSTS] & (spec.USBSTS_HSE | spec.USBSTS_HCE))
        if failed or not dwords[_USBCMD] & spec.USBCMD_RS:
            dwords[_USBSTS] |= spec.USBSTS_HCH
        if dwords[_USBSTS] & spec.USBSTS_HCH:  # a start that had only begun is begun again
            dwords[_USBCMD] &= ~spec.USBCMD_RS
            dwords[_CRCR] = 0
        ports = self._port_states()
        interrupters = [self._interrupter(index) for index in range(self._interrupters)]
        untouched = not (dwords[_USBCMD] or dwords[_DCBAAP] or dwords[_DCBAAP + 1])
        registers = {}
        for name, offset, row in reg.register_map(self._ports, self._interrupters):
            mine = not (shared and _PAGE <= offset < _PAGE + 0x1000) and row.name != "MFINDEX"
            if mine and dwords[offset >> 2] != row.reset:
                registers[name] = dwords[offset >> 2]
        return ControllerState(
            self._usb2_ports,
            self._usb3_ports,
            self._stride,
            registers,
            self._command_ring(interrupters[0].ring),
            interrupters,
            shared=shared,
            failed=failed,
            untouched=untouched,
            withholding=withholding,
            ports=ports,
            slots=[self._slot(each) for each in range(1, self._max_slots + 1) if self._kept.slots[each]],
        )

    def _reset(self) -> None:
        """Finish the reset that was under way: of the registers that the client maps as well."""
        for _, offset, row in reg.register_map(self._ports, self._interrupters):
            self._dwords[offset >> 2] = row.reset
        if self._page is not None:
            end = _PAGE + len(self._page)
            self._page[:] = self._dwords[_PAGE >> 2 : end >> 2].cast("B")
        self._kept.slots[:] = bytes(len(self._kept.slots))
        self._kept.command[:] = memoryview(bytes(8 * len(self._kept.command))).cast("Q")
        self._kept.command[DEQUEUE] = 1

    def _port_states(self) -> list[PortState]:
        """The driver is told of each change again, and that each device is gone."""
        found = []
        for port_id in range(1, self._ports + 1):
            at = reg.port_base(port_id) + spec.PORTSC >> 2
            self._dwords[at] &= ~spec.PORTSC_PR
            portsc = self._dwords[at]
            occupied, changed = bool(portsc & spec.PORTSC_CCS), bool(portsc & spec.PORTSC_CHANGES)
            if occupied or changed:
                found.append(PortState(port_id, occupied, changed))
        return found

    # -- events ------------------------------------------------------------------------------------------------------

    def _interrupter(self, index: int) -> InterrupterState:
        base = reg.interrupter_base(index)
        count = min(self._dwords[base + spec.ERSTSZ >> 2] & spec.ERSTSZ_MASK, ERST_MAX)
        table = self._pointer(base + spec.ERSTBA) & ~0x3F
        dequeue = self._pointer(base + spec.ERDP) & ~0xF
        mapped = None if self._page is None else MappedState(True, False, table, count, dequeue)
        ring, unread = EventRingState(), False
        if table and count:
            try:
                ring = self._event_ring(table, count, dequeue, f"interrupters[{index}].ring")
            except (GuestMemoryError, StateError):
                # While it is halted the driver may have written half of an address, or may not have cleared the ring.
                if not self._dwords[_USBSTS] & spec.USBSTS_HCH:
                    raise
                unread = True
        return InterrupterState(ring, bool(ring.segments), unread, bool(ring.segments), mapped=mapped)

    def _event_ring(self, table: int, count: int, dequeue: int, path: str) -> EventRingState:
        """Where it goes on: up to there entries have the cycle bit of this lap, and from there on that of the last one;
        a driver that sets a ring up clears it (4.9.4)."""
        entries = memoryview(self._memory.read(table, count * spec.ERST_ENTRY_SIZE)).cast("Q")
        ring, cycles, standing = EventRingState(), bytearray(), 0
        for index in range(count):
            address, size = entries[2 * index] & ~0x3F, entries[2 * index + 1] & 0xFFFF
            if not spec.ERST_SEGMENT_MIN <= size <= spec.ERST_SEGMENT_MAX:
                break
            if 0 <= dequeue - address < size * spec.TRB_SIZE:
                standing = len(cycles) + (dequeue - address >> 4)
            controls = self._memory.window(address, size * spec.TRB_SIZE).cast("I")[3::4]
            cycles += bytes(control & 1 for control in controls)
            ring.segments.append(SegmentState(address, size))
        if cycles:
            last = cycles[-1]
            written = len(cycles) - len(cycles.lstrip(bytes([last ^ 1])))
            require(cycles.count(last ^ 1) == written, path, "the cycle bits of its entries are in no order")
            ring.enqueue, ring.cycle, ring.dequeue = written, last ^ 1, standing
        return ring

    def _command_ring(self, events: EventRingState) -> CommandRingState:
        """It stands at a command that may have been executed: then its event has been published."""
        words = self._kept.command
        dequeue, stopping = words[DEQUEUE], words[STOPPING]
        ring = ConsumerRing(self._memory, dequeue & ~0xF, dequeue & 1)
        running = bool(self._dwords[_CRCR])
        if running:
            try:
                trb = ring.read()
            except (GuestMemoryError, RingLoopError):
                trb = None  # told when the controller reads it
            if trb is not None and self._completed(trb.address, events):
                dequeue = ring.address | ring.cycle
        return CommandRingState(
            dequeue,
            words[POINTER],
            rung=running,
            stopping=stopping & (spec.CRCR_CS | spec.CRCR_CA),
            ignored=bool(stopping & IGNORED),
        )

    def _completed(self, address: int, events: EventRingState) -> bool:
        """Whether an event has said that the command at this address is over, since it was about to be executed."""
        entries = [(each.address + 16 * entry) for each in events.segments for entry in range(each.size)]
        at = self._kept.command[EVENTS]
        while at < len(entries) and at != events.enqueue:
            view = self._memory.window(entries[at], spec.TRB_SIZE)
            control, pointer = view.cast("I")[3], view.cast("Q")[0]
            if control & spec.TRB_TYPE_MASK == _COMPLETION and pointer == address:
                return True
            at = (at + 1) % len(entries)
        return False

    # -- slots -------------------------------------------------------------------------------------------------------

    def _slot(self, slot_id: int) -> SlotState:
        """As its context says, which the driver may have freed if the slot was about to be disabled."""
        slot = SlotState(slot_id, states.SLOT_STATES[spec.SLOT_ENABLED])
        array = self._pointer(_DCBAAP << 2) & ~0x3F
        try:
            context = int.from_bytes(self._memory.read(array + 8 * slot_id, 8), "little") & ~0x3F
            words = self._memory.window(context, 16).cast("I")
            state, port_id = words[3] >> spec.SLOT_STATE_SHIFT, (words[1] & spec.SLOT_PORT_MASK) >> spec.SLOT_PORT_SHIFT
            known = state in (spec.SLOT_DEFAULT, spec.SLOT_ADDRESSED, spec.SLOT_CONFIGURED)
            if not context or not known or not 1 <= port_id <= self._ports:
                return slot
            slot.interrupter = words[2] >> spec.SLOT_INTERRUPTER_SHIFT
            slot.endpoints = [
                each for dci in range(1, 32) if (each := self._endpoint(dci, context + dci * self._stride)) is not None
            ]
            slot.state, slot.port_id = states.SLOT_STATES[state], port_id
        except GuestMemoryError:
            pass
        return slot

    def _endpoint(self, dci: int, at: int) -> EndpointState | None:
        context = EndpointContext(tuple(self._memory.window(at, 20).cast("I")))
        state = context.words[0] & spec.EP_STATE
        if state == spec.EP_DISABLED or state not in states.ENDPOINT_STATES or not context.valid_for(dci):
            return None
        found = EndpointState(dci, ENDPOINT_TYPES[context.type], states.ENDPOINT_STATES[state], at, [], connected=False)
        dequeue = context.dequeue & (spec.EP_DEQUEUE_MASK | spec.EP_DCS)
        if context.max_primary_streams:
            found.streams = StreamsState(dequeue & spec.EP_DEQUEUE_MASK, context.streams)
        else:
            found.rings = [RingState(dequeue)]
        return found

    def _pointer(self, offset: int) -> int:
        return self._dwords[offset >> 2] | self._dwords[(offset >> 2) + 1] << 32
