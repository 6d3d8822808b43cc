"""The way of transfers through URBs: see `PieceLane`. Not for isochronous ones."""

from __future__ import annotations

from typing import Final

from usbvfiod_core.host.pieces import Job, PieceLane, whole_packets
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

from . import ioctl as usbfs
from . import windows as memory
from .status import RETRY, URB_STATUS, submit_status
from .urb import Urb, Urbs

CUT: Final = 1 << 20
"""Bytes of one bulk URB where the host controller takes scattered memory: a sixteenth of what usbfs has for all."""
CUT_ONE_PIECE: Final = 64 << 10
"""Where it does not: Linux then looks for memory in one piece."""
CUT_WHOLE_PACKETS: Final = 16 << 10
"""Where it wants whole packets in each piece of scattered memory (EHCI, OHCI, UHCI), and these are not: Linux makes
pieces of this size (USB_SG_SIZE), and refuses the URB then."""
SMALLEST_CUT: Final = 16 << 10
"""Bytes below which a bulk transfer is not cut for want of memory."""

_SETUP: Final = 8
_TYPES: Final = {
    TransferType.CONTROL: usbfs.URB_TYPE_CONTROL,
    TransferType.ISOCHRONOUS: usbfs.URB_TYPE_ISO,
    TransferType.BULK: usbfs.URB_TYPE_BULK,
    TransferType.INTERRUPT: usbfs.URB_TYPE_INTERRUPT,
}


def bulk_cut(capabilities: int, packet_size: int) -> int:
    """Bytes of one bulk URB of an endpoint, on a host controller with these CAP_*."""
    if not capabilities & usbfs.CAP_BULK_SCATTER_GATHER:
        return CUT_ONE_PIECE
    divides = not packet_size or not CUT_WHOLE_PACKETS % packet_size
    return CUT if divides or capabilities & usbfs.CAP_NO_PACKET_SIZE_LIM else CUT_WHOLE_PACKETS


class Lane(PieceLane[Urb]):
    """The transfers of one endpoint, or of one of its streams; `packet_size` is 0 for one that has none."""

    def __init__(self, urbs: Urbs, cut: int, packet_size: int) -> None:
        super().__init__(cut, packet_size)
        self._smallest = whole_packets(SMALLEST_CUT, packet_size)
        self._urbs = urbs

    # -- Owner ---------------------------------------------------------------------------------------------------------

    def reaped(self, urb: Urb, status: int, actual: int) -> None:
        job = urb.content
        assert isinstance(job, Job)
        self.back(job, urb, urb.length, URB_STATUS.get(status, TransferStatus.ERROR), actual)

    # -- PieceLane -----------------------------------------------------------------------------------------------------

    def send(self, job: Job[Urb], offset: int, size: int) -> int | TransferStatus | None:
        cut = self._cut
        while True:
            urb = self._fill(job, offset, size)
            code = self._urbs.submit(urb)
            if code == 0:
                job.requests.append(urb)
                return size
            self._urbs.free(urb)
            if code not in RETRY:
                return submit_status(code, job.transfer.type)
            if size <= self._smallest or job.transfer.type is not TransferType.BULK:
                self._urbs.wait_for_memory(self)
                return None
            while cut >= size:
                cut = max(whole_packets(cut // 2, self._packet_size), self._smallest)
            size = cut

    def discard(self, request: Urb) -> None:
        self._urbs.discard(request)

    def arrived(self, job: Job[Urb], request: Urb, actual: int) -> None:
        if request.bounce is not None:
            transfer = job.transfer
            start = _SETUP if transfer.setup is not None else 0
            windows = memory.part(transfer.windows, job.moved, actual) if job.moved else transfer.windows
            memory.scatter(memoryview(request.bounce)[start : start + actual], windows)

    def go_on(self) -> None:
        if not self._waiting:
            return
        if self._urbs.memory_wanted:
            self._urbs.wait_for_memory(self)
        else:
            self.pump()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _fill(self, job: Job[Urb], offset: int, size: int) -> Urb:
        transfer = job.transfer
        urb = self._urbs.new(self)
        urb.length = length = size
        urb.content = job
        address = 0
        if transfer.setup is not None:
            urb.bounce = buffer = self._urbs.buffer(_SETUP + size)
            buffer[:_SETUP] = transfer.setup.pack()
            if not transfer.is_in:
                memory.gather(transfer.windows, buffer, _SETUP)
            address, urb.pin = usbfs.address_of(buffer)
            length = _SETUP + size
        elif size:
            views = transfer.windows if size == transfer.length else memory.part(transfer.windows, offset, size)
            place = memory.contiguous(views)
            if place is None:
                urb.bounce = buffer = self._urbs.buffer(size)
                if not transfer.is_in:
                    memory.gather(views, buffer)
                place = usbfs.address_of(buffer)
            address, urb.pin = place
        kind, stream_id = _TYPES[transfer.type], transfer.stream_id
        usbfs.URB.pack_into(urb.memory, 0, kind, transfer.endpoint, 0, 0, address, length, 0, 0, stream_id, 0, 0, 0)
        return urb
