"""The way of the transfers of one endpoint through requests to the server.

All that the guest has queued is sent at once, so that the server's host always has something to do and the network's
delay is paid once.
"""

from __future__ import annotations

from typing import Final

from usbvfiod_core.host.packets import Entry, PacketLane, packet_windows
from usbvfiod_core.host.pieces import Job, PieceLane
from usbvfiod_core.usb.device import Loop, Timer
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, part

from . import wire
from .request import Request
from .session import Session

GRACE: Final = 0.75
"""Seconds for the server to say what became of a transfer that is cancelled; the controller waits for one."""

CANCELLED, COMPLETED = TransferStatus.CANCELLED, TransferStatus.COMPLETED


class Lane(PieceLane[Request]):
    """Not for isochronous transfers.

    interval    of an interrupt endpoint, in (micro)frames as the server's host counts them; 0 for others
    pace        seconds between two answers without data of an interrupt IN endpoint: there are servers that answer at
                once, whether the device has something to say or not
    """

    def __init__(
        self, session: Session, loop: Loop, cut: int, packet_size: int = 0, interval: int = 0, pace: float = 0.0
    ) -> None:
        super().__init__(cut, packet_size)
        self._session = session
        self._loop = loop
        self._interval = interval
        self._pace = pace
        self._held: dict[Transfer, Timer] = {}
        """Transfers that have ended without data, until their time has come."""
        self._graces: dict[Transfer, Timer] = {}
        """Transfers that are cancelled, until they are given up."""

    def stop(self, transfer: Transfer) -> None:
        if transfer in self._held:
            self.finish(self._jobs[transfer])
            return
        super().stop(transfer)
        job = self._jobs.get(transfer)
        if job is not None and transfer not in self._graces:
            self._graces[transfer] = self._loop.call_later(GRACE, self._no_answer, job)

    def stop_for_now(self, transfer: Transfer) -> None:
        """`stop`, but the requests stay under way, for the next transfer."""
        job = self._jobs.get(transfer)
        if job is None or job.stopping or transfer in self._held or transfer.setup is not None:
            self.stop(transfer)
            return
        for request in job.requests[::-1]:
            if self._session.keep(request):
                job.requests.remove(request)
        if job.requests:
            self.stop(transfer)
        else:
            job.stopping = True
            self.cut_short(job, CANCELLED)

    def end(self, status: TransferStatus) -> None:
        """The connection is gone, and every request has come back: what has not been sent ends as well."""
        for job in list(self._jobs.values()):
            if not job.ended:
                job.end(status)
            self.finish(job)

    # -- PieceLane -----------------------------------------------------------------------------------------------------

    def send(self, job: Job[Request], offset: int, size: int) -> int:
        transfer = job.transfer
        windows = transfer.windows if size == transfer.length else part(transfer.windows, offset, size)
        if self._session.kept and transfer.setup is None and self._adopt(job, windows, size):
            return size
        request = Request(
            transfer.endpoint,
            windows,
            size,
            lambda status, actual: self.back(job, request, size, status, actual),
            is_in=transfer.is_in and (transfer.setup is None or size > 0),
            setup=bytes(8) if transfer.setup is None else transfer.setup.pack(),
            interval=self._interval,
        )
        job.requests.append(request)
        self._session.submit(request)
        return size

    def discard(self, request: Request) -> None:
        self._session.unlink(request)

    def over(self, job: Job[Request]) -> None:
        said_nothing = self._pace and not job.moved and job.transfer.is_in and job.status is COMPLETED
        if said_nothing and not job.stopping:
            self._held[job.transfer] = self._loop.call_later(self._pace, self.finish, job)
        else:
            self.finish(job)

    def finish(self, job: Job[Request]) -> None:
        for timers in (self._held, self._graces):
            timer = timers.pop(job.transfer, None)
            if timer is not None:
                timer.cancel()
        super().finish(job)

    # -- own -----------------------------------------------------------------------------------------------------------

    def _adopt(self, job: Job[Request], windows: list[memoryview], size: int) -> bool:
        """Let a request that was kept go on for this transfer; whether there is one."""
        request = self._session.adopt(job.transfer.endpoint, windows, size)
        if request is None:
            return False
        request.windows = windows
        request.back = lambda status, actual: self.back(job, request, size, status, actual)
        job.requests.append(request)
        self._loop.call_soon(self._session.go_on_with, request)
        return True

    def _no_answer(self, job: Job[Request]) -> None:
        """The server does not say what became of it; if it does, nobody hears."""
        for request in job.requests:
            self._session.abandon(request)
        job.requests.clear()
        self.cut_short(job, CANCELLED)


class IsochronousLane(PacketLane[Request]):
    """The transfers of one isochronous endpoint, whose packets have up to `size` bytes; `interval` is the seconds
    between two packets, `wire_interval` the same in (micro)frames, `longest` the bytes of an interval, 0 if that is
    not known."""

    def __init__(
        self, session: Session, loop: Loop, interval: float, wire_interval: int, size: int, longest: int
    ) -> None:
        super().__init__(loop, interval, wire.MOST_PACKETS, longest)
        self._session = session
        self._wire_interval = wire_interval
        self._size = max(size, 1)
        self._stopping: dict[Request, Timer] = {}

    def submit(self, entries: list[Entry]) -> Request:
        transfer = entries[0][0].transfer
        packets, windows, length = [], [], 0
        for job, packet in entries:
            room = self.room(packet)
            packets.append((length, room))
            windows += packet_windows(job.transfer, packet, room)
            length += room
        # Linux drops a transfer, without an answer, whose bytes would fit into fewer packets.
        missing = (len(entries) - 1) * self._size + 1 - length
        if missing > 0:
            windows.append(memoryview(bytearray(missing)))
            length += missing

        def back(status: TransferStatus, actual: int) -> None:
            timer = self._stopping.pop(request, None)
            if timer is not None:
                timer.cancel()
            if not request.results:
                missed = TransferStatus.MISSED if status is CANCELLED else status
                request.results = [(missed, 0)] * len(packets)
            self._over(request, COMPLETED if status in (COMPLETED, CANCELLED) else status)

        request = Request(
            transfer.endpoint,
            windows,
            length,
            back,
            is_in=transfer.is_in,
            packets=tuple(packets),
            interval=self._wire_interval,
        )
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
