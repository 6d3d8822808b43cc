"""Packets on the wire: their sizes, their shapes between all kinds of sides, and what a parser makes of them."""

from __future__ import annotations

import random
import struct
from itertools import product
from typing import Any

import pytest
from redir_streams import conversation, read, types_of
from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir.messages import SHAPES, Sender, bulk_packet, forms, pack
from usbvfiod_usbredir.parser import Parser
from usbvfiod_usbredir.spec import ALL_CAPABILITIES, Capability, Type

from usbvfiod_core.remote import PeerError

NO_STREAMS = ALL_CAPABILITIES & ~Capability.BULK_STREAMS.mask
COMBINATIONS = [
    capabilities
    for capabilities in range(ALL_CAPABILITIES + 1)
    if not capabilities & Capability.BULK_STREAMS.mask or capabilities & Capability.EP_INFO_MAX_PACKET_SIZE.mask
]


@pytest.mark.parametrize(
    ("message", "without", "with_all"),
    [
        (m.DeviceConnect(2, 0, 0, 0, 1, 2, 3), 12 + 8, 16 + 10),
        (m.EndpointInfo(bytes(32), bytes(32), bytes(32)), 12 + 96, 16 + 288),
        (m.InterfaceInfo(0, *[bytes(32)] * 4), 12 + 132, 16 + 132),
        (bulk_packet(0x81, 5), 12 + 8, 16 + 10),
        (m.ControlPacket(0, 0, 0, 0, 0, 0, 0), 12 + 10, 16 + 10),
        (m.InterruptPacket(0x81, 0, 0), 12 + 4, 16 + 4),
        (m.BufferedBulkPacket(0, 0, 0x81, 0), 12 + 10, 16 + 10),
        (m.StartBulkReceiving(0, 512, 0x81, 4), 12 + 10, 16 + 10),
        (m.BulkStreamsStatus(6, 4, 0), 12 + 9, 16 + 9),
        (m.Reset(), 12, 16),
    ],
)
def test_sizes_on_the_wire(message: Any, without: int, with_all: int) -> None:
    assert len(pack(message)) == without
    assert len(pack(message, common=ALL_CAPABILITIES)) == with_all


def test_bytes_on_the_wire() -> None:
    hello = pack(m.Hello("me", 0x80))
    assert hello == struct.pack("<III64sI", 0, 68, 0, b"me", 0x80)
    assert pack(m.SetAltSetting(2, 1), id=7) == struct.pack("<IIIBB", 9, 2, 7, 2, 1)
    wide = pack(bulk_packet(0x02, 0x12345, 9), id=1 << 40, common=ALL_CAPABILITIES, data=0x12345)
    assert wide == struct.pack("<IIQBBHIH", 101, 10 + 0x12345, 1 << 40, 2, 0, 0x2345, 9, 1)


@pytest.mark.parametrize("sender", [Sender.HOST, Sender.GUEST])
def test_the_conversations_have_every_type(sender: Sender) -> None:
    stream, packets = conversation(sender=sender)
    messages = {message.__class__ for message, _ in packets}
    assert {number for number, shape in SHAPES.items() if shape.message in messages} == types_of(sender)
    assert len(stream) > 500


@pytest.mark.parametrize("sender", [Sender.HOST, Sender.GUEST])
def test_every_packet_between_every_two_sides(sender: Sender) -> None:
    for capabilities in COMBINATIONS:
        stream, packets = conversation(capabilities, sender, most=20 if capabilities != ALL_CAPABILITIES else 1 << 20)
        parser = Parser(ALL_CAPABILITIES, sender)
        hello, *found = read(parser, stream, [1 << 20])
        assert hello.message == m.Hello("a peer", capabilities)
        assert [packet.id for packet in found] == list(range(len(packets)))
        for packet, (message, data) in zip(found, packets, strict=True):
            count = forms(capabilities)[packet.type].sent
            assert packet.message[:count] == message[:count]
            assert bytes(packet.data) == data


@pytest.mark.parametrize("pieces", [[1], [7], [13, 1, 4096], [65536, 3]])
def test_it_does_not_matter_how_the_bytes_come(pieces: list[int]) -> None:
    stream, packets = conversation()
    found = read(Parser(ALL_CAPABILITIES), stream, pieces)
    assert [(packet.message, bytes(packet.data)) for packet in found[1:]] == packets


def test_data_goes_where_it_belongs() -> None:
    memory = bytearray(100_000)
    windows = [memoryview(memory)[10:20], memoryview(memory)[1000:99_000]]
    data = random.Random(1).randbytes(70_000)
    parser = Parser(ALL_CAPABILITIES, place=lambda message, id, length: windows)
    stream = pack(m.Hello("", ALL_CAPABILITIES))
    stream += pack(bulk_packet(0x81, len(data)), id=5, common=ALL_CAPABILITIES, data=data)
    stream += pack(m.DeviceDisconnect(), common=ALL_CAPABILITIES)
    found = read(parser, stream, [100, 3000])
    assert [(packet.type, packet.length, packet.data) for packet in found[1:]] == [
        (Type.BULK_PACKET, 70_000, b""),
        (Type.DEVICE_DISCONNECT, 0, b""),
    ]
    assert bytes(windows[0]) + bytes(windows[1][: 70_000 - 10]) == data
    assert not any([*memory[:10], *memory[20:1000], *memory[1000 + 70_000 - 10 :]])


