"""What Linux's status of an URB means, as a `TransferStatus` (Documentation/driver-api/usb/error-codes.rst).

usbfs gives it, and USB/IP carries it.
"""

from __future__ import annotations

import errno
from typing import Final

from ..usb.transfer import TransferStatus

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
"""The status of an URB that has come back; what is not here is an ERROR."""

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
"""The status of a packet of an isochronous URB; what is not here is an ERROR."""
