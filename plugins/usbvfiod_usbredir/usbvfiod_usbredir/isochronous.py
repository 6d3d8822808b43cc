"""Isochronous endpoints: a stream of packets that the other end keeps in time, with a buffer on its side.

IN, it sends a packet for each service interval, and the guest's transfers take them in order. OUT, it begins when half
its buffer is full and takes a packet in each interval; here the transfers are completed at that pace, so that the guest
is neither ahead of the device nor behind. Nothing halts such an endpoint: what the network has delayed is late or
missed.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from usbvfiod_core import Loop, Transfer, TransferStatus
from usbvfiod_core.usb.device import Timer
from usbvfiod_core.usb.transfer import behind, part, scatter

from .exchange import Exchange
from .messages import IsoPacket, StartIsoStream, StopIsoStream
from .running import Running, failure
from .spec import Status

IDLE: Final = 0.5
"""Seconds without a transfer after which the stream is stopped."""
URB_SECONDS: Final = 0.004
"""What one URB should last."""
MOST_PACKETS, MOST_URBS = 32, 16
"""What stock hosts take in one URB, and how many URBs."""


class _Stream(Running):
    """`interval` are the seconds between two packets, `buffer` those in flight at the other end."""

    def __init__(self, loop: Loop, exchange: Exchange, endpoint: int, interval: float, buffer: float) -> None:
        packets = max(1, min(round(URB_SECONDS / interval), MOST_PACKETS))
        urbs = max(3, min(round(buffer / (packets * interval)), MOST_URBS))
        self._ahead = 2 * packets * urbs
        """Packets by which the device or the guest may be ahead of the other."""
        super().__init__(loop, exchange, endpoint, StartIsoStream(endpoint, packets, urbs), self._ahead)
        self._interval = interval
        self._watched = False

    def told(self, status: int) -> None:
        if status != Status.SUCCESS and self._running:
            self.end(failure(status))

    def _watch_idle(self) -> None:
        if not self._transfers and not self._watched:
            self._watched = True
            self._loop.call_later(IDLE, self._idle, self._started)

    def _idle(self, started: int) -> None:
        self._watched = False
        if not self._running or self._transfers:
            return
        if self._started != started or self._exchange.paused:
            self._watch_idle()
        else:
            self._running = False
            self._exchange.tell(StopIsoStream(self._endpoint))


class InboundStream(_Stream):
    """From the device."""

    def start(self, transfer: Transfer) -> None:
        super().start(transfer)
        self._pump()

    def stop(self, transfer: Transfer) -> None:
        """End a transfer."""
        if transfer in self._transfers:
            self._transfers.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED, 0)
            self._watch_idle()

    def came(self, status: int, data: bytes | bytearray) -> bool:
        """A packet of the device; whether none is lost by that."""
        if not self._running:
            return False
        self._packets.append((status, data))
        lost = len(self._packets) > self._ahead
        if lost:
            self._packets.popleft()
        self._pump()
        return not lost

    def _pump(self) -> None:
        while self._transfers and len(self._packets) >= len(self._transfers[0].packets):
            transfer = self._transfers.popleft()
            for packet in transfer.packets:
                status, data = self._packets.popleft()
                packet.actual = min(len(data), packet.length)
                scatter(memoryview(data)[: packet.actual], behind(transfer.windows, packet.offset))
                packet.status = TransferStatus.BABBLE if len(data) > packet.length else failure(status)
            transfer.complete(TransferStatus.COMPLETED, sum(packet.actual for packet in transfer.packets))
        self._watch_idle()


class OutboundStream(_Stream):
    """To the device."""

    def __init__(self, loop: Loop, exchange: Exchange, endpoint: int, interval: float, buffer: float) -> None:
        super().__init__(loop, exchange, endpoint, interval, buffer)
        self._most_kept = 0  # nothing comes from the device
        self._times: deque[float] = deque()
        """When each transfer is over, by the loop's clock."""
        self._timer: Timer | None = None

    def start(self, transfer: Transfer) -> None:
        super().start(transfer)
        before = self._times[-1] if self._times else self._loop.time()
        self._times.append(before + len(transfer.packets) * self._interval)
        if self._exchange.unsent > self._ahead:
            for packet in transfer.packets:
                packet.status = TransferStatus.MISSED  # the network does not keep the pace
            self._set_timer()
            return
        for packet in transfer.packets:
            # A copy: its memory is the guest's again when its time is over, whether it has been sent or not.
            data = b"".join(part(transfer.windows, packet.offset, packet.length))
            self._exchange.tell(IsoPacket(self._endpoint, 0, len(data)), memoryview(data))
        self._set_timer()

    def stop(self, transfer: Transfer) -> None:
        """End a transfer: it is on its way, and cannot be called back."""
        if transfer in self._transfers:
            index = self._transfers.index(transfer)
            del self._transfers[index], self._times[index]
            self._over(transfer, TransferStatus.CANCELLED)
            self._watch_idle()

    def end(self, status: TransferStatus) -> None:
        self._times.clear()
        super().end(status)

    def _set_timer(self) -> None:
        if self._timer is None and self._times:
            self._timer = self._loop.call_later(max(self._times[0] - self._loop.time(), 0.0), self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._times and self._times[0] <= now:
            self._times.popleft()
            self._over(self._transfers.popleft(), TransferStatus.COMPLETED)
        self._set_timer()
        self._watch_idle()

    def _over(self, transfer: Transfer, status: TransferStatus) -> None:
        for packet in transfer.packets:
            packet.actual = packet.length
        transfer.complete(status, transfer.length)
