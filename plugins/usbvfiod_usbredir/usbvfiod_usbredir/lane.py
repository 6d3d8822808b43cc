"""The way of control, bulk and interrupt OUT transfers: one request after the other, or many in flight.

A transfer is one request, unless it is longer than a packet may be. Then it goes in pieces, and the next one only when
the one before has been moved whole: the device may end the transfer by a short packet anywhere. What comes later waits
behind one that is not sent whole, so that everything reaches the device in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from usbvfiod_core import Loop, Transfer, TransferStatus
from usbvfiod_core.remote import PeerError
from usbvfiod_core.usb.transfer import part

from .exchange import Exchange, Request
from .parser import Packet
from .spec import Status, Type, transfer_status

CANCEL_PATIENCE: Final = 0.7
"""Seconds that the other end has for the answer to what is cancelled. The controller gives up after a second."""


class Job:
    """A transfer under way: bytes that are `moved`, bytes that the present request is for, and that request."""

    __slots__ = ("asked", "moved", "request", "stopping", "transfer")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.moved = 0
        self.asked = 0
        self.request: Request | None = None
        self.stopping = False


class Lane:
    """The transfers of one endpoint, or of one of its streams. `type` is that of its packets; `message` makes one for
    a transfer and a number of bytes, `piece` at most."""

    def __init__(
        self, loop: Loop, exchange: Exchange, type: Type, message: Callable[[Transfer, int], Any], piece: int
    ) -> None:
        self._loop = loop
        self._exchange = exchange
        self._type = type
        self._message = message
        self._piece = piece
        self._jobs: dict[Transfer, Job] = {}
        self._waiting: deque[Job] = deque()
        """The first of them may have been sent in part."""

    def start(self, transfer: Transfer) -> None:
        """Send a transfer behind those that were started before."""
        self._jobs[transfer] = job = Job(transfer)
        self._waiting.append(job)
        if self._waiting[0] is job:
            self._pump()

    def stop(self, transfer: Transfer) -> None:
        """End a transfer soon."""
        job = self._jobs.get(transfer)
        if job is None or job.stopping:
            return
        job.stopping = True
        if job.request is None or not self._exchange.cancel(job.request):
            self._end(job, TransferStatus.CANCELLED)
        else:
            self._loop.call_later(CANCEL_PATIENCE, self._give_up, job)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._jobs

    def end(self, status: TransferStatus) -> None:
        """End all, since the other end has, or nobody is there any more."""
        self._waiting.clear()
        for job in [*self._jobs.values()]:
            if job.request is not None:
                self._exchange.give_up(job.request)
            del self._jobs[job.transfer]
            job.transfer.complete(status, job.moved)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what can be sent now."""
        while self._waiting and self._waiting[0].request is None:
            job = self._waiting[0]
            self._send(job)
            if job.moved + job.asked < job.transfer.length:
                return
            self._waiting.popleft()

    def _send(self, job: Job) -> None:
        transfer = job.transfer
        job.asked = min(transfer.length - job.moved, self._piece)
        windows = transfer.windows
        if job.asked < transfer.length:
            windows = part(windows, job.moved, job.asked)
        is_in = transfer.is_in
        job.request = self._exchange.ask(
            self._message(transfer, job.asked),
            self._type,
            lambda packet: self._answered(job, packet),
            room=windows if is_in else (),
            data=() if is_in else windows,
        )

    def _answered(self, job: Job, packet: Packet) -> None:
        message = packet.message
        if message.length > job.asked:
            raise PeerError(f"it has moved {message.length} bytes where {job.asked} were asked for")
        job.request = None
        job.moved += message.length
        status = transfer_status(message.status)
        if message.status == Status.CANCELLED and not job.stopping:
            status = TransferStatus.ERROR
        is_whole = message.length == job.asked and job.moved < job.transfer.length
        if status is not TransferStatus.COMPLETED or not is_whole:
            self._end(job, status)
        elif job.stopping:
            self._end(job, TransferStatus.CANCELLED)
        else:
            self._pump()

    def _give_up(self, job: Job) -> None:
        """The other end has not answered in time."""
        if job.transfer in self._jobs:
            if job.request is not None:
                self._exchange.give_up(job.request)
            self._end(job, TransferStatus.CANCELLED)

    def _end(self, job: Job, status: TransferStatus) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        del self._jobs[job.transfer]
        job.transfer.complete(status, job.moved)
        self._pump()
