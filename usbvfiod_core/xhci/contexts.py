"""Slot, endpoint and input contexts in guest memory (6.2).

Everything is written with the stride of HCCPARAMS1.CSZ: 32 or 64 bytes a context, the input control context included.
Each function copies the words it is about; fields that the controller does not own are left as the driver wrote them.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from ..memory import GuestMemory
from ..usb.transfer import TransferType
from . import spec

_SLOT: Final = Struct("<4I")
_ENDPOINT: Final = Struct("<5I")

ENDPOINT_TYPES: Final = {
    spec.EP_TYPE_ISOCH_OUT: TransferType.ISOCHRONOUS,
    spec.EP_TYPE_ISOCH_IN: TransferType.ISOCHRONOUS,
    spec.EP_TYPE_BULK_OUT: TransferType.BULK,
    spec.EP_TYPE_BULK_IN: TransferType.BULK,
    spec.EP_TYPE_INTERRUPT_OUT: TransferType.INTERRUPT,
    spec.EP_TYPE_INTERRUPT_IN: TransferType.INTERRUPT,
    spec.EP_TYPE_CONTROL: TransferType.CONTROL,
}


class EndpointContext:
    """An endpoint context as the driver wrote it (6.2.3)."""

    __slots__ = ("words",)

    def __init__(self, words: tuple[int, ...]) -> None:
        self.words = words

    @property
    def type(self) -> int:
        return (self.words[1] & spec.EP_TYPE_MASK) >> spec.EP_TYPE_SHIFT

    @property
    def max_packet_size(self) -> int:
        return self.words[1] >> spec.EP_MAX_PACKET_SHIFT

    @property
    def max_primary_streams(self) -> int:
        """MaxPStreams: 0 for none, else the Stream Context Array has 2^(n+1) entries."""
        return (self.words[0] & spec.EP_MAXPSTREAMS_MASK) >> spec.EP_MAXPSTREAMS_SHIFT

    @property
    def streams(self) -> int:
        """Entries of the Stream Context Array; the first is no stream."""
        return 2 << self.max_primary_streams

    @property
    def dequeue(self) -> int:
        """TR Dequeue Pointer with DCS in bit 0."""
        return self.words[2] | self.words[3] << 32

    def valid_for(self, dci: int) -> bool:
        """Whether there can be such an endpoint: of a type, in the direction of its DCI, with streams that are there.

        What the endpoint is like (Max Packet Size, Max Burst Size, Mult, Interval; 6.2.3.1 to 6.2.3.6) is between the
        driver and the device, and nothing here depends on it. Drivers write what descriptors say, and many devices say
        what no specification allows. USB 2.0 5.6.3 even demands a packet size of 0, of isochronous endpoints in an
        alternate setting 0: a driver that is refused there gives up the whole device.
        """
        kind = self.type
        if kind == spec.EP_TYPE_NOT_VALID:
            return False
        if kind == spec.EP_TYPE_CONTROL:
            return bool(dci & 1) and not self.max_primary_streams
        if (kind > spec.EP_TYPE_CONTROL) != bool(dci & 1):
            return False
        return not self.max_primary_streams or (
            kind in (spec.EP_TYPE_BULK_IN, spec.EP_TYPE_BULK_OUT)
            and self.max_primary_streams <= spec.MAX_PSA_SIZE
            and bool(self.words[0] & spec.EP_LSA)
        )


class InputContext:
    """The input context of a command, read as it is asked for (6.2.5). Raises GuestMemoryError."""

    def __init__(self, memory: GuestMemory, address: int, stride: int) -> None:
        self._memory = memory
        self._address = address
        self._stride = stride
        self.drop, self.add = Struct("<2I").unpack(memory.read(address, 8))

    def slot(self) -> tuple[int, ...]:
        return _SLOT.unpack(self._memory.read(self._address + self._stride, _SLOT.size))

    def endpoint(self, dci: int) -> EndpointContext:
        address = self._address + (dci + 1) * self._stride
        return EndpointContext(_ENDPOINT.unpack(self._memory.read(address, _ENDPOINT.size)))


class DeviceContext:
    """The output device context of a slot at guest address `address` (6.2.1). Raises GuestMemoryError."""

    def __init__(self, memory: GuestMemory, address: int, stride: int) -> None:
        self.address = address
        self._memory = memory
        self._stride = stride

    def endpoint_address(self, dci: int) -> int:
        """Guest address of an endpoint's context."""
        return self.address + dci * self._stride

    def slot(self) -> tuple[int, ...]:
        return _SLOT.unpack(self._memory.read(self.address, _SLOT.size))

    def write_slot(self, words: tuple[int, ...], state: int, device_address: int) -> None:
        """Write the slot context with this state and USB Device Address; the last dword, with the state, last."""
        view = self._memory.window(self.address, _SLOT.size).cast("I")
        for index in range(3):
            view[index] = words[index]
        view[3] = state << spec.SLOT_STATE_SHIFT | device_address

    def write_slot_state(self, state: int) -> None:
        view = self._memory.window(self.address, _SLOT.size).cast("I")
        view[3] = view[3] & spec.SLOT_ADDRESS | state << spec.SLOT_STATE_SHIFT

    def write_endpoint(self, dci: int, context: EndpointContext, state: int) -> None:
        """Write an endpoint's context as the driver gave it, with this state."""
        view = self._memory.window(self.endpoint_address(dci), _ENDPOINT.size).cast("I")
        words = context.words
        for index in range(1, 5):
            view[index] = words[index]
        view[0] = words[0] & ~spec.EP_STATE | state

    def write_endpoint_state(self, dci: int, state: int) -> None:
        view = self._memory.window(self.endpoint_address(dci), 4).cast("I")
        view[0] = view[0] & ~spec.EP_STATE | state

    def write_max_packet_size(self, dci: int, size: int) -> None:
        view = self._memory.window(self.endpoint_address(dci), 8).cast("I")
        view[1] = view[1] & 0xFFFF | size << spec.EP_MAX_PACKET_SHIFT
