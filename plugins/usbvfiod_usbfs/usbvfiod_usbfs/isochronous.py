"""The way of isochronous transfers through URBs.

The controller hands over a transfer for each service interval, eight in a millisecond at high speed. An URB takes as
many packets as fill a millisecond, so that the kernel is called a thousand times a second and not eight thousand, and
what is handed over in one turn of the loop is submitted together. What does not fill an URB waits as long as enough
is in flight, and no longer than LEAD where nothing is: the first URB then does not run dry before the second is there.

The host's controller gives each packet the next free interval; the frame that the guest names is of its own clock.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import Final

from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.transfer import IsochronousPacket, Transfer, TransferStatus

from . import ioctl as usbfs
from . import windows as memory
from .status import PACKET_STATUS, RETRY, URB_STATUS, submit_status
from .urb import Urb, Urbs

LEAD: Final = 0.002
"""Seconds of packets that are collected before the first is sent, and kept in flight while there are some."""


class _Job:
    """A transfer under way: how many of its packets are not back."""

    __slots__ = ("left", "status", "stopping", "transfer")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.left = len(transfer.packets)
        self.status = TransferStatus.COMPLETED
        self.stopping = False


_Entry = tuple[_Job, IsochronousPacket]


class IsochronousLane:
    """The transfers of one isochronous endpoint; `interval` is the seconds between two packets."""

    def __init__(self, urbs: Urbs, loop: Loop, interval: float) -> None:
        self.group = max(1, min(round(0.001 / interval), usbfs.MAX_ISO_PACKETS))
        """Packets of an URB."""
        self._lead = max(1, round(LEAD / interval))
        self._urbs = urbs
        self._loop = loop
        self._jobs: dict[Transfer, _Job] = {}
        self._waiting: deque[_Entry] = deque()
        self._urbs_of: dict[Urb, list[_Entry]] = {}
        self._flying = 0
        self._scheduled = False
        self._timed = False

    def start(self, transfer: Transfer) -> None:
        """Send a transfer behind those that were started before."""
        job = _Job(transfer)
        if not transfer.packets:
            transfer.complete(TransferStatus.ERROR)  # Linux takes no URB without packets
            return
        self._jobs[transfer] = job
        self._waiting.extend((job, packet) for packet in transfer.packets)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._collected)

    def stop(self, transfer: Transfer) -> None:
        """End a transfer soon. What shares an URB with it has missed its interval, unless it is done."""
        job = self._jobs.get(transfer)
        if job is None or job.stopping:
            return
        job.stopping = True
        unsent = [packet for owner, packet in self._waiting if owner is job]
        for packet in unsent:
            packet.status = TransferStatus.MISSED
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)
        for urb in [urb for urb, entries in self._urbs_of.items() if any(entry[0] is job for entry in entries)]:
            self._urbs.discard(urb)
        if unsent:
            self._done(job, len(unsent), TransferStatus.CANCELLED)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._jobs

    # -- Owner ---------------------------------------------------------------------------------------------------------

    def back(self, urb: Urb, status: int, actual: int) -> None:
        entries = self._urbs_of.pop(urb)
        self._flying -= len(entries)
        # What happened is said packet by packet, unless the URB has not been executed at all.
        unusable = -status in (errno.ENODEV, errno.ESHUTDOWN, errno.EFAULT)
        overall = URB_STATUS.get(status, TransferStatus.ERROR) if unusable else TransferStatus.COMPLETED
        view: memoryview | None = None if urb.bounce is None else memoryview(urb.bounce)
        place, offset = usbfs.URB.size, 0
        for job, packet in entries:
            length, moved, code = usbfs.ISO_PACKET.unpack_from(urb.memory, place)
            place += usbfs.ISO_PACKET.size
            packet.actual = 0 if unusable else moved
            packet.status = overall if unusable else PACKET_STATUS.get(code, TransferStatus.ERROR)
            result = overall
            if view is not None and packet.actual and job.transfer.is_in:
                memory.scatter(view[offset : offset + moved], _packet_windows(job.transfer, packet))
            offset += length
            if job.stopping and packet.status is TransferStatus.MISSED:
                result = TransferStatus.CANCELLED
            self._done(job, 1, result)
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._collected)

    def pump(self) -> None:
        self._send(everything=True)

    def give_up(self) -> None:
        self._refuse(len(self._waiting), TransferStatus.ERROR)

    # -- own -----------------------------------------------------------------------------------------------------------

    def _collected(self) -> None:
        """Everything that one turn of the loop hands over is there."""
        self._scheduled = False
        if self._flying or len(self._waiting) >= self._lead:
            self._send(everything=False)
        elif self._waiting and not self._timed:
            self._timed = True
            self._loop.call_later(LEAD, self._no_more_came)

    def _no_more_came(self) -> None:
        self._timed = False
        if not self._flying:
            self._send(everything=True)

    def _send(self, *, everything: bool) -> None:
        """Submit whole URBs, and what remains if it is wanted now."""
        waiting = self._waiting
        while waiting and (everything or len(waiting) >= self.group or self._flying < self._lead):
            count = min(len(waiting), self.group)
            entries = [waiting[index] for index in range(count)]
            urb = self._fill(entries)
            code = self._urbs.submit(urb)
            if code == 0:
                for _ in range(count):
                    waiting.popleft()
                self._urbs_of[urb] = entries
                self._flying += count
                continue
            self._urbs.free(urb)
            if code in RETRY:
                self._urbs.wait_for_memory(self)
                return
            self._refuse(count, submit_status(code, entries[0][0].transfer.type))

    def _fill(self, entries: list[_Entry]) -> Urb:
        urb = self._urbs.new(self, self.group)
        transfer = entries[0][0].transfer
        views: list[memoryview] = []
        place = usbfs.URB.size
        for job, packet in entries:
            usbfs.ISO_PACKET.pack_into(urb.memory, place, packet.length, 0, 0)
            place += usbfs.ISO_PACKET.size
            views += _packet_windows(job.transfer, packet)
        length = sum(packet.length for _, packet in entries)
        found = memory.contiguous(views) if length else (0, None)
        if found is None:
            urb.bounce = buffer = self._urbs.buffer(length)
            if not transfer.is_in:
                memory.gather(views, buffer)
            found = usbfs.address_of(buffer)
        address, urb.pin = found
        urb.length = length
        kind, flags, count = usbfs.URB_TYPE_ISO, usbfs.URB_ISO_ASAP, len(entries)
        usbfs.URB.pack_into(urb.memory, 0, kind, transfer.endpoint, 0, flags, address, length, 0, 0, count, 0, 0, 0)
        return urb

    def _refuse(self, count: int, status: TransferStatus) -> None:
        for _ in range(count):
            if not self._waiting:
                return
            job, packet = self._waiting.popleft()
            packet.status = status
            self._done(job, 1, status)

    def _done(self, job: _Job, count: int, status: TransferStatus) -> None:
        """So many packets of a transfer are back; it ends with the last."""
        if status is not TransferStatus.COMPLETED:
            job.status = status
        job.left -= count
        if job.left == 0 and self._jobs.pop(job.transfer, None) is not None:
            job.transfer.complete(job.status, sum(packet.actual for packet in job.transfer.packets))


def _packet_windows(transfer: Transfer, packet: IsochronousPacket) -> list[memoryview]:
    if packet.length == transfer.length:
        return transfer.windows
    return memory.part(transfer.windows, packet.offset, packet.length)
