"""A conversation as bytes, for tests of the parser."""

from __future__ import annotations

from typing import Any

from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir.messages import SHAPES, Sender, bulk_packet, pack
from usbvfiod_usbredir.parser import Packet, Parser
from usbvfiod_usbredir.spec import ALL_CAPABILITIES, Type

ENDPOINT_INFO = m.EndpointInfo(bytes(32), bytes(32), bytes(32), bytes(range(64)), bytes(range(128)))

OF_HOST: list[tuple[Any, bytes]] = [
    (m.InterfaceInfo(1, bytes(32), b"\x08" + bytes(31), bytes(32), bytes(32)), b""),
    (ENDPOINT_INFO, b""),
    (m.DeviceConnect(2, 0, 0, 0, 0x46F4, 1, 0x0100), b""),
    (m.ConfigurationStatus(0, 1), b""),
    (m.AltSettingStatus(0, 1, 2), b""),
    (m.IsoStreamStatus(4, 0x81), b""),
    (m.InterruptReceivingStatus(4, 0x81), b""),
    (m.BulkStreamsStatus(0x20006, 16, 0), b""),
    (m.BulkReceivingStatus(0, 0x81, 0), b""),
    (m.ControlPacket(0x80, 6, 0x80, 0, 0x0100, 0, 18), bytes(range(18))),
    (m.ControlPacket(0, 9, 0, 0, 1, 0, 0), b""),
    (bulk_packet(0x81, 70000), bytes(70000)),
    (bulk_packet(0x02, 512), b""),
    (bulk_packet(0x81, 0, status=4), b""),
    (m.IsoPacket(0x83, 0, 192), bytes(192)),
    (m.InterruptPacket(0x84, 0, 8), b"8 bytes!"),
    (m.InterruptPacket(0x04, 0, 8), b""),
    (m.BufferedBulkPacket(0, 64, 0x85, 0), bytes(64)),
    (m.FilterFilter(), b"-1,-1,-1,-1,1\0"),
    (m.DeviceDisconnect(), b""),
]
"""One packet of each type that a host sends, and of some both kinds."""

OF_GUEST: list[tuple[Any, bytes]] = [
    (m.Reset(), b""),
    (m.SetConfiguration(1), b""),
    (m.GetConfiguration(), b""),
    (m.SetAltSetting(1, 2), b""),
    (m.GetAltSetting(1), b""),
    (m.StartIsoStream(0x83, 8, 3), b""),
    (m.StopIsoStream(0x83), b""),
    (m.StartInterruptReceiving(0x84), b""),
    (m.StopInterruptReceiving(0x84), b""),
    (m.AllocBulkStreams(0x20006, 16), b""),
    (m.FreeBulkStreams(0x20006), b""),
    (m.CancelDataPacket(), b""),
    (m.FilterReject(), b""),
    (m.FilterFilter(), b"0x08,-1,-1,-1,0\0"),
    (m.DeviceDisconnectAck(), b""),
    (m.StartBulkReceiving(0, 512, 0x85, 8), b""),
    (m.StopBulkReceiving(0, 0x85), b""),
    (m.ControlPacket(0, 9, 0x21, 0, 0, 0, 4), b"\1\2\3\4"),
    (m.ControlPacket(0x80, 6, 0x80, 0, 0x0100, 0, 18), b""),
    (bulk_packet(0x02, 3), b"abc"),
    (bulk_packet(0x81, 1 << 20), b""),
    (m.IsoPacket(0x03, 0, 3), b"abc"),
    (m.InterruptPacket(0x04, 0, 2), b"ab"),
]


def conversation(
    capabilities: int = ALL_CAPABILITIES, sender: Sender = Sender.HOST, most: int = 1 << 20
) -> tuple[bytes, list[tuple[Any, bytes]]]:
    """What a side with `capabilities` sends one that has all, and what is in it. Of packets with data, those with
    `most` bytes."""
    packets = OF_HOST if sender is Sender.HOST else OF_GUEST
    packets = [each for each in packets if len(each[1]) <= most]
    stream = pack(m.Hello("a peer", capabilities))
    for id, (message, data) in enumerate(packets):
        stream += pack(message, id=id, common=capabilities, data=data)
    return stream, packets


def read(parser: Parser, stream: bytes, pieces: list[int]) -> list[Packet]:
    """Give a parser `stream` in pieces of so many bytes, in turn."""
    found: list[Packet] = []
    at = turn = 0
    while at < len(stream):
        want = pieces[turn % len(pieces)]
        turn += 1
        count = 0
        for room in parser.buffers():
            part = stream[at : at + min(len(room), want - count)]
            room[: len(part)] = part
            at += len(part)
            count += len(part)
            if count == want:
                break
        found += parser.received(count)
    return found


def types_of(sender: Sender) -> set[int]:
    """All types that a side sends after its hello."""
    return {type for type, shape in SHAPES.items() if shape.sender & sender} - {Type.HELLO}
