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
from usbvfiod_core.state import require
from usbvfiod_core.usb.device import Timer
from usbvfiod_core.usb.transfer import behind

from .exchange import Exchange
from .lane import first
from .messages import IsoPacket, StartIsoStream, StopIsoStream
from .pushed import fill
from .spec import Status, transfer_status
from .state import PacketState, RunningState

IDLE: Final = 0.5
"""Seconds without a transfer after which the stream is stopped."""
URB_SECONDS: Final = 0.004
MOST_PACKETS, MOST_URBS = 32, 16
"""What stock hosts take in one URB, and how many URBs."""


class _Stream:
    """`interval` are the seconds between two packets, `buffer` those in flight at the other end."""

    def __init__(self, loop: Loop, exchange: Exchange, endpoint: int, interval: float, buffer: float) -> None:
        self._loop = loop
        self._exchange = exchange
        self._endpoint = endpoint
        self._interval = interval
        packets = max(1, min(round(URB_SECONDS / interval), MOST_PACKETS))
        urbs = max(3, min(round(buffer / (packets * interval)), MOST_URBS))
        self._start = StartIsoStream(endpoint, packets, urbs)
        self._kept = 2 * packets * urbs
        self._transfers: deque[Transfer] = deque()
        self._packets: deque[tuple[int, bytes | bytearray]] = deque()
        """Of the device, which nobody has asked for yet."""
        self._running = self._watched = False
        self._started = 0

    def start(self, transfer: Transfer) -> None:
        """A transfer behind those before it."""
        self._started += 1
        self._transfers.append(transfer)
        if not self._running:
            self._running = True
            self._exchange.tell(self._start)

    def end(self, status: TransferStatus) -> None:
        """End all: the other end has stopped, or nobody is there any more."""
        self._running = False
        transfers, self._transfers = self._transfers, deque()
        for transfer in transfers:
            for packet in transfer.packets:
                packet.status = status
            transfer.complete(status, 0)

    def told(self, status: int) -> None:
        """The other end tells how it stands."""
        if status != Status.SUCCESS and self._running:
            result = transfer_status(status)
            self.end(TransferStatus.ERROR if result is TransferStatus.CANCELLED else result)

    @property
    def idle(self) -> bool:
        """Whether no transfer is under way."""
        return not self._transfers

    def saved_state(self, endpoint: int) -> RunningState | None:
        """What another process has to know; None if the other end does nothing."""
        if not self._running:
            return None
        return RunningState(endpoint, False, [PacketState(status, bytes(data)) for status, data in self._packets])

    def take_over(self, state: RunningState, path: str) -> None:
        """Be the one that another process had. Raises StateError."""
        most = self._kept if isinstance(self, InboundStream) else 0
        require(len(state.packets) <= most, f"{path}.packets", f"there are {len(state.packets)}")
        require(not state.paused, f"{path}.paused", "it is never told to stop for a while")
        self._running = True
        self._packets.extend((each.status, each.data) for each in state.packets)

    def go_on(self) -> None:
        """On the loop's thread: it may be used from now on."""
        self._watch_idle()

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

    def __init__(self, loop: Loop, exchange: Exchange, endpoint: int, interval: float, buffer: float) -> None:
        super().__init__(loop, exchange, endpoint, interval, buffer)

    def start(self, transfer: Transfer) -> None:
        super().start(transfer)
        self._pump()

    def stop(self, transfer: Transfer) -> None:
        """End a transfer."""
        if transfer in self._transfers:
            self._transfers.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED, 0)
            self._watch_idle()

    def end(self, status: TransferStatus) -> None:
        self._packets.clear()
        super().end(status)

    def came(self, status: int, data: bytes | bytearray) -> bool:
        """A packet of the device; whether none is lost by that."""
        if not self._running:
            return False
        self._packets.append((status, data))
        lost = len(self._packets) > self._kept
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
                fill(behind(transfer.windows, packet.offset), data[: packet.actual])
                result = transfer_status(status)
                if len(data) > packet.length:
                    result = TransferStatus.BABBLE
                packet.status = TransferStatus.ERROR if result is TransferStatus.CANCELLED else result
            transfer.complete(TransferStatus.COMPLETED, sum(packet.actual for packet in transfer.packets))
        self._watch_idle()


class OutboundStream(_Stream):
    """To the device."""

    def __init__(self, loop: Loop, exchange: Exchange, endpoint: int, interval: float, buffer: float) -> None:
        super().__init__(loop, exchange, endpoint, interval, buffer)
        self._times: deque[float] = deque()
        """When each transfer is over, by the loop's clock."""
        self._timer: Timer | None = None

    def start(self, transfer: Transfer) -> None:
        super().start(transfer)
        before = self._times[-1] if self._times else self._loop.time()
        self._times.append(before + len(transfer.packets) * self._interval)
        if self._exchange.unsent > self._kept:
            for packet in transfer.packets:
                packet.status = TransferStatus.MISSED  # the network does not keep the pace
            self._set_timer()
            return
        for packet in transfer.packets:
            # A copy: its memory is the guest's again when its time is over, whether it has been sent or not.
            data = b"".join(first(behind(transfer.windows, packet.offset), packet.length))
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
