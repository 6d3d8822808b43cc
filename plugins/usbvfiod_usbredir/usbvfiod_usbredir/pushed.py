"""Endpoints that the other end reads on its own account: interrupt IN, and bulk IN where that is wanted.

It sends what comes as it comes, a packet of the device in each packet of the protocol. Transfers of the guest take from
what is there. While the guest does not ask for a moment, some of it is kept; when it does not come back, the other end
is told to stop. Of an interrupt endpoint the newest is kept. Data of a bulk endpoint must not get lost while somebody
wants it: when there is much of it the other end is told to stop, so that the device has to wait, and when that is gone,
to begin again.
"""

from __future__ import annotations

from typing import Any, Final

from usbvfiod_core import Loop, Transfer, TransferStatus
from usbvfiod_core.remote import PeerError
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.usb.transfer import behind, scatter

from .exchange import Exchange
from .running import Running, failure
from .spec import Status

IDLE: Final = 1.0
"""Seconds for which a guest that does not ask is still thought to be there."""
MOST_KEPT: Final = 256
"""Packets that wait for the guest; the oldest are lost then, as in a device that is not asked."""
ENOUGH: Final = 1024
"""Packets of bulk data that wait for the guest before the other end is told to stop."""
MOST_UNDER_WAY: Final = 3072
"""Packets that may come of what the other end had read before it heard of that."""
_CDC: Final = 0x02
_ACM: Final = 0x02
_CDC_DATA: Final = 0x0A


class Pushed(Running):
    """`begin` and `stop_it` are the messages for the other end; a packet with less than `packet_size` bytes ends a
    transfer; `keeps`: nothing may get lost."""

    def __init__(
        self, loop: Loop, exchange: Exchange, begin: Any, stop_it: Any, packet_size: int, *, keeps: bool = False
    ) -> None:
        most_kept = ENOUGH + MOST_UNDER_WAY if keeps else MOST_KEPT
        super().__init__(loop, exchange, begin.endpoint, begin, most_kept)
        self.can_pause = keeps
        self._stop_it = stop_it
        self._packet_size = packet_size

    def start(self, transfer: Transfer) -> None:
        super().start(transfer)
        self._pump()

    def stop(self, transfer: Transfer) -> None:
        """End a transfer; what it has got it keeps."""
        if transfer in self._transfers:
            self._transfers.remove(transfer)
            if not self._transfers:
                self._watch_idle()
            transfer.complete(TransferStatus.CANCELLED)

    def came(self, status: int, data: bytes | bytearray) -> bool:
        """A packet of the device; whether none is lost by that."""
        if not self._running:
            return False  # it was under way when it was told to stop
        self._packets.append((status, data))
        self._pump()
        kept = len(self._packets)
        if kept > self._most_kept:
            if self.can_pause:
                raise PeerError("it goes on to send data after it was told to stop")
            self._packets.popleft()
            return False
        if self.can_pause and kept > ENOUGH and not self._paused:
            self._paused = True
            self._exchange.tell(self._stop_it)
        return True

    def told(self, status: int) -> None:
        if status != Status.SUCCESS and self._running:
            self._pump()
            self.end(failure(status))

    # -- own ---------------------------------------------------------------------------------------------------------

    def _watch_idle(self) -> None:
        self._loop.call_later(IDLE, self._idle, self._started)

    def _pump(self) -> None:
        while self._transfers and self._packets:
            status, data = self._packets.popleft()
            transfer = self._transfers[0]
            if status != Status.SUCCESS:
                self._transfers.popleft()
                transfer.complete(failure(status))
                continue
            room = transfer.length - transfer.actual
            moved = min(len(data), room)
            scatter(memoryview(data)[:moved], behind(transfer.windows, transfer.actual))
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


def is_serial_data(configuration: Configuration | None, interface: Interface) -> bool:
    """Whether what goes through the endpoints of this interface is the data of a serial port (CDC ACM)."""
    if configuration is None or interface.class_code != _CDC_DATA:
        return False
    return any((each.class_code, each.subclass) == (_CDC, _ACM) for each in configuration.interfaces)
