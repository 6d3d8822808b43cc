"""The records of usbmon: the bytes that the kernel writes for them, and back."""

from __future__ import annotations

from dataclasses import replace
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.capture import usbmon
from usbvfiod_core.capture.usbmon import (
    COMPLETE,
    IN_PROGRESS,
    LINK_TYPE,
    LINK_TYPE_SHORT,
    SUBMIT,
    Packet,
    Record,
    parse,
)
from usbvfiod_core.errors import CaptureError
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

GET_DESCRIPTOR = bytes.fromhex("8006000100001200")
TIME = 1_700_000_000_123_456_000


def record(**changed: Any) -> Record:
    """A submission of GET_DESCRIPTOR, with these fields."""
    fields: dict[str, Any] = {
        "id": 0xFFFF_8880_1234_5678,
        "kind": SUBMIT,
        "type": TransferType.CONTROL,
        "endpoint": 0x80,
        "device": 7,
        "bus": 3,
        "time": TIME,
        "status": IN_PROGRESS,
        "length": 18,
        "setup": GET_DESCRIPTOR,
        "data_flag": usbmon.DATA_IN_LATER,
    }
    return Record(**(fields | changed))


def test_the_header_is_the_kernel_s() -> None:
    # struct mon_bin_hdr of drivers/usb/mon/mon_bin.c, field by field.
    expected = (
        pack("<Q", 0xFFFF_8880_1234_5678)
        + b"S\x02\x80\x07\x03\x00\x00<"
        + pack("<qii", 1_700_000_000, 123456, -115)
        + pack("<II", 18, 0)
        + GET_DESCRIPTOR
        + bytes(16)
    )
    assert record().header() == expected
    assert parse(expected, LINK_TYPE, "<") == record()


def test_isochronous_packets_stand_between_header_and_data_and_count_as_captured() -> None:
    packets = [Packet(0, 0, 100), Packet(-18, 192, 0)]
    written = record(
        type=TransferType.ISOCHRONOUS, setup=None, kind=COMPLETE, status=0, packets=packets, errors=1, data_flag=0
    )
    raw = written.header(292)
    assert raw[36:40] == pack("<I", 32 + 292)
    assert raw[40:48] == pack("<ii", 1, 2)
    assert raw[60:] == pack("<I", 2) + pack("<iIII", 0, 0, 100, 0) + pack("<iIII", -18, 192, 0, 0)
    back = parse(raw + bytes(292), LINK_TYPE, "<")
    assert (back.packets, back.errors, back.data) == (packets, 1, bytes(292))


def test_no_more_descriptors_than_the_kernel_writes() -> None:
    raw = record(type=TransferType.ISOCHRONOUS, setup=None, packets=[Packet(0, 0, 1)] * 200).header()
    assert len(raw) == 64 + 128 * 16
    assert raw[40:48] == pack("<ii", 0, 200)


def test_the_short_header_has_no_descriptors() -> None:
    raw = record(kind=COMPLETE, status=0, setup=None, data_flag=0).header(4)[:48] + b"data"
    back = parse(raw, LINK_TYPE_SHORT, "<")
    assert (back.data, back.status, back.packets) == (b"data", 0, ())


def test_the_other_byte_order() -> None:
    raw = (
        pack(">Q", 5)
        + b"C\x03\x81\x07\x00\x03-\x00"
        + pack(">qiiII", 1, 2, -32, 512, 4)
        + bytes(8)
        + pack(">iiII", 3, 4, 0x200, 0)
        + b"data"
    )
    back = parse(raw, LINK_TYPE, ">")
    assert (back.id, back.bus, back.time, back.status) == (5, 3, 1_000_002_000, -32)
    assert (back.interval, back.start_frame, back.flags, back.data) == (3, 4, 0x200, b"data")
    assert back.setup is None


def test_what_is_cut_says_what_there_was() -> None:
    raw = record(kind=COMPLETE, status=0, setup=None, data_flag=0, length=512).header(512) + bytes(100)
    back = parse(raw, LINK_TYPE, "<")
    assert (back.length, len(back.data)) == (512, 100)


@pytest.mark.parametrize(
    ("raw", "link_type", "said"),
    [
        (bytes(64), 1, "link type 1 is not USB"),
        (bytes(63), LINK_TYPE, "a record of 63 bytes; its header alone has 64"),
        (bytes(47), LINK_TYPE_SHORT, "its header alone has 48"),
        (bytes(64), LINK_TYPE, "a record of kind 0x00 and transfer type 0"),
        (record().header()[:60] + pack("<I", 129), LINK_TYPE, "with 129 descriptors of packets"),
        (record().header()[:60] + pack("<I", 1), LINK_TYPE, "a record of 64 bytes with 1 descriptors of packets"),
    ],
)
def test_what_is_no_record(raw: bytes, link_type: int, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        parse(raw, link_type, "<")


@pytest.mark.parametrize("status", TransferStatus)
def test_every_status_comes_back(status: TransferStatus) -> None:
    assert usbmon.STATUS[usbmon.ERRNO[status]] is status


def test_what_a_record_says_of_itself() -> None:
    assert record().request == SetupPacket(0x80, 6, 0x0100, 0, 18)
    assert record(setup=None).request is None
    assert record().is_in
    assert not record(endpoint=0).is_in


integers = st.integers(-(2**31), 2**31 - 1)
packets = st.lists(st.builds(Packet, integers, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=128)


@given(
    type=st.sampled_from(TransferType),
    setup=st.binary(min_size=8, max_size=8),
    data=st.binary(max_size=64),
    packets=packets,
    interval=integers,
    start_frame=integers,
    flags=st.integers(0, 2**32 - 1),
    errors=integers,
)
def test_what_is_written_is_read_again(type: TransferType, setup: bytes, data: bytes, **fields: Any) -> None:
    if type is not TransferType.ISOCHRONOUS:
        fields |= {"packets": [], "errors": 0}
    written = record(type=type, setup=setup if type is TransferType.CONTROL else None, data=data, **fields)
    back = parse(written.header() + data, LINK_TYPE, "<")
    assert (list(back.packets), replace(back, packets=())) == (written.packets, replace(written, packets=()))


@given(st.binary(max_size=200), st.sampled_from(usbmon.LINK_TYPES), st.sampled_from(("<", ">")))
def test_any_bytes_are_a_record_or_refused(raw: bytes, link_type: int, order: Any) -> None:
    prefix = b"\0" * 8 + b"C\0"
    for data in (raw, prefix + raw):
        try:
            back = parse(data, link_type, order)
        except CaptureError:
            continue
        assert len(back.data) <= len(data)
