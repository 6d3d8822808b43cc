"""A `Transfer` as libusb wants it, and back.

Data stays in guest memory where it lies in one piece: the URB then points there, and the kernel copies once. What is
scattered over several windows goes through a buffer, and control transfers do always: setup packet and data are one
buffer in libusb. Native transfers are used again; isochronous ones are made for a number of packets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from usbvfiod_core import Transfer, TransferStatus, TransferType
from usbvfiod_core.usb.transfer import behind, scatter

from .binding import Handle, NativeTransfer
from .status import TRANSFER_STATUS

MAX_SPARE = 64
"""Native transfers that are kept for the next ones."""

Result = tuple[Transfer, TransferStatus, int]
"""A transfer that has come back, how it ended, and how much it has moved."""

_NOTHING = bytearray()
_CONTROL, _ISOCHRONOUS, _BULK = TransferType.CONTROL, TransferType.ISOCHRONOUS, TransferType.BULK
_COMPLETED = TransferStatus.COMPLETED


class NativeTransfers:
    """Makes native transfers for one open device; `ended(native)` is called for each that has come back."""

    def __init__(self, handle: Handle, ended: Callable[[NativeTransfer], object]) -> None:
        self._handle = handle
        self._ended = ended
        self._spare: list[NativeTransfer] = []

    def prepare(self, transfer: Transfer, length: int | None = None, longest: int = 0) -> NativeTransfer | None:
        """A native transfer, ready to be submitted; None if nothing of it can be sent.

        `length` takes the place of wLength in a control transfer. A packet IN is asked for `longest` bytes at most,
        unless that is 0: Linux refuses one with more room than its endpoint can fill. Raises USBError.
        """
        kind = transfer.type
        if kind is _ISOCHRONOUS:
            rooms = [packet.length for packet in transfer.packets if packet.length]
            if not rooms:
                return None  # the binding takes no empty packet
            buffer = _buffer(transfer)
            if longest and transfer.is_in and max(rooms) > longest:
                rooms = [min(room, longest) for room in rooms]
                buffer = bytearray(sum(rooms))
            native = self._handle.getTransfer(len(rooms))
            native.setIsochronous(
                transfer.endpoint, buffer, self._ended, (transfer, buffer, rooms), iso_transfer_length_list=rooms
            )
            return native
        native = self._spare.pop() if self._spare else self._handle.getTransfer()
        setup = transfer.setup
        if setup is not None:
            wanted = setup.length if length is None else length
            data: bytes | int = wanted if setup.is_in else transfer.read()
            native.setControl(
                setup.request_type, setup.request, setup.value, setup.index, data, self._ended, (transfer, None, [])
            )
        else:
            buffer = _buffer(transfer)
            fill = native.setBulk if kind is _BULK else native.setInterrupt
            fill(transfer.endpoint, buffer, self._ended, (transfer, buffer, []))
        return native

    def finish(self, native: NativeTransfer) -> Result:
        """Read what a native transfer that has come back says, and put its data where it belongs."""
        transfer, buffer, rooms = native.getUserData()
        status = TRANSFER_STATUS.get(native.getStatus(), TransferStatus.ERROR)
        if transfer.type is _ISOCHRONOUS:
            actual = _finish_packets(transfer, native.getISOSetupList())
            if transfer.is_in and buffer is not transfer.windows[0]:
                _spread(transfer, memoryview(buffer), rooms)
            native.close()
            return transfer, status, actual
        moved = native.getActualLength()
        actual = min(moved, transfer.length)
        if transfer.is_in and actual:
            if transfer.setup is not None:
                transfer.write(native.getBuffer()[:actual])
            elif len(transfer.windows) != 1:
                transfer.write(memoryview(buffer)[:actual])
        if moved > actual:
            status = TransferStatus.BABBLE  # a data stage that is longer than the driver's
        self.spare(native)
        return transfer, status, actual

    def spare(self, native: NativeTransfer) -> None:
        """One that is not needed any more: it lets go of guest memory, and waits for the next transfer."""
        if len(self._spare) >= MAX_SPARE:
            native.close()
            return
        # The least that is not refused: setControl is the only one that takes the place of a control buffer.
        native.setBulk(0, _NOTHING, _ignore, None)
        self._spare.append(native)

    def close(self) -> None:
        """Free those that are kept. All others have come back."""
        while self._spare:
            self._spare.pop().close()


def _buffer(transfer: Transfer) -> Any:
    """The memory that a transfer is sent from or received into."""
    windows = transfer.windows
    if len(windows) == 1:
        return windows[0]
    if transfer.is_in:
        return bytearray(transfer.length)
    return bytearray().join(windows)


def _finish_packets(transfer: Transfer, results: list[dict[str, int]]) -> int:
    """Give each packet its result, in order; return the sum of what they moved. Empty ones were not sent."""
    total = 0
    sent = iter(results)
    for packet in transfer.packets:
        if not packet.length:
            packet.status = TransferStatus.MISSED
            continue
        result = next(sent)
        packet.status = TRANSFER_STATUS.get(result["status"], TransferStatus.ERROR)
        if packet.status is TransferStatus.ERROR and not transfer.is_in:
            packet.status = TransferStatus.MISSED  # nobody acknowledges what goes out: it can only come too late
        packet.actual = min(result["actual_length"], packet.length)
        total += packet.actual
    return total


def _spread(transfer: Transfer, data: memoryview, rooms: list[int]) -> None:
    """Put what came where it belongs; each packet that was sent had so much room in `data`."""
    sent = iter(rooms)
    for packet in transfer.packets:
        if packet.length:
            scatter(data[: packet.actual], behind(transfer.windows, packet.offset))
            data = data[next(sent) :]


def _ignore(native: NativeTransfer) -> None:
    pass
