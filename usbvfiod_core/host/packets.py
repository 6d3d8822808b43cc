"""The way of isochronous transfers to a host that takes several packets with one request, as Linux does.

The controller hands over a transfer for each service interval, eight in a millisecond at high speed. A request takes as
many packets as fill a millisecond, so that the host is asked a thousand times a second and not eight thousand, and
what is handed over in one turn of the loop is sent together. What does not fill a request waits as long as enough is
in flight, and no longer than LEAD where nothing is: the first request then does not run dry before the second is there.

The host's controller gives each packet the next free interval; the frame that the guest names is of its own clock.

A guest's driver may give a packet IN more room than its endpoint can fill. Linux refuses a request with such a packet,
and with it its neighbours, so that it is asked for as much as there can be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Final, Generic, TypeVar

from ..usb.device import Loop
from ..usb.transfer import IsochronousPacket, Transfer, TransferStatus, part

LEAD: Final = 0.002
"""Seconds of packets that are collected before the first is sent, and kept in flight while there are some."""

K = TypeVar("K")


class Job:
    """A transfer under way: how many of its packets are not back."""

    __slots__ = ("left", "status", "stopping", "transfer")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.left = len(transfer.packets)
        self.status = TransferStatus.COMPLETED
        self.stopping = False


Entry = tuple[Job, IsochronousPacket]


class PacketLane(ABC, Generic[K]):
    """The transfers of one isochronous endpoint; `interval` is the seconds between two packets, `most` the packets that
    a request takes, `longest` the bytes that a packet can have, 0 if that is not known. K is what a subclass knows a
    request by."""

    def __init__(self, loop: Loop, interval: float, most: int, longest: int = 0) -> None:
        self._longest = longest
        self.group = max(1, min(round(0.001 / interval), most))
        """Packets of a request. Fewer from when the host has no memory in one piece for as many."""
        self.starved = False
        """Whether `submit` has said "not now" for want of memory; kept by the subclass."""
        self._lead = max(1, round(LEAD / interval))
        self._loop = loop
        self._jobs: dict[Transfer, Job] = {}
        self._waiting: deque[Entry] = deque()
        self._requests: dict[K, list[Entry]] = {}
        self._flying = 0
        self._scheduled = False
        self._timed = False

    def start(self, transfer: Transfer) -> None:
        """Send a transfer behind those that were started before."""
        job = Job(transfer)
        if not transfer.packets:
            transfer.complete(TransferStatus.ERROR)  # Linux takes no URB without packets
            return
        if not transfer.is_in and any(self.room(packet) < packet.length for packet in transfer.packets):
            for packet in transfer.packets:
                packet.status = TransferStatus.ERROR
            transfer.complete(TransferStatus.ERROR)
            return
        self._jobs[transfer] = job
        self._waiting.extend((job, packet) for packet in transfer.packets)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._collected)

    def stop(self, transfer: Transfer) -> None:
        """End a transfer soon. What shares a request with it has missed its interval, unless it is done."""
        job = self._jobs.get(transfer)
        if job is None or job.stopping:
            return
        job.stopping = True
        unsent = [packet for owner, packet in self._waiting if owner is job]
        for packet in unsent:
            packet.status = TransferStatus.MISSED
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)
        for key in [key for key, entries in self._requests.items() if any(entry[0] is job for entry in entries)]:
            self.discard(key)
        if unsent:
            self._done(job, len(unsent), TransferStatus.CANCELLED)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._jobs

    def pump(self) -> None:
        """The host takes requests again."""
        self._send(everything=True)

    def give_up(self) -> None:
        """What waits is not sent any more."""
        self._refuse(len(self._waiting), TransferStatus.ERROR)

    # -- what a subclass writes --------------------------------------------------------------------------------------

    @abstractmethod
    def submit(self, entries: list[Entry]) -> K | TransferStatus | None:
        """Send a request with these packets: what it is known by, or how it was refused; None for not now, and `pump`
        is called later."""

    @abstractmethod
    def discard(self, key: K) -> None:
        """Take a request back; it comes back soon."""

    # -- what it calls -----------------------------------------------------------------------------------------------

    def room(self, packet: IsochronousPacket) -> int:
        """Bytes to ask the host for."""
        return min(packet.length, self._longest) if self._longest else packet.length

    def take(self, key: K) -> list[Entry]:
        """A request is back: its packets, for each of which `over` is to be called."""
        entries = self._requests.pop(key)
        self._flying -= len(entries)
        return entries

    def over(self, job: Job, packet: IsochronousPacket, status: TransferStatus) -> None:
        """A packet is back, and knows how it ended; `status` is that of the request that it was in."""
        if job.stopping and packet.status is TransferStatus.MISSED:
            status = TransferStatus.CANCELLED
        self._done(job, 1, status)

    def go_on(self) -> None:
        """All packets of a request that was back are done with."""
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._collected)

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
        """Send whole requests, and what remains if it is wanted now."""
        waiting = self._waiting
        while waiting and (everything or len(waiting) >= self.group or self._flying < self._lead):
            count = min(len(waiting), self.group)
            entries = [waiting[index] for index in range(count)]
            key = self.submit(entries)
            while key is None and self.starved and count > 1 and not self._flying:
                # Nothing of ours will come back and make room. Linux wants memory in one piece, and a host that has run
                # for long may have small pieces only.
                self.group = count = count // 2
                entries = entries[:count]
                key = self.submit(entries)
            if key is None:
                return
            if isinstance(key, TransferStatus):
                self._refuse(count, key)
                continue
            for _ in range(count):
                waiting.popleft()
            self._requests[key] = entries
            self._flying += count

    def _refuse(self, count: int, status: TransferStatus) -> None:
        for _ in range(count):
            if not self._waiting:
                return
            job, packet = self._waiting.popleft()
            packet.status = status
            self._done(job, 1, status)

    def _done(self, job: Job, count: int, status: TransferStatus) -> None:
        """So many packets of a transfer are back; it ends with the last."""
        if status is not TransferStatus.COMPLETED:
            job.status = status
        job.left -= count
        if job.left == 0 and self._jobs.pop(job.transfer, None) is not None:
            job.transfer.complete(job.status, sum(packet.actual for packet in job.transfer.packets))


def packet_windows(transfer: Transfer, packet: IsochronousPacket, room: int) -> list[memoryview]:
    """The windows of the first `room` bytes of one packet."""
    if room == transfer.length:
        return transfer.windows
    return part(transfer.windows, packet.offset, room)
