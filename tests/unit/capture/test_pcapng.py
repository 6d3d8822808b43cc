"""Files of packets: the blocks that are written, and what is read of those and of anybody's."""

from __future__ import annotations

import io
import tracemalloc
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usbvfiod_core.capture.pcapng import MAX_BLOCK, Buffer, Packet, Reader, Writer, option, text_option
from usbvfiod_core.errors import CaptureError

TIME = 1_700_000_000_123_456_789


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block as the specification has it."""
    body += bytes(-len(body) % 4)
    return pack(f"{order}II", kind, len(body) + 12) + body + pack(f"{order}I", len(body) + 12)


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def packet_body(data: bytes, units: int, order: str = "<", interface: int = 0, options: bytes = b"") -> bytes:
    head = pack(f"{order}IIIII", interface, units >> 32, units & 0xFFFFFFFF, len(data), len(data))
    return head + data + bytes(-len(data) % 4) + options


def packets(raw: bytes) -> list[Packet]:
    return list(Reader(io.BytesIO(raw)))


def file_of(*datas: bytes) -> bytes:
    """A file of ours."""
    writer, out = Writer(), list[Buffer]()
    out += [
        writer.section("usbvfiod"),
        writer.interface(220, snap_length=256, name="keyboard", description="port 1", speed=12_000_000),
    ]
    for data in datas:
        writer.packet(out, 0, TIME, (data,), len(data), len(data))
    return b"".join(out)


def test_the_blocks_are_the_specification_s() -> None:
    writer, out = Writer(), list[Buffer]()
    assert writer.section("usbvfiod") == block(
        0x0A0D0D0A, pack("<IHHqHH8sI", 0x1A2B3C4D, 1, 0, -1, 4, 8, b"usbvfiod", 0)
    )
    assert writer.interface(220, snap_length=256, name="k", speed=480_000_000) == block(
        1, pack("<HHIHH4sHHQHH4sI", 220, 0, 256, 2, 1, b"k", 8, 8, 480_000_000, 9, 1, b"\x09", 0)
    )
    size = writer.packet(out, 0, TIME, (b"ab", b"cde"), 5, 9, dropped=3, comment="stream 1")
    written = b"".join(out)
    options = pack("<HH8sHHQI", 1, 8, b"stream 1", 4, 8, 3, 0)
    assert written == block(6, pack("<IIIII8s", 0, TIME >> 32, TIME & 0xFFFFFFFF, 5, 9, b"abcde") + options)
    assert size == len(written)
    times = pack("<II", TIME >> 32, TIME & 0xFFFFFFFF)
    assert writer.statistics(0, TIME, start=1, received=7, dropped=2) == block(
        5, pack("<I8sHHIIHH8sHHQHHQI", 0, times, 2, 8, 0, 1, 3, 8, times, 4, 8, 7, 5, 8, 2, 0)
    )


def test_payload_is_not_copied() -> None:
    payload, out = memoryview(bytearray(1000)), list[Buffer]()
    Writer().packet(out, 0, TIME, (b"header", payload), 1006, 1006)
    assert out[2] is payload


def test_what_is_written_is_read_again() -> None:
    writer, out = Writer(), list[Buffer]()
    out.append(file_of(b"one"))
    writer.packet(out, 0, TIME + 1, (b"tw", b"o"), 3, 512, dropped=4, comment="stream 2")
    out.append(writer.statistics(0, TIME, start=0, received=2, dropped=4))
    reader = Reader(io.BytesIO(b"".join(out)))
    first, second = reader
    assert (first.data, first.time, first.length, first.dropped, first.order) == (b"one", TIME, 3, 0, "<")
    assert (second.data, second.time, second.length, second.dropped) == (b"two", TIME + 1, 512, 4)
    assert second.comment == "stream 2"
    interface = first.interface
    assert (interface.link_type, interface.snap_length, interface.name) == (220, 256, "keyboard")
    assert (interface.description, interface.received, interface.dropped) == ("port 1", 2, 4)
    assert interface.speed == 12_000_000
    assert (reader.application, reader.cut) == ("usbvfiod", "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "units", "nanoseconds"),
    [
        (None, 1_000_001, 1_000_001_000),
        (9, 5, 5),
        (3, 5, 5_000_000),
        (0x80 | 1, 3, 1_500_000_000),
        (0, 2, 2_000_000_000),
    ],
)
def test_byte_orders_and_units_of_time(order: str, resolution: int | None, units: int, nanoseconds: int) -> None:
    options = b"" if resolution is None else pack(f"{order}HH4s", 9, 1, bytes([resolution]))
    raw = section(order) + block(1, pack(f"{order}HHI", 220, 0, 0) + options, order)
    raw += block(6, packet_body(b"abc", units, order), order)
    (packet,) = packets(raw)
    assert (packet.data, packet.time, packet.order) == (b"abc", nanoseconds, order)


def test_sections_have_interfaces_of_their_own() -> None:
    one = section() + block(1, pack("<HHI", 220, 0, 0)) + block(6, packet_body(b"a", 1))
    two = section(">") + block(1, pack(">HHI", 189, 0, 0), ">") + block(6, packet_body(b"b", 1, ">"), ">")
    first, second = packets(one + two)
    assert (first.interface.link_type, second.interface.link_type) == (220, 189)


def test_a_time_offset_is_added() -> None:
    raw = section() + block(1, pack("<HHIHHq", 220, 0, 0, 14, 8, 10)) + block(6, packet_body(b"", 1))
    assert packets(raw)[0].time == 10_000_001_000


def test_other_blocks_are_left_out_and_counted() -> None:
    reader = Reader(io.BytesIO(file_of(b"a") + block(0x0BAD, b"whatever") + block(10, b"")))
    assert [packet.data for packet in reader] == [b"a"]
    assert reader.skipped == 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "nanoseconds"), [(0xA1B2C3D4, 1_000_005_000), (0xA1B23C4D, 1_000_000_005)])
def test_the_older_format(order: str, magic: int, nanoseconds: int) -> None:
    raw = pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 64, 189) + pack(f"{order}IIII3s", 1, 5, 3, 9, b"abc")
    (packet,) = packets(raw)
    assert (packet.data, packet.length, packet.time, packet.order) == (b"abc", 9, nanoseconds, order)
    assert (packet.interface.link_type, packet.interface.snap_length) == (189, 64)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the file is empty"),
        (b"ab", "a file of 2 bytes"),
        (b"#!/bin/sh", "neither a pcapng nor a pcap file"),
        (pack("<I", 0xA1B2C3D4), "ends inside its header, after 4 bytes"),
        (pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 0, 189, 0, 0, MAX_BLOCK + 1, 0), "a packet of 67108865 bytes"),
        (pack("<III", 0x0A0D0D0A, 28, 7), "a section without a byte order at byte 0"),
        (section() + pack("<II", 6, 13), "a block of 13 bytes at byte 28"),
        (section() + pack("<II", 6, 8), "a block of 8 bytes"),
        (section() + pack("<II", 6, 0xFFFFFFFC), "a block of 4294967292 bytes"),
        (section() + pack("<III", 6, 12, 16), "the block at byte 28 has two lengths"),
        (section() + block(6, packet_body(b"", 1)), "the block at byte 28 is too short"),
        (section() + block(1, b""), "too short"),
        (file_of() + block(6, pack("<IIIII", 0, 0, 0, 99, 99)), "too short"),
        (file_of() + block(6, packet_body(b"", 1, options=pack("<HHI", 4, 4, 1))), "too short"),
        (file_of() + block(5, pack("<III", 9, 0, 0)), "too short"),
    ],
)
def test_what_is_no_file_of_packets(raw: bytes, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        packets(raw)


def test_a_file_that_is_cut_gives_what_is_whole() -> None:
    whole = file_of(b"first", b"second")
    start = len(file_of(b"first"))
    for size in range(start, len(whole)):
        reader = Reader(io.BytesIO(whole[:size]))
        assert [packet.data for packet in reader] == [b"first"]
        assert bool(reader.cut) == (size > start), size
        assert str(start) in reader.cut or size == start


def test_a_long_block_that_is_not_there_takes_no_memory() -> None:
    raw = section() + pack("<II", 6, MAX_BLOCK)
    tracemalloc.start()
    try:
        assert packets(raw) == []
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_texts_are_cut_to_what_an_option_holds() -> None:
    assert len(text_option(1, "a" * 100_000)) == 4 + 0xFFFF + 1
    assert option(1, b"ab") == b"\x01\x00\x02\x00ab\0\0"


OURS = file_of(b"first", b"second") + Writer().statistics(0, TIME, start=0, received=1, dropped=0)


@given(st.lists(st.tuples(st.integers(0, len(OURS) - 1), st.integers(0, 255)), max_size=6), st.binary(max_size=40))
@example([(4, 0)], b"")
def test_any_bytes_are_a_file_or_refused(changes: list[tuple[int, int]], more: bytes) -> None:
    raw = bytearray(OURS)
    for place, value in changes:
        raw[place] = value
    try:
        assert sum(len(packet.data) for packet in packets(bytes(raw) + more)) <= len(raw) + len(more)
    except CaptureError:
        pass
