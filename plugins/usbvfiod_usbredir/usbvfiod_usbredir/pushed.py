"""Endpoints that the other end reads on its own account: interrupt IN, and bulk IN where that is wanted.

It sends what comes as it comes, a packet of the device in each packet of the protocol. Transfers of the guest take from
what is there. While the guest does not ask for a moment, some of it is kept; when it does not come back, the other end
is told to stop. Of an interrupt endpoint the newest is kept. Data of a bulk endpoint must not get lost while somebody
wants it: when there is much of it the other end is told to stop, so that the device has to wait, and when that is gone,
to begin again.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from usbvfiod_core import Loop, Transfer, TransferStatus
from usbvfiod_core.remote import PeerError
from usbvfiod_core.state import require
from usbvfiod_core.usb.transfer import behind

from .exchange import Exchange
from .spec import Status, transfer_status
from .state import PacketState, RunningState

IDLE: Final = 1.0
"""Seconds for which a guest that does not ask is still thought to be there."""
MOST_KEPT: Final = 256
"""Packets that wait for the guest; the oldest are lost then, as in a device that is not asked."""
ENOUGH: Final = 1024
"""Packets of bulk data that wait for the guest before the other end is told to stop."""
MOST_UNDER_WAY: Final = 3072
"""Packets that may come of what the other end had read before it heard of that."""


class Pushed:
    """Transfers of one endpoint. `begin` and `stop_it` are the messages for the other end; a packet with less than
    `packet_size` bytes ends a transfer; `keeps`: nothing may get lost."""

    def __init__(
        self, loop: Loop, exchange: Exchange, begin: Any, stop_it: Any, packet_size: int, *, keeps: bool = False
    ) -> None:
        self._loop = loop
        self._exchange = exchange
        self._begin = begin
        self._stop_it = stop_it
        self._packet_size = packet_size
        self._transfers: deque[Transfer] = deque()
        self._packets: deque[tuple[int, bytes | bytearray]] = deque()
        self._keeps = keeps
        self._running = False
        self._paused = False
        """Whether the other end was told to stop because there is enough; it is still running for the guest."""
        self._started = 0
        """Transfers so far."""

    def start(self, transfer: Transfer) -> None:
        """A transfer behind those before it."""
        self._started += 1
        transfer.actual = 0
        self._transfers.append(transfer)
        if not self._running:
            self._running = True
            self._exchange.tell(self._begin)
        self._pump()

    def stop(self, transfer: Transfer) -> None:
        """End a transfer; what it has got it keeps."""
        if transfer in self._transfers:
            self._transfers.remove(transfer)
            if not self._transfers:
                self._watch_idle()
            transfer.complete(TransferStatus.CANCELLED)

    def end(self, status: TransferStatus) -> None:
        """End all: the other end has stopped, or nobody is there any more."""
        self._running = self._paused = False
        self._packets.clear()
        transfers, self._transfers = self._transfers, deque()
        for transfer in transfers:
            transfer.complete(status)

    def came(self, status: int, data: bytes | bytearray) -> bool:
        """A packet of the device; whether none is lost by that."""
        if not self._running:
            return False  # it was under way when it was told to stop
        self._packets.append((status, data))
        self._pump()
        kept = len(self._packets)
        if not self._keeps:
            if kept > MOST_KEPT:
                self._packets.popleft()
                return False
        elif kept > ENOUGH + MOST_UNDER_WAY:
            raise PeerError("it goes on to send data after it was told to stop")
        elif kept > ENOUGH and not self._paused:
            self._paused = True
            self._exchange.tell(self._stop_it)
        return True

    def told(self, status: int) -> None:
        """The other end tells how it stands: that it has begun or stopped as it was told to, or by itself."""
        if status != Status.SUCCESS and self._running:
            self._pump()
            self.end(transfer_status(status))

    # -- going on in another process -----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no transfer is under way."""
        return not self._transfers

    def saved_state(self, endpoint: int) -> RunningState | None:
        """What another process has to know; None if the other end does nothing."""
        if not self._running:
            return None
        return RunningState(
            endpoint, self._paused, [PacketState(status, bytes(data)) for status, data in self._packets]
        )

    def take_over(self, state: RunningState, path: str) -> None:
        """Be the one that another process had, which `go_on` sets going. Raises StateError."""
        most = ENOUGH + MOST_UNDER_WAY if self._keeps else MOST_KEPT
        require(len(state.packets) <= most, f"{path}.packets", f"there are {len(state.packets)}")
        require(self._keeps or not state.paused, f"{path}.paused", "it is never told to stop")
        self._running, self._paused = True, state.paused
        self._packets.extend((each.status, each.data) for each in state.packets)

    def go_on(self) -> None:
        """On the loop's thread: it may be used from now on."""
        self._watch_idle()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _watch_idle(self) -> None:
        self._loop.call_later(IDLE, self._idle, self._started)

    def _pump(self) -> None:
        while self._transfers and self._packets:
            status, data = self._packets.popleft()
            transfer = self._transfers[0]
            if status != Status.SUCCESS:
                result = transfer_status(status)
                self._transfers.popleft()
                transfer.complete(TransferStatus.ERROR if result is TransferStatus.CANCELLED else result)
                continue
            room = transfer.length - transfer.actual
            moved = min(len(data), room)
            fill(behind(transfer.windows, transfer.actual), data[:moved])
            transfer.actual += moved
            if len(data) > room:
                self._transfers.popleft()
                transfer.complete(TransferStatus.BABBLE)
            elif len(data) < self._packet_size or transfer.actual == transfer.length:
                self._transfers.popleft()
                transfer.complete(TransferStatus.COMPLETED)
        if self._paused and not self._packets:
            self._paused = False
            self._exchange.tell(self._begin)

    def _idle(self, started: int) -> None:
        if self._running and self._started == started and not self._transfers:
            if self._exchange.paused:
                self._watch_idle()
                return
            if not self._paused:
                self._exchange.tell(self._stop_it)
            self._running = self._paused = False
            self._packets.clear()


def fill(windows: list[memoryview], data: bytes | bytearray) -> None:
    """Copy `data` to the start of `windows`, which have room for it."""
    at = 0
    for window in windows:
        part = data[at : at + len(window)]
        if not part:
            return
        window[: len(part)] = part
        at += len(part)
