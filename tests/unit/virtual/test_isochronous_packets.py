"""The packets of isochronous transfers: their data in the windows of a guest's memory."""

from __future__ import annotations

import pytest

from usbvfiod_core.usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType
from usbvfiod_core.virtual.isochronous import contents, fill

IN = 0x81


def test_more_data_than_room_is_a_babble() -> None:
    window = bytearray(8)
    packet = IsochronousPacket(0, 8)
    transfer = Transfer(IN, TransferType.ISOCHRONOUS, [memoryview(window)], 8, lambda _: None)
    fill(transfer, packet, b"0123456789")
    assert (packet.status, packet.actual, bytes(window)) == (TransferStatus.BABBLE, 8, b"01234567")


@pytest.mark.parametrize("offset", [0, 1, 4, 5, 9])
@pytest.mark.parametrize("length", [0, 1, 3, 6])
def test_packets_across_windows(offset: int, length: int) -> None:
    buffers = [bytearray(4), bytearray(0), bytearray(1), bytearray(10)]
    transfer = Transfer(IN, TransferType.ISOCHRONOUS, [memoryview(each) for each in buffers], 15, lambda _: None)
    packet = IsochronousPacket(offset, length)
    data = bytes(range(1, length + 1))
    fill(transfer, packet, data)
    assert b"".join(buffers) == bytes(offset) + data + bytes(15 - offset - length)
    assert bytes(contents(transfer, packet)) == data
    assert packet.actual == length
