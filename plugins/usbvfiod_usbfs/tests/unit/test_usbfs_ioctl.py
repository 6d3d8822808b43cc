"""Numbers and structures, against what the C compiler makes of Linux's header on a 64-bit machine."""

from __future__ import annotations

import errno
import os
import sys

import pytest
from usbvfiod_usbfs import ioctl as usbfs

needs_64_bits = pytest.mark.skipif(sys.maxsize < 1 << 32, reason="the numbers are those of 64-bit machines")


@needs_64_bits
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SETINTERFACE", 0x80085504),
        ("SETCONFIGURATION", 0x80045505),
        ("SUBMITURB", 0x8038550A),
        ("DISCARDURB", 0x550B),
        ("REAPURBNDELAY", 0x4008550D),
        ("CLAIMINTERFACE", 0x8004550F),
        ("RELEASEINTERFACE", 0x80045510),
        ("IOCTL", 0xC0105512),
        ("RESET", 0x5514),
        ("CLEAR_HALT", 0x80045515),
        ("CONNECT", 0x5517),
        ("GET_CAPABILITIES", 0x8004551A),
        ("DISCONNECT_CLAIM", 0x8108551B),
        ("ALLOC_STREAMS", 0x8008551C),
        ("FREE_STREAMS", 0x8008551D),
        ("GET_SPEED", 0x551F),
    ],
)
def test_numbers_of_requests(name: str, number: int) -> None:
    assert getattr(usbfs, name) == number


@needs_64_bits
def test_where_the_fields_of_an_urb_lie() -> None:
    packed = usbfs.URB.pack(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    places = {0: (1, 1), 1: (1, 2), 4: (4, 3), 8: (4, 4), 16: (8, 5), 24: (4, 6), 28: (4, 7)}
    places |= {32: (4, 8), 36: (4, 9), 40: (4, 10), 44: (4, 11), 48: (8, 12)}
    assert len(packed) == 56
    for offset, (size, value) in places.items():
        assert int.from_bytes(packed[offset : offset + size], sys.byteorder) == value


@needs_64_bits
def test_sizes_of_the_other_structures() -> None:
    sizes = {usbfs.ISO_PACKET: 12, usbfs.SET_INTERFACE_ARGUMENT: 8, usbfs.IOCTL_ARGUMENT: 16}
    sizes |= {usbfs.DISCONNECT_CLAIM_ARGUMENT: 264, usbfs.STREAMS_ARGUMENT: 8}
    assert {each: each.size for each in sizes} == sizes


def test_the_call_gives_the_negative_errno() -> None:
    with open(os.devnull) as null:
        assert usbfs.system_ioctl(null.fileno(), usbfs.RESET, 0) == -errno.ENOTTY
    assert usbfs.system_ioctl(-1, usbfs.RESET, 0) == -errno.EBADF


def test_only_what_can_be_written_has_an_address() -> None:
    with pytest.raises(TypeError):
        usbfs.address_of(memoryview(b"read-only"))
    with pytest.raises(ValueError, match="too small"):
        usbfs.address_of(bytearray())
