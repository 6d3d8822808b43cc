"""Bulk transfers in pieces, where Linux does not take them whole.

libusb gives Linux a transfer as one URB where the host controller takes scattered memory. Linux makes pieces of 16 KiB
of it, and refuses it if these are not whole packets and the host controller minds (EHCI, OHCI, UHCI). Where none takes
scattered memory, libusb itself makes URBs of 16 KiB, of which each but the last would end in the middle of a packet. So
those of endpoints with an odd packet size go in pieces that Linux takes and that end with a packet.

Linux has 16 MiB for the URBs of all programs (usbfs_memory_mb), and refuses for ever what is longer. Programs in a
guest that raise that limit there send as much at once: a kernel for a board that boots by USB, say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from usbvfiod_core.host.pieces import Job, PieceLane
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType, part

LIMIT: Final = 16 << 10
"""Bytes of one URB that need not be scattered: USB_SG_SIZE in Linux, MAX_BULK_BUFFER_LENGTH in libusb."""

LONG: Final = 8 << 20
"""Bytes above which a transfer is cut, and that are in flight of it."""
LONG_PIECE: Final = 1 << 20
"""Bytes of such a piece."""


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
        self._odd_sizes: dict[int, int] = {}
        """By bulk endpoint, its packet size; 0 if Linux does not mind it."""
        self._ways: dict[int, Pieces] = {}
        """By bulk endpoint; where there is none, transfers go as they are."""

    def start(self, transfer: Transfer) -> None:
        way = self._way(transfer) if transfer.type is TransferType.BULK else None
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
        self._odd_sizes.clear()
        self._ways = {address: way for address, way in self._ways.items() if not way.idle}

    def end(self) -> None:
        """Nothing is started any more, and nothing is in flight: end what waits."""
        for way in list(self._ways.values()):
            way.pump()

    def _way(self, transfer: Transfer) -> Pieces | None:
        address = transfer.endpoint
        odd_size = self._odd_sizes.get(address)
        if odd_size is None:
            size = self._packet_size(address)
            self._odd_sizes[address] = odd_size = size if size > 0 and LIMIT % size else 0
        way = self._ways.get(address)
        if odd_size or transfer.length > LONG:
            if way is None:
                cut = LIMIT if odd_size else LONG_PIECE
                self._ways[address] = way = Pieces(cut, odd_size, self._start, self._stop)
        elif way is not None and way.idle:
            return None
        return way


class Pieces(PieceLane[Transfer]):
    """The transfers of one such endpoint. Each piece, of up to `cut` bytes, is a transfer of its own; see `Ways`."""

    def __init__(
        self, cut: int, packet_size: int, start: Callable[[Transfer], bool], stop: Callable[[Transfer], object]
    ) -> None:
        super().__init__(cut, packet_size)
        self._start_piece = start
        self._stop_piece = stop
        self._starting: Transfer | None = None

    def send(self, job: Job[Transfer], offset: int, size: int) -> int | TransferStatus | None:
        if sum(piece.length for piece in job.requests) + size > LONG:
            return None  # the next ones go when these are back
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
