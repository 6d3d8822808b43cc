"""Endpoints at which the other end works on its own account, from when it is told to begin until it is told to stop.

What it does differs: `pushed` reads ahead, `isochronous` keeps a stream in time. Here is what any of them is to a
process that goes on with it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from usbvfiod_core import Loop, Transfer, TransferStatus
from usbvfiod_core.state import require

from .exchange import Exchange
from .spec import transfer_status
from .state import PacketState, RunningState


class Running:
    """Transfers of one endpoint. `begin` is the message that sets the other end going, `most_kept` the packets of the
    device at most that wait here for the guest."""

    can_pause = False
    """Whether the other end may be told to stop for a while, although the guest wants more."""

    def __init__(self, loop: Loop, exchange: Exchange, endpoint: int, begin: Any, most_kept: int) -> None:
        self._loop = loop
        self._exchange = exchange
        self._endpoint = endpoint
        self._begin = begin
        self._most_kept = most_kept
        self._transfers: deque[Transfer] = deque()
        self._packets: deque[tuple[int, bytes | bytearray]] = deque()
        """Of the device, which nobody has asked for yet."""
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

    def stop(self, transfer: Transfer) -> None:
        """End a transfer."""
        raise NotImplementedError

    def end(self, status: TransferStatus) -> None:
        """End all: the other end has stopped, or nobody is there any more."""
        self._running = self._paused = False
        self._packets.clear()
        transfers, self._transfers = self._transfers, deque()
        for transfer in transfers:
            for packet in transfer.packets:
                packet.status = status
            transfer.complete(status)

    def told(self, status: int) -> None:
        """The other end tells how it stands: that it has begun or stopped as it was told to, or by itself."""
        raise NotImplementedError

    # -- going on in another process -----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no transfer is under way."""
        return not self._transfers

    def saved_state(self) -> RunningState | None:
        """What another process has to know; None if the other end does nothing."""
        if not self._running:
            return None
        kept = [PacketState(status, bytes(data)) for status, data in self._packets]
        return RunningState(self._endpoint, self._paused, kept)

    def take_over(self, state: RunningState, path: str) -> None:
        """Be the one that another process had, which `go_on` sets going. Raises StateError."""
        require(len(state.packets) <= self._most_kept, f"{path}.packets", f"there are {len(state.packets)}")
        require(self.can_pause or not state.paused, f"{path}.paused", "it is never told to stop for a while")
        self._running, self._paused = True, state.paused
        self._packets.extend((each.status, each.data) for each in state.packets)

    def go_on(self) -> None:
        """On the loop's thread: it may be used from now on."""
        self._watch_idle()

    # -- for those that do it ------------------------------------------------------------------------------------------

    def _watch_idle(self) -> None:
        """Have a look later whether the guest still wants it."""
        raise NotImplementedError


def failure(status: int) -> TransferStatus:
    """What a transfer ends with where the other end says `status` of what it does on its own account: nobody here has
    cancelled that, whatever it says."""
    result = transfer_status(status)
    return TransferStatus.ERROR if result is TransferStatus.CANCELLED else result
