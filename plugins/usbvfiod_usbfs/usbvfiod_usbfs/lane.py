"""The way of the transfers of one endpoint, or of one of its streams, through URBs. Not for isochronous ones.

A transfer is one URB, unless it is longer than the host takes at once. Then OUT data is cut into several, in flight
together. IN data is cut, too, but the next URB is only submitted when the one before has come back full: the device
may end the transfer by a short packet anywhere. Transfers that come later wait behind one that is not submitted whole.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

from . import ioctl as usbfs
from . import windows as memory
from .status import RETRY, URB_STATUS, submit_status
from .urb import Urb, Urbs

SMALLEST_CUT: Final = 16 << 10
"""Bytes below which a transfer is not cut for want of memory; a multiple of every bulk packet size."""

_SETUP: Final = 8
_TYPES: Final = {
    TransferType.CONTROL: usbfs.URB_TYPE_CONTROL,
    TransferType.ISOCHRONOUS: usbfs.URB_TYPE_ISO,
    TransferType.BULK: usbfs.URB_TYPE_BULK,
    TransferType.INTERRUPT: usbfs.URB_TYPE_INTERRUPT,
}


class _Job:
    """A transfer under way: its URBs in flight, bytes `submitted`, bytes `moved`, and what it ends with."""

    __slots__ = ("ended", "moved", "status", "stopping", "submitted", "transfer", "urbs")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.urbs: list[Urb] = []
        self.submitted = -1  # nothing yet; a transfer without data is an URB, too
        self.moved = 0
        self.ended = False
        self.status = TransferStatus.COMPLETED
        self.stopping = False

    def end(self, status: TransferStatus) -> None:
        """Nothing more of it is submitted; it is complete when its URBs are back."""
        self.ended = True
        self.status = status


class Lane:
    """Transfers in, completions out, in order. `cut` is how many bytes one bulk URB may have, a multiple of the
    endpoint's packet size."""

    def __init__(self, urbs: Urbs, cut: int) -> None:
        self._urbs = urbs
        self._cut = cut
        self._jobs: dict[Transfer, _Job] = {}
        self._waiting: deque[_Job] = deque()

    def start(self, transfer: Transfer) -> None:
        """Send a transfer behind those that were started before."""
        self._jobs[transfer] = job = _Job(transfer)
        if self._waiting or not self._advance(job):
            self._waiting.append(job)

    def stop(self, transfer: Transfer) -> None:
        """End a transfer soon; it completes as cancelled unless it is done."""
        job = self._jobs.get(transfer)
        if job is None or job.stopping:
            return
        job.stopping = True
        if job.urbs:
            self._discard(job)
        else:
            job.end(TransferStatus.CANCELLED)
            self._finish(job)
            self.pump()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._jobs

    # -- Owner ---------------------------------------------------------------------------------------------------------

    def back(self, urb: Urb, status: int, actual: int) -> None:
        job = urb.content
        assert isinstance(job, _Job)
        job.urbs.remove(urb)
        transfer = job.transfer
        if not job.ended:
            if urb.bounce is not None and transfer.is_in:
                self._copy_in(job, urb.bounce, actual)
            job.moved += actual
            result = URB_STATUS.get(status, TransferStatus.ERROR)
            if result is TransferStatus.CANCELLED and not job.stopping:
                result = TransferStatus.ERROR
            if result is not TransferStatus.COMPLETED or actual < urb.length:
                job.end(result)
                self._discard(job)
            elif not job.urbs and job.submitted == transfer.length:
                job.ended = True
            elif not job.urbs and job.stopping:
                job.end(TransferStatus.CANCELLED)
        if job.urbs:
            return
        if job.ended:
            self._finish(job)
        if self._waiting and self._urbs.memory_wanted:
            self._urbs.wait_for_memory(self)
        elif self._waiting:
            self.pump()

    def pump(self) -> None:
        waiting = self._waiting
        while waiting:
            job = waiting[0]
            if not self._advance(job):
                return
            if waiting and waiting[0] is job:
                waiting.popleft()

    def give_up(self) -> None:
        if self._waiting and not self._waiting[0].urbs:
            job = self._waiting[0]
            job.end(TransferStatus.ERROR)
            self._finish(job)
            self.pump()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _advance(self, job: _Job) -> bool:
        """Submit what can be submitted of a transfer now; whether it needs no more of that."""
        transfer = job.transfer
        length = transfer.length
        cut = self._cut if transfer.type is TransferType.BULK else max(length, 1)
        while job.submitted < length and not job.ended:
            if job.urbs and (transfer.is_in or job.stopping):
                return False
            offset = max(job.submitted, 0)
            size = min(cut, length - offset)
            urb = self._fill(job, offset, size)
            code = self._urbs.submit(urb)
            if code == 0:
                job.urbs.append(urb)
                job.submitted = offset + size
                continue
            self._urbs.free(urb)
            if code in RETRY:
                if size > SMALLEST_CUT < cut:
                    cut = max(cut // 2, SMALLEST_CUT)
                    continue
                self._urbs.wait_for_memory(self)
                return False
            job.end(submit_status(code, transfer.type))
            if job.urbs:
                self._discard(job)
            else:
                self._finish(job)
        return True

    def _fill(self, job: _Job, offset: int, size: int) -> Urb:
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
            views = transfer.windows
            if size != transfer.length:
                views = memory.part(views, offset, size)
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

    def _copy_in(self, job: _Job, buffer: bytearray, actual: int) -> None:
        transfer = job.transfer
        start = _SETUP if transfer.setup is not None else 0
        windows = memory.part(transfer.windows, job.moved, actual) if job.moved else transfer.windows
        memory.scatter(memoryview(buffer)[start : start + actual], windows)

    def _discard(self, job: _Job) -> None:
        # Newest first, so that data that still moves belongs to the oldest.
        for urb in reversed(job.urbs):
            self._urbs.discard(urb)

    def _finish(self, job: _Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        del self._jobs[job.transfer]
        job.transfer.complete(job.status, job.moved)
