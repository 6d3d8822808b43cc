"""Long bulk transfers of endpoints with an odd packet size, in pieces that Linux takes and that end with a packet.

libusb gives Linux a transfer as one URB where the host controller takes scattered memory. Linux makes pieces of 16 KiB
of it, and refuses it if these are not whole packets and the host controller minds (EHCI, OHCI, UHCI). Where none takes
scattered memory, libusb itself makes URBs of 16 KiB, of which each but the last would end in the middle of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from usbvfiod_core.host.pieces import Job, PieceLane
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType, part

LIMIT: Final = 16 << 10
"""Bytes of one URB that need not be scattered: USB_SG_SIZE in Linux, MAX_BULK_BUFFER_LENGTH in libusb."""


class Ways:
    """Sends each transfer as it is or in pieces, by `start` and `stop`. `start` returns False where nothing is started
    any more; `packet_size` is that of an endpoint now, 0 if there is none."""

    def __init__(
        self,
        packet_size: Callable[[int], int],
        start: Callable[[Transfer], bool],
        stop: Callable[[Transfer], object],
    ) -> None:
        self._packet_size = packet_size
        self._start = start
        self._stop = stop
        self._ways: dict[int, Pieces | None] = {}
        """By bulk endpoint; None for transfers as they are."""

    def start(self, transfer: Transfer) -> None:
        way = self._way(transfer.endpoint) if transfer.type is TransferType.BULK else None
        if way is None:
            self._start(transfer)
        else:
            way.start(transfer)

    def stop(self, transfer: Transfer) -> None:
        way = self._ways.get(transfer.endpoint)
        if way is not None:
            way.stop(transfer)
        self._stop(transfer)

    def look_again(self) -> None:
        """What endpoints are like may have changed."""
        self._ways = {address: way for address, way in self._ways.items() if way is not None and not way.idle}

    def end(self) -> None:
        """Nothing is started any more, and nothing is in flight: end what waits."""
        for way in list(self._ways.values()):
            if way is not None:
                way.pump()

    def _way(self, address: int) -> Pieces | None:
        if address not in self._ways:
            packet_size = self._packet_size(address)
            is_odd = packet_size > 0 and LIMIT % packet_size > 0
            self._ways[address] = Pieces(packet_size, self._start, self._stop) if is_odd else None
        return self._ways[address]


class Pieces(PieceLane[Transfer]):
    """The transfers of one such endpoint. Each piece is a transfer of its own; see `Ways`."""

    def __init__(self, packet_size: int, start: Callable[[Transfer], bool], stop: Callable[[Transfer], object]) -> None:
        super().__init__(LIMIT, packet_size)
        self._start_piece = start
        self._stop_piece = stop
        self._starting: Transfer | None = None

    def send(self, job: Job[Transfer], offset: int, size: int) -> int | TransferStatus | None:
        transfer = job.transfer

        def back(piece: Transfer) -> None:
            assert piece.status is not None
            if piece is not self._starting:
                self.back(job, piece, piece.length, piece.status, piece.actual)

        piece = Transfer(transfer.endpoint, transfer.type, part(transfer.windows, offset, size), size, back)
        self._starting = piece
        started = self._start_piece(piece)
        self._starting = None
        if not started:
            return TransferStatus.DISCONNECTED
        if piece.status is not None:
            return piece.status  # it is refused
        job.requests.append(piece)
        return size

    def discard(self, request: Transfer) -> None:
        self._stop_piece(request)
