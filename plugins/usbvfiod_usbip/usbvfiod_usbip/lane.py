"""The way of the transfers of one endpoint through requests to the server.

All that the guest has queued is sent at once, so that the server's host always has something to do and the network's
delay is paid once. A bulk transfer that is longer than a server takes is cut: OUT data into requests that are in flight
together, IN data into requests of which each is sent when the one before has come back full, as the device may end the
transfer by a short packet anywhere. Transfers that come later wait behind one that has not been sent whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from usbvfiod_core.host.packets import Entry, PacketLane, packet_windows
from usbvfiod_core.usb.device import Loop, Timer
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType, part

from . import wire
from .session import Request, Session

GRACE: Final = 0.75
"""Seconds for the server to say what became of a transfer that is cancelled; the controller waits for one."""

CANCELLED, COMPLETED = TransferStatus.CANCELLED, TransferStatus.COMPLETED


class _Job:
    """A transfer under way: its requests in flight, bytes `sent` and `moved`, and what it ends with."""

    __slots__ = ("ended", "moved", "requests", "sent", "status", "stopping", "timer", "transfer")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.requests: list[Request] = []
        self.sent = -1  # nothing yet; a transfer without data is a request, too
        self.moved = 0
        self.ended = False
        self.status = COMPLETED
        self.stopping = False
        self.timer: Timer | None = None

    def end(self, status: TransferStatus) -> None:
        """Nothing more of it is sent; it is complete when its requests are back."""
        self.ended = True
        self.status = status


class Lane:
    """Transfers in, completions out, in order. Not for isochronous ones.

    cut         bytes that one bulk request may have, a multiple of the endpoint's packet size
    interval    of an interrupt endpoint, in (micro)frames as the server's host counts them; 0 for others
    pace        seconds between two answers without data of an interrupt IN endpoint: there are servers that answer at
                once, whether the device has something to say or not
    """

    def __init__(self, session: Session, loop: Loop, cut: int, interval: int = 0, pace: float = 0.0) -> None:
        self._session = session
        self._loop = loop
        self._cut = cut
        self._interval = interval
        self._pace = pace
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
        if job.timer is not None:
            job.timer.cancel()  # it has come back, and is only held
            job.timer = None
            self._finish(job)
            return
        # Newest first, so that data that still moves belongs to the oldest.
        for request in job.requests[::-1]:
            self._session.unlink(request)
        if job.requests:
            job.timer = self._loop.call_later(GRACE, self._give_up, job)
        elif job.transfer in self._jobs:
            job.end(CANCELLED)
            self._finish(job)
            self._pump()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._jobs

    def end(self, status: TransferStatus) -> None:
        """The connection is gone, and every request has come back: what has not been sent ends as well."""
        for job in list(self._jobs.values()):
            if not job.ended:
                job.end(status)
            self._finish(job)

    # -- own -----------------------------------------------------------------------------------------------------------

    def _advance(self, job: _Job) -> bool:
        """Send what can be sent of a transfer now; whether it needs no more of that."""
        transfer = job.transfer
        length = transfer.length
        cut = self._cut if transfer.type is TransferType.BULK else max(length, 1)
        while job.sent < length and not job.ended:
            if job.requests and (transfer.is_in or job.stopping):
                return False
            offset = max(job.sent, 0)
            size = min(cut, length - offset)
            windows = transfer.windows if size == length else part(transfer.windows, offset, size)
            is_in = transfer.is_in if transfer.setup is None else transfer.is_in and length > 0
            setup = bytes(8) if transfer.setup is None else transfer.setup.pack()
            request = Request(
                transfer.endpoint, windows, size, _unset, is_in=is_in, setup=setup, interval=self._interval
            )
            request.back = self._back_of(job, request)
            job.requests.append(request)
            job.sent = offset + size
            self._session.submit(request)
        return True

    def _back_of(self, job: _Job, request: Request) -> Callable[[TransferStatus, int], None]:
        def back(status: TransferStatus, actual: int) -> None:
            job.requests.remove(request)
            self._back(job, request.length, status, actual)

        return back

    def _back(self, job: _Job, length: int, status: TransferStatus, actual: int) -> None:
        transfer = job.transfer
        if not job.ended:
            job.moved += actual
            if status is not COMPLETED or actual < length:
                job.end(status)
                for request in job.requests[::-1]:
                    self._session.unlink(request)
            elif not job.requests and job.sent == transfer.length:
                job.ended = True
            elif not job.requests and job.stopping:
                job.end(CANCELLED)
        if job.requests:
            return
        if job.ended:
            said_nothing = self._pace and not actual and transfer.is_in and job.status is COMPLETED
            if said_nothing and not job.stopping:
                job.timer = self._loop.call_later(self._pace, self._finish, job)
            else:
                self._finish(job)
        self._pump()

    def _pump(self) -> None:
        waiting = self._waiting
        while waiting:
            job = waiting[0]
            if not self._advance(job):
                return
            if waiting and waiting[0] is job:
                waiting.popleft()

    def _give_up(self, job: _Job) -> None:
        """The server does not say what became of it; if it does, nobody hears."""
        job.timer = None
        if job.transfer not in self._jobs:
            return
        for request in job.requests:
            self._session.abandon(request)
        job.requests.clear()
        job.end(CANCELLED)
        self._finish(job)
        self._pump()

    def _finish(self, job: _Job) -> None:
        if self._jobs.pop(job.transfer, None) is None:
            return
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
        if job in self._waiting:
            self._waiting.remove(job)
        job.transfer.complete(job.status, job.moved)


class IsochronousLane(PacketLane[Request]):
    """The transfers of one isochronous endpoint, whose packets have up to `size` bytes; `interval` is the seconds
    between two packets, `wire_interval` the same in (micro)frames."""

    def __init__(self, session: Session, loop: Loop, interval: float, wire_interval: int, size: int) -> None:
        super().__init__(loop, interval, wire.MOST_PACKETS)
        self._session = session
        self._wire_interval = wire_interval
        self._size = max(size, 1)
        self._stopping: dict[Request, Timer] = {}

    def submit(self, entries: list[Entry]) -> Request:
        transfer = entries[0][0].transfer
        packets, windows, length = [], [], 0
        for job, packet in entries:
            packets.append((length, packet.length))
            windows += packet_windows(job.transfer, packet)
            length += packet.length
        # Linux drops a transfer, without an answer, whose bytes would fit into fewer packets.
        missing = (len(entries) - 1) * self._size + 1 - length
        if missing > 0:
            windows.append(memoryview(bytearray(missing)))
            length += missing
        request = Request(
            transfer.endpoint,
            windows,
            length,
            _unset,
            is_in=transfer.is_in,
            packets=tuple(packets),
            interval=self._wire_interval,
        )

        def back(status: TransferStatus, actual: int) -> None:
            timer = self._stopping.pop(request, None)
            if timer is not None:
                timer.cancel()
            if not request.results:
                missed = TransferStatus.MISSED if status is CANCELLED else status
                request.results = [(missed, 0)] * len(packets)
            self._over(request, COMPLETED if status in (COMPLETED, CANCELLED) else status)

        request.back = back
        self._session.submit(request)
        return request

    def discard(self, key: Request) -> None:
        if key not in self._stopping:
            self._stopping[key] = self._loop.call_later(GRACE, self._give_up, key)
            self._session.unlink(key)

    def end(self, status: TransferStatus) -> None:
        """The connection is gone, and every request has come back."""
        self._refuse(len(self._waiting), status)

    def _give_up(self, request: Request) -> None:
        del self._stopping[request]
        if self._session.abandon(request):
            request.results = [(TransferStatus.MISSED, 0)] * len(request.packets)
            self._over(request, COMPLETED)

    def _over(self, request: Request, status: TransferStatus) -> None:
        for (job, packet), (result, actual) in zip(self.take(request), request.results, strict=True):
            packet.status, packet.actual = result, actual
            self.over(job, packet, status)
        self.go_on()


def _unset(status: TransferStatus, actual: int) -> None:
    raise AssertionError("a request that nobody has made")
