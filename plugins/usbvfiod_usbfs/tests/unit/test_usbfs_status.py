"""Every status that usbfs may give, by what a guest is to be told."""

from __future__ import annotations

import errno

import pytest
from usbvfiod_usbfs.status import PACKET_STATUS, RETRY, URB_STATUS, submit_status

from usbvfiod_core.usb.transfer import TransferStatus, TransferType

COMPLETED, STALL, BABBLE, ERROR = (
    TransferStatus.COMPLETED,
    TransferStatus.STALL,
    TransferStatus.BABBLE,
    TransferStatus.ERROR,
)
CANCELLED, DISCONNECTED = TransferStatus.CANCELLED, TransferStatus.DISCONNECTED
MISSED, OVERRUN = TransferStatus.MISSED, TransferStatus.OVERRUN


@pytest.mark.parametrize(
    ("name", "transfer", "packet"),
    [
        ("EREMOTEIO", COMPLETED, COMPLETED),
        ("EPIPE", STALL, ERROR),
        ("EPROTO", ERROR, ERROR),
        ("EILSEQ", ERROR, ERROR),
        ("ETIME", ERROR, ERROR),
        ("EOVERFLOW", BABBLE, BABBLE),
        ("ECOMM", ERROR, OVERRUN),
        ("ENOSR", ERROR, OVERRUN),
        ("ENOENT", CANCELLED, MISSED),
        ("ECONNRESET", CANCELLED, MISSED),
        ("ENODEV", DISCONNECTED, DISCONNECTED),
        ("ESHUTDOWN", DISCONNECTED, DISCONNECTED),
        ("EXDEV", ERROR, MISSED),
        ("EFBIG", ERROR, MISSED),
        ("EIO", ERROR, ERROR),
        ("EINVAL", ERROR, ERROR),
    ],
)
def test_what_a_reaped_urb_says(name: str, transfer: TransferStatus, packet: TransferStatus) -> None:
    code = -getattr(errno, name)
    assert URB_STATUS.get(code, ERROR) is transfer
    assert PACKET_STATUS.get(code, ERROR) is packet


def test_no_error_is_success() -> None:
    assert URB_STATUS[0] is PACKET_STATUS[0] is COMPLETED


@pytest.mark.parametrize(
    ("name", "control", "other"),
    [
        ("ENOENT", STALL, ERROR),
        ("EINVAL", STALL, ERROR),
        ("EPIPE", STALL, STALL),
        ("ENODEV", DISCONNECTED, DISCONNECTED),
        ("ESHUTDOWN", DISCONNECTED, DISCONNECTED),
        ("EBUSY", ERROR, ERROR),
        ("EFAULT", ERROR, ERROR),
        ("EACCES", ERROR, ERROR),
        ("EMSGSIZE", ERROR, ERROR),
    ],
)
def test_what_a_refused_urb_says(name: str, control: TransferStatus, other: TransferStatus) -> None:
    code = -getattr(errno, name)
    assert code not in RETRY
    assert submit_status(code, TransferType.CONTROL) is control
    for type in (TransferType.BULK, TransferType.INTERRUPT, TransferType.ISOCHRONOUS):
        assert submit_status(code, type) is other


def test_what_is_tried_again() -> None:
    assert {-errno.ENOMEM, -errno.EHOSTUNREACH, -errno.EAGAIN} == RETRY
