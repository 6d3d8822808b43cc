"""Isochronous endpoints as a driver sees them: a TD for each service interval, for a frame or as soon as possible."""

from __future__ import annotations

from typing import Unpack

from ...usb import descriptors as usb
from ...usb.speed import Speed
from ...xhci import spec
from .contexts import endpoint_dwords
from .errors import ProtocolError
from .pipe import Pipe
from .slot import Slot
from .td import Td, TdOptions
from .trb import Event, Trb


class IsochronousPipe(Pipe):
    """An isochronous endpoint. It never halts; `starved` are its Ring Underrun and Ring Overrun events (4.10.3.1)."""

    halts = False

    def __init__(self, device: Slot, endpoint: usb.Endpoint) -> None:
        super().__init__(device, endpoint.address, endpoint.packet_size)
        self.starved: list[Event] = []
        companion = endpoint.companion
        self.max_burst = endpoint.transactions - 1 if device.speed == Speed.HIGH else 0
        self.mult = 0
        if companion is not None:
            self.max_burst, self.mult = companion.max_burst, companion.attributes & 3
        self.interval = min(max(endpoint.interval, 1), 16) - 1 + (3 if device.speed < Speed.HIGH else 0)
        """Exponent of the service interval, in units of 125 us (6.2.3.6)."""

    @property
    def payload_max(self) -> int:
        """Bytes that can move in one service interval."""
        return self.max_packet_size * (self.max_burst + 1) * (self.mult + 1)

    def submit(
        self, data: bytes | None = None, length: int = 0, *, frame: int | None = None, **options: Unpack[TdOptions]
    ) -> Td:
        """As `Pipe.submit`, for the frame with this number (11 bits) or as soon as possible (SIA, 4.11.2.5)."""
        trbs, buffer = self._data_td(data, length, options)
        trbs[0] = self.isoch(trbs[0], buffer.length, frame)
        return self._queue(trbs, self.is_in, buffer, options)

    def isoch(self, normal: Trb, size: int, frame: int | None = None) -> Trb:
        """The Isoch TRB (6.4.1.3) in place of the first Normal TRB of a TD of `size` bytes.

        Of one that is more than the endpoint can move in an interval, it says as much as its fields can hold.
        """
        packets = max(-(-size // max(self.max_packet_size, 1)), 1)
        bursts = -(-packets // (self.max_burst + 1))
        last = packets - (bursts - 1) * (self.max_burst + 1)
        control = normal.control & ~spec.TRB_TYPE_MASK | spec.TRB_ISOCH << spec.TRB_TYPE_SHIFT
        control |= min(bursts - 1 << spec.TRB_TBC_SHIFT, spec.TRB_TBC_MASK)
        control |= min(last - 1 << spec.TRB_TLBPC_SHIFT, spec.TRB_TLBPC_MASK)
        control |= spec.TRB_SIA if frame is None else frame << spec.TRB_FRAME_ID_SHIFT
        return Trb(normal.parameter, normal.status, control)

    def handle(self, event: Event) -> None:
        code = event.completion_code
        if code not in (spec.CC_RING_UNDERRUN, spec.CC_RING_OVERRUN):
            super().handle(event)
            return
        if event.parameter or event.length:
            raise ProtocolError("a Ring Underrun or Overrun that points to a TRB (4.10.3.1)", code, event)
        if (code == spec.CC_RING_OVERRUN) is not self.is_in:
            raise ProtocolError("Ring Underrun is for OUT, Ring Overrun for IN", code, event)
        self.starved.append(event)

    def endpoint_context(self) -> tuple[int, ...]:
        """Its endpoint context (6.2.3); there are no retries, so CErr is 0."""
        pointer, cycle = self.context_dequeue
        return endpoint_dwords(
            type=spec.EP_TYPE_ISOCH_IN if self.is_in else spec.EP_TYPE_ISOCH_OUT,
            max_packet_size=self.max_packet_size,
            dequeue=pointer,
            cycle=cycle,
            max_burst=self.max_burst,
            mult=self.mult,
            interval=self.interval,
            error_count=0,
            average_length=self.payload_max,
            esit_payload=self.payload_max,
        )
