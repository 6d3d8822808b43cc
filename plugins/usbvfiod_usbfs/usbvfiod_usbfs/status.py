"""What a status of usbfs means, as a `TransferStatus` (Linux's Documentation/driver-api/usb/error-codes.rst)."""

from __future__ import annotations

import errno
from typing import Final

from usbvfiod_core.usb.transfer import TransferStatus, TransferType

URB_STATUS: Final[dict[int, TransferStatus]] = {
    0: TransferStatus.COMPLETED,
    -errno.EREMOTEIO: TransferStatus.COMPLETED,  # a short packet, said only of URBs that forbid it
    -errno.EPIPE: TransferStatus.STALL,
    -errno.EPROTO: TransferStatus.ERROR,  # bit stuffing, no answer in time, or unknown
    -errno.EILSEQ: TransferStatus.ERROR,  # CRC, no answer in time, or unknown
    -errno.ETIME: TransferStatus.ERROR,  # no answer in time
    -errno.EOVERFLOW: TransferStatus.BABBLE,
    -errno.ECOMM: TransferStatus.ERROR,  # IN: faster than memory
    -errno.ENOSR: TransferStatus.ERROR,  # OUT: memory too slow
    -errno.ENOENT: TransferStatus.CANCELLED,
    -errno.ECONNRESET: TransferStatus.CANCELLED,
    -errno.ENODEV: TransferStatus.DISCONNECTED,
    -errno.ESHUTDOWN: TransferStatus.DISCONNECTED,
}
"""The status of a reaped URB; what is not here is an ERROR."""

PACKET_STATUS: Final[dict[int, TransferStatus]] = {
    **URB_STATUS,
    -errno.EXDEV: TransferStatus.MISSED,  # also what a packet starts with: its interval has not been served
    -errno.EFBIG: TransferStatus.MISSED,  # the interval lies too far ahead
    -errno.ECOMM: TransferStatus.OVERRUN,
    -errno.ENOSR: TransferStatus.OVERRUN,
    -errno.ENOENT: TransferStatus.MISSED,
    -errno.ECONNRESET: TransferStatus.MISSED,
    -errno.EPIPE: TransferStatus.ERROR,  # there is no handshake that could have said it
}
"""The status of a packet of a reaped isochronous URB; what is not here is an ERROR."""

RETRY: Final = frozenset((-errno.ENOMEM, -errno.EHOSTUNREACH, -errno.EAGAIN))
"""From SUBMITURB: not now. The memory that usbfs may use is used up, or the device is suspended by the host."""

_REFUSED: Final = frozenset((-errno.ENOENT, -errno.EINVAL))


def submit_status(code: int, type: TransferType) -> TransferStatus:
    """What a transfer ends with that SUBMITURB refused for good with this negative errno.

    A control request to an interface or endpoint that is not there is stalled, as the device itself would.
    """
    if code in _REFUSED:
        return TransferStatus.STALL if type is TransferType.CONTROL else TransferStatus.ERROR
    if code in (-errno.ENODEV, -errno.ESHUTDOWN):
        return TransferStatus.DISCONNECTED
    return TransferStatus.STALL if code == -errno.EPIPE else TransferStatus.ERROR
