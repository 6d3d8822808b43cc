"""The tables of statuses against those of the binding, member by member."""

from __future__ import annotations

import pytest
import usb1  # type: ignore[import-untyped]
from usbvfiod_libusb import status

from usbvfiod_core import TransferStatus


def names(enumeration: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix("LIBUSB_"): value for name, value in enumeration.items()}


def test_every_status_of_a_transfer_is_in_the_table() -> None:
    members = names(usb1.libusb1.libusb_transfer_status.forward_dict)
    assert set(members.values()) == set(status.TRANSFER_STATUS)
    for name, value in members.items():
        assert getattr(status, name) == value


def test_every_error_is_in_both_tables() -> None:
    members = names(usb1.libusb1.libusb_error.forward_dict)
    assert members.pop("SUCCESS") == 0
    assert set(members.values()) == set(status.SUBMIT_ERROR) == set(status.OPERATION_ERROR)
    for name, value in members.items():
        assert getattr(status, name) == value


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("COMPLETED", TransferStatus.COMPLETED),
        ("ERROR", TransferStatus.ERROR),
        ("TIMED_OUT", TransferStatus.ERROR),
        ("CANCELLED", TransferStatus.CANCELLED),
        ("STALL", TransferStatus.STALL),
        ("NO_DEVICE", TransferStatus.DISCONNECTED),
        ("OVERFLOW", TransferStatus.BABBLE),
    ],
)
def test_what_a_transfer_ends_with(outcome: str, expected: TransferStatus) -> None:
    assert (
        status.TRANSFER_STATUS[usb1.libusb1.libusb_transfer_status.forward_dict[f"LIBUSB_TRANSFER_{outcome}"]]
        is expected
    )


@pytest.mark.parametrize(
    ("name", "submit", "operation"),
    [
        ("IO", "ERROR", "ERROR"),
        ("INVALID_PARAM", "ERROR", "STALL"),
        ("ACCESS", "ERROR", "ERROR"),
        ("NO_DEVICE", "DISCONNECTED", "DISCONNECTED"),
        ("NOT_FOUND", "ERROR", "STALL"),
        ("BUSY", "ERROR", "ERROR"),
        ("TIMEOUT", "ERROR", "ERROR"),
        ("OVERFLOW", "BABBLE", "BABBLE"),
        ("PIPE", "STALL", "STALL"),
        ("INTERRUPTED", "ERROR", "ERROR"),
        ("NO_MEM", "ERROR", "ERROR"),
        ("NOT_SUPPORTED", "ERROR", "STALL"),
        ("OTHER", "ERROR", "STALL"),
    ],
)
def test_what_an_error_means(name: str, submit: str, operation: str) -> None:
    error = usb1.USBError(usb1.libusb1.libusb_error.forward_dict[f"LIBUSB_ERROR_{name}"])
    assert status.submit_error(error) is TransferStatus[submit]
    failure = status.operation_failed("clear the halt", error)
    assert failure.status is TransferStatus[operation]
    assert str(failure) == f"clear the halt: {error}"


def test_an_error_that_nobody_knows_is_an_error() -> None:
    assert status.submit_error(usb1.USBError(-1234)) is TransferStatus.ERROR
    assert status.error_code(ValueError("no code")) == status.ERROR_OTHER
