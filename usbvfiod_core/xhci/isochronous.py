"""Isochronous endpoints: a TD for each service interval, and never halted (3.2.11, 4.10.3, 4.11.2.5).

The controller hands TDs to the device ahead of time, each with the frame that the driver wants or none for "as soon
as possible" (SIA); the device, or the bus behind it, keeps the pace and completes each when its interval is over. A TD
whose frame has passed before it was fetched is not sent: it ends with a Missed Service Error. When the ring runs dry
the driver is told once, and the endpoint waits for the next doorbell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..usb.device import Device
from ..usb.transfer import IsochronousPacket, Transfer, TransferStatus, known
from . import spec
from .endpoint import Endpoint
from .report import current
from .state import EndpointState
from .td import Td
from .transfer_ring import TransferRing

FRAMES: Final = 2048
"""Frame IDs are 11 bits."""
AHEAD: Final = 895
"""Frames ahead of the present one that a Frame ID may lie (4.11.2.5)."""

_INTERRUPTS: Final = spec.TRB_IOC | spec.TRB_ISP

_CODES: Final[dict[TransferStatus | None, int]] = {
    TransferStatus.BABBLE: spec.CC_BABBLE,
    TransferStatus.MISSED: spec.CC_MISSED_SERVICE,
}


def _interrupts(td: Td) -> bool:
    """Whether the driver may be interrupted when a TD ends well (4.11.2.5, 4.17.5: BEI)."""
    for trb in td.trbs:
        if trb.control & _INTERRUPTS and not trb.control & spec.TRB_BEI:
            return True
    return bool(td.links)


def _moved(td: Td) -> bool:
    """Whether the transfer was cancelled with its packet under way. A packet is for one service interval and does not
    go on in another, so that such a TD is over: a driver adds what a Stopped event says to what it is told later."""
    return td.status is TransferStatus.CANCELLED and td.moved > 0


class IsochronousEndpoint(Endpoint):
    """An endpoint of type Isoch IN or Isoch OUT."""

    _flowing = False

    def stop(self, finish: Callable[[int], None]) -> None:
        self._flowing = False  # what follows begins anew, and a doorbell without TDs is no underrun
        super().stop(finish)

    def _start(self, transfer: Transfer, td: Td, device: Device) -> None:
        self._flowing = True
        td.packet = IsochronousPacket(0, transfer.length)
        transfer.packets = [td.packet]
        transfer.no_interrupt = not _interrupts(td)
        control = td.trbs[0].control
        if not control & spec.TRB_SIA:
            transfer.frame = (control & spec.TRB_FRAME_ID_MASK) >> spec.TRB_FRAME_ID_SHIFT
            if (transfer.frame - self._xhc.frame_number()) % FRAMES > AHEAD:
                transfer.complete(TransferStatus.MISSED)
                return
        super()._start(transfer, td, device)

    def _retire(self, ring: TransferRing, td: Td) -> bool:
        """Report a TD however it ended; nothing halts an isochronous endpoint (4.10.2)."""
        ring.pop()
        if td.transfer is None:
            self._report(ring, td)
            return True
        status = TransferStatus.COMPLETED if _moved(td) else td.status
        if status is TransferStatus.COMPLETED and td.packet is not None:
            status = known(td.packet.status)
        if status is TransferStatus.COMPLETED and (self.is_in or not td.short):
            self._report(ring, td)
            return True
        if td.links:
            self._report_links(td.links)
        if status is TransferStatus.OVERRUN:
            code = spec.CC_ISOCH_BUFFER_OVERRUN if self.is_in else spec.CC_DATA_BUFFER_ERROR
        else:
            code = _CODES.get(status, spec.CC_TRANSACTION_ERROR)
        self.counters.error(code)
        if self._journal.tracing:
            self._trace(td, code)
        trb, residue = current(td)
        self.emit(trb.address, code << spec.EVENT_CODE_SHIFT | residue, 0, trb.status, trb.control)
        return True

    def _retire_completed(self, ring: TransferRing) -> None:
        inflight = ring.inflight
        while inflight and inflight[0].ended and (not inflight[0].taken_back or _moved(inflight[0])):
            self._retire(ring, inflight[0])

    def saved_state(self) -> EndpointState:
        saved = super().saved_state()
        saved.flowing = self._flowing
        return saved

    def take_over(self, saved: EndpointState, path: str) -> None:
        super().take_over(saved, path)
        self._flowing = saved.flowing

    def _ring_unreachable(self, ring: TransferRing, dequeue: int) -> None:
        self._trb_error(ring, dequeue, None)

    def _starve(self, ring: TransferRing) -> None:
        """Ring Underrun (OUT) or Ring Overrun (IN), once for each time the ring runs dry (4.10.3.1)."""
        super()._starve(ring)
        if self._flowing:
            self._flowing = False
            code = spec.CC_RING_OVERRUN if self.is_in else spec.CC_RING_UNDERRUN
            self.counters.error(code)
            self.emit_without_trb(0, code)
