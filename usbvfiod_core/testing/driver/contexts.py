"""Contexts as a driver writes and reads them (6.2): 32 bytes apart, or 64 where the controller says so (CSZ)."""

from __future__ import annotations

from ...xhci import spec
from ..memory import GuestRam

ENTRIES = 32
"""The slot context and 31 endpoint contexts."""


class DeviceContext:
    """The output device context of a slot (6.2.1), which the controller writes."""

    def __init__(self, ram: GuestRam, stride: int) -> None:
        self.ram = ram
        self.stride = stride
        self.address = ram.allocate(ENTRIES * stride, align=64, boundary=4096)

    def slot(self) -> tuple[int, ...]:
        """The first four dwords of the slot context."""
        return tuple(self.ram.dwords(self.address, 4))

    def endpoint(self, dci: int) -> tuple[int, ...]:
        """The first five dwords of an endpoint context."""
        return tuple(self.ram.dwords(self.address + dci * self.stride, 5))

    @property
    def slot_state(self) -> int:
        """SLOT_DISABLED (also Enabled), SLOT_DEFAULT, SLOT_ADDRESSED or SLOT_CONFIGURED."""
        return self.slot()[3] >> spec.SLOT_STATE_SHIFT

    @property
    def usb_address(self) -> int:
        """The USB device address that the controller has assigned."""
        return self.slot()[3] & spec.SLOT_ADDRESS

    @property
    def entries(self) -> int:
        """Context Entries: the last valid endpoint context."""
        return (self.slot()[0] & spec.SLOT_ENTRIES_MASK) >> spec.SLOT_ENTRIES_SHIFT

    def endpoint_state(self, dci: int) -> int:
        """EP_DISABLED, EP_RUNNING, EP_HALTED, EP_STOPPED or EP_ERROR."""
        return self.endpoint(dci)[0] & spec.EP_STATE

    def max_packet_size(self, dci: int) -> int:
        """Max Packet Size of an endpoint."""
        return self.endpoint(dci)[1] >> spec.EP_MAX_PACKET_SHIFT

    def dequeue(self, dci: int) -> tuple[int, int]:
        """(TR Dequeue Pointer, Dequeue Cycle State) of an endpoint; valid while it does not run (4.8.3)."""
        low, high = self.endpoint(dci)[2:4]
        return low & ~0xF | high << 32, low & spec.EP_DCS

    def free(self) -> None:
        """Give the memory back."""
        self.ram.free(self.address)


class InputContext:
    """An input context (6.2.5): the input control context, a slot context and 31 endpoint contexts."""

    def __init__(self, ram: GuestRam, stride: int) -> None:
        self.ram = ram
        self.stride = stride
        self.address = ram.allocate((ENTRIES + 1) * stride, align=64, boundary=4096)

    def clear(self) -> None:
        """All zeroes: nothing to add, nothing to drop."""
        self.ram.write(self.address, bytes((ENTRIES + 1) * self.stride))

    def add(self, dci: int) -> None:
        """Set an Add Context flag; 0 is the slot context."""
        self._flag(spec.INPUT_ADD, dci)

    def drop(self, dci: int) -> None:
        """Set a Drop Context flag."""
        self._flag(spec.INPUT_DROP, dci)

    def set_slot(self, *dwords: int) -> None:
        """Write the first dwords of the slot context."""
        self._store(1, dwords)

    def set_endpoint(self, dci: int, *dwords: int) -> None:
        """Write the first dwords of an endpoint context."""
        self._store(dci + 1, dwords)

    def copy_slot(self, context: DeviceContext) -> None:
        """Start from the slot context that the controller has written."""
        self._store(1, context.slot())

    def free(self) -> None:
        """Give the memory back."""
        self.ram.free(self.address)

    def _flag(self, offset: int, dci: int) -> None:
        address = self.address + offset
        self.ram.write_u32(address, self.ram.read_u32(address) | 1 << dci)

    def _store(self, entry: int, dwords: tuple[int, ...]) -> None:
        view = self.ram.dwords(self.address + entry * self.stride, len(dwords))
        for index, value in enumerate(dwords):
            view[index] = value & 0xFFFF_FFFF


def slot_dwords(
    *, speed: int, port_id: int, entries: int = 1, route_string: int = 0, interrupter: int = 0
) -> tuple[int, int, int, int]:
    """A slot context for a device on a root hub port (6.2.2)."""
    return (
        route_string | speed << spec.SLOT_SPEED_SHIFT | entries << spec.SLOT_ENTRIES_SHIFT,
        port_id << spec.SLOT_PORT_SHIFT,
        interrupter << spec.SLOT_INTERRUPTER_SHIFT,
        0,
    )


def endpoint_dwords(
    *,
    type: int,
    max_packet_size: int,
    dequeue: int,
    cycle: int = 1,
    max_burst: int = 0,
    interval: int = 0,
    mult: int = 0,
    error_count: int = 3,
    average_length: int = 8,
    esit_payload: int = 0,
    max_primary_streams: int = 0,
) -> tuple[int, int, int, int, int]:
    """An endpoint context (6.2.3). `interval` is the exponent, in units of 125 us. With `max_primary_streams`
    (MaxPStreams) `dequeue` is the address of a linear Stream Context Array."""
    streams = max_primary_streams << spec.EP_MAXPSTREAMS_SHIFT | spec.EP_LSA if max_primary_streams else 0
    return (
        streams | mult << spec.EP_MULT_SHIFT | interval << spec.EP_INTERVAL_SHIFT | (esit_payload >> 16) << 24,
        error_count << spec.EP_CERR_SHIFT
        | type << spec.EP_TYPE_SHIFT
        | max_burst << spec.EP_MAX_BURST_SHIFT
        | max_packet_size << spec.EP_MAX_PACKET_SHIFT,
        dequeue & 0xFFFF_FFFF | cycle,
        dequeue >> 32,
        average_length | (esit_payload & 0xFFFF) << 16,
    )