def test_data_can_be_diverted_while_it_comes() -> None:
    memory, other = bytearray(70_000), bytearray(70_000)
    parser = Parser(ALL_CAPABILITIES, place=lambda message, id, length: [memoryview(memory)])
    stream = pack(m.Hello("", ALL_CAPABILITIES))
    stream += pack(bulk_packet(0x81, 70_000), id=5, common=ALL_CAPABILITIES, data=b"x" * 70_000)
    read(parser, stream[:40_000], [40_000])
    assert parser.receiving == 5
    assert parser.divert([memoryview(other)])
    there = memory.count(b"x")
    assert [packet.id for packet in read(parser, stream[40_000:], [9000])] == [5]
    assert memory.count(b"x") == there
    assert there + other.count(b"x") == 70_000
    assert parser.receiving is None
    assert not parser.divert([])


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (struct.pack("<III", 99, 0, 0), "type 99"),
        (struct.pack("<III", Type.RESET, 0, 0), "not for it to send"),
        (struct.pack("<III", Type.DEVICE_DISCONNECT, 0, 0), "before hello"),
        (struct.pack("<III", Type.HELLO, 0xFFFFFFFF, 0), "4294967295 bytes"),
        (struct.pack("<III", Type.HELLO, 63, 0), "63 bytes"),
        (struct.pack("<III66s", Type.HELLO, 66, 0, b""), "66 bytes"),
        (pack(m.Hello("", 1)), "bulk streams"),
        (2 * pack(m.Hello("", 0)), "hello twice"),
        (pack(m.Hello("", 0)) + struct.pack("<III", Type.BULK_PACKET, 0xFFFFFFFF, 0), "4294967295 bytes"),
        (pack(m.Hello("", 0)) + struct.pack("<III", Type.EP_INFO, 288, 0), "288 bytes"),
        (pack(m.Hello("", 0)) + pack(m.InterruptPacket(0x81, 0, 9), data=8), "8 bytes that says 9"),
        (pack(m.Hello("", 0)) + pack(m.InterruptPacket(0x01, 0, 9), data=9), "9 bytes that says 0"),
    ],
)
def test_what_is_not_the_protocol_is_refused(stream: bytes, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        read(Parser(ALL_CAPABILITIES), stream, [1 << 20])


def test_data_without_room_is_refused() -> None:
    parser = Parser(0, place=lambda message, id, length: [memoryview(bytearray(8))])
    with pytest.raises(PeerError, match="1 bytes more than were asked for"):
        read(parser, pack(m.Hello("", 0)) + pack(bulk_packet(0x81, 9), data=9), [1 << 20])


# -- what nobody would send ------------------------------------------------------------------------------------------


def mutated(stream: bytes, random: random.Random) -> bytes:
    """A stream with a few bytes changed, a piece left out, doubled or cut off."""
    data = bytearray(stream)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) or 1)
        match random.randrange(6):
            case 0 | 1 if data:
                data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 2:
                data[at : at + 4] = random.choice((0, 1, 100, 0xFFFF, 0x10000, 1 << 24, 0xFFFFFFFF)).to_bytes(
                    4, "little"
                )
            case 3:
                del data[at : at + random.choice((1, 4, 12, 100))]
            case 4:
                data[at:at] = data[at : at + random.choice((1, 12, 28, 300))]
            case _:
                del data[random.randrange(len(data) or 1) :]
    return bytes(data)


def play_mutated_streams(count: int, seed: int) -> None:
    """No stream raises anything but PeerError, or is given more room than one packet may have."""
    room = memoryview(bytearray(1 << 20))
    streams = [
        conversation(capabilities, sender, most=256)[0]
        for capabilities, sender in product((ALL_CAPABILITIES, NO_STREAMS, 0), (Sender.HOST, Sender.GUEST))
    ]
    refused = 0
    for number in range(seed, seed + count):
        chance = random.Random(number)
        which = number % len(streams)
        kept: list[int] = []

        def place(message: Any, id: int, length: int, kept: list[int] = kept) -> list[memoryview] | None:
            kept.append(length)
            assert length <= m.MOST_BULK
            return [room] if length > 4096 else None

        parser = Parser(ALL_CAPABILITIES, (Sender.HOST, Sender.GUEST)[which % 2], place)
        try:
            read(parser, mutated(streams[which], chance), [chance.choice((1 << 20, 100, 17))])
        except PeerError:
            refused += 1
        assert parser.unfinished <= m.MOST_BULK
        assert sum(map(len, parser.buffers())) > 0
    assert refused > count // 4


def test_mutated_streams() -> None:
    play_mutated_streams(1500, 0)


@pytest.mark.long
def test_many_mutated_streams() -> None:
    play_mutated_streams(100_000, 1 << 20)
