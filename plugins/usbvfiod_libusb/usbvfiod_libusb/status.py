"""What libusb says of a transfer or an operation, in the words of `TransferStatus`. The tables name every member.

The numbers are libusb's public interface (libusb.h: enum libusb_transfer_status, enum libusb_error); they are the same
in every version of it.
"""

from __future__ import annotations

from usbvfiod_core import TransferStatus
from usbvfiod_core.host.operations import OperationFailed

TRANSFER_COMPLETED = 0
TRANSFER_ERROR = 1
TRANSFER_TIMED_OUT = 2
TRANSFER_CANCELLED = 3
TRANSFER_STALL = 4
TRANSFER_NO_DEVICE = 5
TRANSFER_OVERFLOW = 6

TRANSFER_STATUS = {
    TRANSFER_COMPLETED: TransferStatus.COMPLETED,
    TRANSFER_ERROR: TransferStatus.ERROR,
    TRANSFER_TIMED_OUT: TransferStatus.ERROR,  # no transfer is given a timeout
    TRANSFER_CANCELLED: TransferStatus.CANCELLED,
    TRANSFER_STALL: TransferStatus.STALL,
    TRANSFER_NO_DEVICE: TransferStatus.DISCONNECTED,
    TRANSFER_OVERFLOW: TransferStatus.BABBLE,
}
"""How a transfer, or a packet of an isochronous one, ended.

A packet whose time had passed (Linux: EXDEV) is an ERROR here: libusb does not tell it from a bad CRC. OUT packets
have no CRC that anybody reports; for them it means that they were missed.
"""

ERROR_IO = -1
ERROR_INVALID_PARAM = -2
ERROR_ACCESS = -3
ERROR_NO_DEVICE = -4
ERROR_NOT_FOUND = -5
ERROR_BUSY = -6
ERROR_TIMEOUT = -7
ERROR_OVERFLOW = -8
ERROR_PIPE = -9
ERROR_INTERRUPTED = -10
ERROR_NO_MEM = -11
ERROR_NOT_SUPPORTED = -12
ERROR_OTHER = -99

SUBMIT_ERROR = {
    ERROR_IO: TransferStatus.ERROR,
    ERROR_INVALID_PARAM: TransferStatus.ERROR,
    ERROR_ACCESS: TransferStatus.ERROR,
    ERROR_NO_DEVICE: TransferStatus.DISCONNECTED,
    ERROR_NOT_FOUND: TransferStatus.ERROR,  # no such endpoint in the present setting
    ERROR_BUSY: TransferStatus.ERROR,
    ERROR_TIMEOUT: TransferStatus.ERROR,
    ERROR_OVERFLOW: TransferStatus.BABBLE,
    ERROR_PIPE: TransferStatus.STALL,
    ERROR_INTERRUPTED: TransferStatus.ERROR,
    ERROR_NO_MEM: TransferStatus.ERROR,  # after it was tried again for a while
    ERROR_NOT_SUPPORTED: TransferStatus.ERROR,
    ERROR_OTHER: TransferStatus.ERROR,
}
"""What a transfer ends with that libusb did not take."""

OPERATION_ERROR = {
    **SUBMIT_ERROR,
    ERROR_INVALID_PARAM: TransferStatus.STALL,
    ERROR_NOT_FOUND: TransferStatus.STALL,
    ERROR_NOT_SUPPORTED: TransferStatus.STALL,
    ERROR_OTHER: TransferStatus.STALL,
}
"""What an operation fails with. For a device that refuses it, libusb knows no better word than ERROR_OTHER."""


def error_code(error: Exception) -> int:
    """The code in a USBError; ERROR_OTHER for one without."""
    value = getattr(error, "value", None)
    return value if isinstance(value, int) else ERROR_OTHER


def submit_error(error: Exception, *, has_recipient: bool = True) -> TransferStatus:
    """What the transfer ends with that `submit` refused. A request without a recipient is one that Linux does not send,
    and that the device would have refused."""
    status = SUBMIT_ERROR.get(error_code(error), TransferStatus.ERROR)
    return TransferStatus.STALL if status is TransferStatus.ERROR and not has_recipient else status


def operation_failed(what: str, error: Exception) -> OperationFailed:
    """The failure of an operation, for people and for the guest."""
    return OperationFailed(OPERATION_ERROR.get(error_code(error), TransferStatus.STALL), f"{what}: {error}")
