"""What usbfs says when it does not take an URB, as a `TransferStatus`."""

from __future__ import annotations

import errno
from typing import Final

from usbvfiod_core.host.urb_status import PACKET_STATUS, URB_STATUS
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

__all__ = ["PACKET_STATUS", "RETRY", "URB_STATUS", "submit_status"]

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
