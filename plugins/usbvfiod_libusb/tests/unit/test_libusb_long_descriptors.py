"""Descriptors through libusb, which refuses control transfers of more than 4096 bytes."""

from __future__ import annotations

import pytest
from fake_libusb import descriptors
from libusb_bench import Bench
from usbvfiod_libusb import status
from usbvfiod_libusb.limits import CONTROL_LIMIT

from usbvfiod_core import TransferStatus
from usbvfiod_core.usb.descriptors import Configuration, Interface, hid_descriptor
from usbvfiod_core.usb.requests import SetupPacket

TABLET = Configuration((Interface(0, 3, extra=hid_descriptor(CONTROL_LIMIT)), Interface(1, 3, extra=b"\6\x21\0\0\0\1")))
GET_BOS = SetupPacket(0x80, 6, 0x0F00, 0, 5000)
GET_REPORT_DESCRIPTOR = SetupPacket(0x81, 6, 0x2200, 0, CONTROL_LIMIT + 64)


@pytest.mark.parametrize("length", [1, 8, 255, CONTROL_LIMIT - 1, CONTROL_LIMIT, CONTROL_LIMIT + 1, 0xFFFF])
def test_a_report_descriptor_is_read_with_any_length(length: int) -> None:
    bench = Bench(raw=descriptors((TABLET,)))
    content = bytes(range(256)) * (CONTROL_LIMIT // 256)
    bench.handle.respond = lambda sent: sent.end(status.TRANSFER_COMPLETED, content[: len(sent.data)])
    transfer = bench.control(SetupPacket(0x81, 6, 0x2200, 0, length))
    bench.wait(transfer)
    assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, content[:length])
    bench.close()


@pytest.mark.parametrize(
    ("setup", "beginning", "whole"),
    [
        (GET_BOS, bytes((5, 15)) + CONTROL_LIMIT.to_bytes(2, "little"), True),
        (GET_BOS, bytes((5, 15)) + (CONTROL_LIMIT + 1).to_bytes(2, "little"), False),
        (GET_REPORT_DESCRIPTOR, b"", True),
        (SetupPacket(0x81, 6, 0x2300, 0, 5000), b"", False),  # no HID descriptor says how long that is
        (SetupPacket(0x81, 6, 0x2200, 1, 5000), b"", False),  # its HID descriptor is cut off
        (SetupPacket(0x81, 6, 0x2200, 2, 5000), b"", False),
        (SetupPacket(0x80, 6, 0x0700, 0, 5000), b"", False),
    ],
)
def test_what_fills_the_limit_is_whole_if_the_device_says_so(
    setup: SetupPacket, beginning: bytes, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(raw=descriptors((TABLET,)))
    bench.handle.respond = lambda sent: sent.end(
        status.TRANSFER_COMPLETED, beginning + bytes(CONTROL_LIMIT - len(beginning))
    )
    transfer = bench.control(setup)
    bench.wait(transfer)
    assert transfer.status is (TransferStatus.COMPLETED if whole else TransferStatus.ERROR)
    assert ("cannot read more" in caplog.text) is not whole
    bench.close()
