"""The way of isochronous transfers through URBs: see `PacketLane`."""

from __future__ import annotations

import errno

from usbvfiod_core.host.packets import Entry, PacketLane, packet_windows
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.transfer import TransferStatus

from . import ioctl as usbfs
from . import windows as memory
from .status import PACKET_STATUS, RETRY, URB_STATUS, submit_status
from .urb import Urb, Urbs


class IsochronousLane(PacketLane[Urb]):
    """The transfers of one isochronous endpoint; `interval` is the seconds between two packets, `longest`
    the bytes that one can have, 0 if that is not known."""

    def __init__(self, urbs: Urbs, loop: Loop, interval: float, longest: int = 0) -> None:
        super().__init__(loop, interval, usbfs.MAX_ISO_PACKETS, longest)
        self._urbs = urbs

    # -- Owner ---------------------------------------------------------------------------------------------------------

    def reaped(self, urb: Urb, status: int, actual: int) -> None:
        """An URB is back."""
        # What happened is said packet by packet, unless the URB has not been executed at all.
        unusable = -status in (errno.ENODEV, errno.ESHUTDOWN, errno.EFAULT)
        overall = URB_STATUS.get(status, TransferStatus.ERROR) if unusable else TransferStatus.COMPLETED
        view: memoryview | None = None if urb.bounce is None else memoryview(urb.bounce)
        place, offset = usbfs.URB.size, 0
        for job, packet in self.take(urb):
            length, moved, code = usbfs.ISO_PACKET.unpack_from(urb.memory, place)
            place += usbfs.ISO_PACKET.size
            packet.actual = 0 if unusable else moved
            packet.status = overall if unusable else PACKET_STATUS.get(code, TransferStatus.ERROR)
            if view is not None and packet.actual and job.transfer.is_in:
                memory.scatter(view[offset : offset + moved], packet_windows(job.transfer, packet, length))
            offset += length
            self.over(job, packet, overall)
        self.go_on()

    # -- PacketLane ----------------------------------------------------------------------------------------------------

    def submit(self, entries: list[Entry]) -> Urb | TransferStatus | None:
        urb = self._fill(entries)
        code = self._urbs.submit(urb)
        if code == 0:
            return urb
        self._urbs.free(urb)
        self.starved = code == -errno.ENOMEM
        if code in RETRY:
            self._urbs.wait_for_memory(self)
            return None
        return submit_status(code, entries[0][0].transfer.type)

    def discard(self, key: Urb) -> None:
        self._urbs.discard(key)

    # -- own -----------------------------------------------------------------------------------------------------------

    def _fill(self, entries: list[Entry]) -> Urb:
        urb = self._urbs.new(self, self.group)
        transfer = entries[0][0].transfer
        views: list[memoryview] = []
        place = usbfs.URB.size
        length = 0
        for job, packet in entries:
            room = self.room(packet)
            usbfs.ISO_PACKET.pack_into(urb.memory, place, room, 0, 0)
            place += usbfs.ISO_PACKET.size
            views += packet_windows(job.transfer, packet, room)
            length += room
        found = memory.contiguous(views) if length else (0, None)
        if found is None:
            urb.bounce = buffer = self._urbs.buffer(length)
            if not transfer.is_in:
                memory.gather(views, buffer)
            found = usbfs.address_of(buffer)
        address, urb.pin = found
        urb.length = length
        kind, flags, count = usbfs.URB_TYPE_ISO, usbfs.URB_ISO_ASAP, len(entries)
        usbfs.URB.pack_into(urb.memory, 0, kind, transfer.endpoint, 0, flags, address, length, 0, 0, count, 0, 0, 0)
        return urb
