"""The way of control, bulk and interrupt transfers to a host that takes only so many bytes with one request.

A transfer is one request, unless it is longer than that. Then OUT data is cut into several, in flight together. IN data
is cut, too, but the next request is only sent when the one before has come back full: the device may end the transfer
by a short packet anywhere. Transfers that come later wait behind one that has not been sent whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, TypeVar

from ..usb.transfer import Transfer, TransferStatus, TransferType

R = TypeVar("R")


def whole_packets(size: int, packet_size: int) -> int:
    """How many of `size` bytes are whole packets of an endpoint, at least one packet. A request that ends in the middle
    of a packet would send a short one, which ends the transfer for the device, or have no room for a whole one that it
    sends."""
    return max(size - size % packet_size, packet_size) if packet_size > 0 else size


def ends_short(actual: int, packet_size: int) -> bool:
    """Whether a short packet of the device has ended an IN request with so many bytes. Linux says of a request that has
    ended and is taken back in the same moment that it was cancelled, and what came with it is there all the same: what
    the device sends next belongs to the next transfer."""
    return packet_size > 0 and actual % packet_size > 0


class Job(Generic[R]):
    """A transfer under way: its requests in flight, bytes `sent` and `moved`, and what it ends with."""

    __slots__ = ("ended", "moved", "requests", "sent", "status", "stopping", "transfer")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.requests: list[R] = []
        self.sent = -1  # nothing yet; a transfer without data is a request, too
        self.moved = 0
        self.ended = False
        self.status = TransferStatus.COMPLETED
        self.stopping = False

    def end(self, status: TransferStatus) -> None:
        """Nothing more of it is sent; it is complete when its requests are back."""
        self.ended = True
        self.status = status


class PieceLane(ABC, Generic[R]):
    """The transfers of one endpoint, or of one of its streams: in, and completed in order. `cut` is how many bytes one
    bulk request may have; it has whole packets of the endpoint's `packet_size`, which is 0 where it does not matter. R
    is a request of a subclass."""

    def __init__(self, cut: int, packet_size: int = 0) -> None:
        self._cut = whole_packets(cut, packet_size)
        self._packet_size = packet_size
        self._jobs: dict[Transfer, Job[R]] = {}
        self._waiting: deque[Job[R]] = deque()
        """Those that are not sent whole; only the first may have been sent in part."""

    def start(self, transfer: Transfer) -> None:
        """Send a transfer behind those that were started before."""
        self._jobs[transfer] = job = Job[R](transfer)
        if self._waiting or not self._advance(job):
            self._waiting.append(job)

    def stop(self, transfer: Transfer) -> None:
        """End a transfer soon; it completes as cancelled unless it is done."""
        job = self._jobs.get(transfer)
        if job is None or job.stopping:
            return
        job.stopping = True
        self._discard(job)
        if not job.requests:
            self.cut_short(job, TransferStatus.CANCELLED)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._jobs

    def pump(self) -> None:
        """Send what waits and can be sent: the host takes requests again."""
        waiting = self._waiting
        while waiting:
            job = waiting[0]
            if not self._advance(job):
                return
            if waiting and waiting[0] is job:
                waiting.popleft()

    def give_up(self) -> None:
        """The host takes no requests, and what waits longest for that fails."""
        if self._waiting and not self._waiting[0].requests:
            self.cut_short(self._waiting[0], TransferStatus.ERROR)

    # -- what a subclass writes --------------------------------------------------------------------------------------

    @abstractmethod
    def send(self, job: Job[R], offset: int, size: int) -> int | TransferStatus | None:
        """Send a request for `size` bytes of a transfer at `offset`, and add it to `job.requests`. The bytes it is for,
        which are fewer if the host takes no more now; or how it was refused; or None for not now, and `pump` is called
        later."""

    @abstractmethod
    def discard(self, request: R) -> None:
        """Take a request back; it comes back soon, or at once."""

    def arrived(self, job: Job[R], request: R, actual: int) -> None:
        """So many bytes of IN data have come, behind the `job.moved` before them: put them where they belong."""

    def over(self, job: Job[R]) -> None:
        """A transfer has ended, and all its requests are back."""
        self.finish(job)

    def go_on(self) -> None:
        """The last request of a transfer that was in flight is back."""
        self.pump()

    # -- what it calls -----------------------------------------------------------------------------------------------

    def back(self, job: Job[R], request: R, length: int, status: TransferStatus, actual: int) -> None:
        """A request for `length` bytes is back."""
        job.requests.remove(request)
        transfer = job.transfer
        if not job.ended:
            if transfer.is_in:
                self.arrived(job, request, actual)
            job.moved += actual
            if status is TransferStatus.CANCELLED and not job.stopping:
                status = TransferStatus.ERROR  # nobody here has taken it back
            elif status is TransferStatus.CANCELLED and transfer.is_in and ends_short(actual, self._packet_size):
                status = TransferStatus.COMPLETED  # the device had ended it before
            if status is not TransferStatus.COMPLETED or actual < length:
                job.end(status)
                self._discard(job)
            elif not job.requests and job.sent == transfer.length:
                job.ended = True
            elif not job.requests and job.stopping:
                job.end(TransferStatus.CANCELLED)
        if job.requests:
            return
        if job.ended:
            self.over(job)
        self.go_on()

    def finish(self, job: Job[R]) -> None:
        """Complete a transfer that has ended, unless that is done."""
        if self._jobs.pop(job.transfer, None) is None:
            return
        if job in self._waiting:
            self._waiting.remove(job)
        job.transfer.complete(job.status, job.moved)

    def cut_short(self, job: Job[R], status: TransferStatus) -> None:
        """End a transfer of which nothing is in flight, unless that is done, and go on with those behind it."""
        if job.transfer in self._jobs:
            job.end(status)
            self.finish(job)
            self.pump()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _advance(self, job: Job[R]) -> bool:
        """Send what can be sent of a transfer now; whether it needs no more of that."""
        transfer = job.transfer
        length = transfer.length
        cut = self._cut if transfer.type is TransferType.BULK else max(length, 1)
        while job.sent < length and not job.ended:
            if job.requests and (transfer.is_in or job.stopping):
                return False
            offset = max(job.sent, 0)
            size = min(cut, length - offset)
            taken = self.send(job, offset, size)
            if taken is None:
                return False
            if isinstance(taken, TransferStatus):
                job.end(taken)
                self._discard(job)
                if not job.requests:
                    self.finish(job)
                return True
            job.sent = offset + taken
            if taken < size:
                cut = taken
        return True

    def _discard(self, job: Job[R]) -> None:
        # Newest first, so that data that still moves belongs to the oldest.
        for request in job.requests[::-1]:
            self.discard(request)
