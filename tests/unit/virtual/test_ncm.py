"""NCM Transfer Blocks: as the specification draws them, back and forth, and whatever a guest may send."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.virtual.ncm import FORMATS, NTB16, NTB32, BlockError, BlockFormat, BlockReader, BlockWriter

ONE, TWO = bytes(range(14)), bytes(range(100, 121))
LIMITS = {"max_frame": 1518, "max_frames": 64}


def block16(frames: list[tuple[int, int]], size: int = 400, table: int = 300, **changes: int | bytes) -> memoryview:
    """A block of `size` bytes with one table, some of it changed."""
    head: dict[str, int | bytes] = {"signature": b"NCMH", "header": 12, "length": size, "table": table}
    entries = b"".join(struct.pack("<HH", *frame) for frame in frames) + bytes(4)
    ndp: dict[str, int | bytes] = {"mark": b"NCM0", "extent": 8 + len(entries), "following": 0}
    for name, value in changes.items():
        (head if name in head else ndp)[name] = value
    block = bytearray(size)
    struct.pack_into("<4sHHHH", block, 0, head["signature"], head["header"], 0, head["length"], head["table"])
    struct.pack_into("<4sHH", block, table, ndp["mark"], ndp["extent"], ndp["following"])
    block[table + 8 : table + 8 + len(entries)] = entries
    return memoryview(bytes(block[:size]))


def unpack(block: bytes | memoryview, format: BlockFormat = NTB16) -> list[bytes]:
    return [bytes(frame) for frame in format.unpack(memoryview(block), **LIMITS)]


def test_a_block_as_in_the_specification() -> None:
    entries = struct.pack("<HHHHHH", 12, 14, 28, 21, 0, 0)
    expected = b"NCMH" + struct.pack("<HHHH", 12, 7, 72, 52) + ONE + bytes(2) + TWO + bytes(3)
    expected += b"NCM0" + struct.pack("<HH", 20, 0) + entries
    assert len(expected) == 72
    assert NTB16.pack([ONE, TWO], 7) == expected
    assert unpack(expected) == [ONE, TWO]


def test_a_block_of_32_bits() -> None:
    expected = b"ncmh" + struct.pack("<HHII", 16, 0x1234, 16 + 16 + 16 + 16, 32) + ONE + bytes(2)
    expected += b"ncm0" + struct.pack("<HHIIIIII", 32, 0, 0, 0, 16, 14, 0, 0)
    assert NTB32.pack([ONE], 0x5_1234) == expected
    assert unpack(expected, NTB32) == [ONE]


def test_tables_in_a_chain_and_frames_in_any_order() -> None:
    block = bytearray(block16([(100, 14)], following=200))
    struct.pack_into("<4sHHHHHHHH", block, 200, b"NCM0", 20, 0, 40, 20, 12, 15, 0, 0)
    block[100:114], block[40:60], block[12:27] = b"a" * 14, b"b" * 20, b"c" * 15
    assert unpack(bytes(block)) == [b"a" * 14, b"b" * 20, b"c" * 15]


def test_a_block_that_does_not_say_how_long_it_is() -> None:
    assert unpack(block16([(12, 14)], length=0)) == [bytes(14)]


def test_what_is_behind_a_block_is_not_looked_at() -> None:
    assert unpack(bytes(block16([(12, 14)])) + b"padding") == [bytes(14)]


def test_entries_end_with_zeros() -> None:
    assert unpack(block16([(12, 14), (0, 0), (9999, 9999)])) == [bytes(14)]
    assert unpack(block16([(0, 0)])) == []


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"NCMH\x0c\x00", "a block of 6 bytes has no header"),
        (block16([(12, 14)], signature=b"ncmh"), r"begins with b'ncmh'"),
        (block16([(12, 14)], header=16), "a header of 16 bytes"),
        (block16([(12, 14)], length=401), "says that it has 401 bytes, and has 400"),
        (block16([(12, 14)], length=308), "has a table of 16 bytes at 300"),
        (block16([(12, 14)], length=304), "has a table at 300"),
        (block16([(12, 14)], mark=b"NCM1"), r"a table begins with b'NCM1'"),
        (block16([(12, 14)], extent=12), "has a table of 12 bytes"),
        (block16([(12, 14)], extent=17), "has a table of 17 bytes"),
        (block16([(12, 14)], extent=4000), "has a table of 4000 bytes"),
        (block16([(12, 13)]), "has a frame of 13 bytes"),
        (block16([(12, 1519)]), "has a frame of 1519 bytes"),
        (block16([(8, 14)]), "has a frame of 14 bytes at 8"),
        (block16([(387, 14)]), "has a frame of 14 bytes at 387"),
        (block16([(12, 14)], following=300), "has more than 64 tables|frames over frames"),
        (block16([(12, 14)], following=302), "has a table at 302"),
        (block16([(12, 14)], following=4), "has a table at 4"),
        (block16([(12, 200)] * 3), "frames over frames"),
    ],
)
def test_what_is_no_block(block: bytes | memoryview, message: str) -> None:
    with pytest.raises(BlockError, match=message):
        unpack(block)


def test_tables_that_point_to_each_other_end() -> None:
    with pytest.raises(BlockError, match="more than 64 tables"):
        unpack(block16([(0, 0)], following=300))


def test_more_frames_than_allowed() -> None:
    with pytest.raises(BlockError, match="frames over frames"):
        NTB16.unpack(memoryview(NTB16.pack([ONE] * 9)), max_frame=1518, max_frames=8)


frames = st.lists(st.binary(min_size=14, max_size=1518), min_size=1, max_size=30)


@given(frames=frames, format=st.sampled_from(list(FORMATS.values())), sequence=st.integers(0, 1 << 20))
def test_back_and_forth(frames: list[bytes], format: BlockFormat, sequence: int) -> None:
    block = format.pack(frames, sequence)
    assert unpack(block, format) == frames
    assert format.ends_at(block) == len(block)


def check_bounded(block: bytes, format: BlockFormat) -> None:
    """Frames that are in it, together no longer than it, or a BlockError."""
    try:
        found = format.unpack(memoryview(block), **LIMITS)
    except BlockError:
        return
    assert sum(map(len, found)) <= len(block)
    assert all(14 <= len(frame) <= 1518 for frame in found)
    assert len(found) <= 64


@given(block=st.binary(max_size=200), format=st.sampled_from(list(FORMATS.values())))
def test_any_bytes(block: bytes, format: BlockFormat) -> None:
    check_bounded(block, format)
    check_bounded(format.header_signature + block, format)


@given(
    frames=frames,
    format=st.sampled_from(list(FORMATS.values())),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 40),
)
def test_a_block_with_wrong_bytes(
    frames: list[bytes], format: BlockFormat, changes: list[tuple[int, int]], cut: int
) -> None:
    """Near the ends, where header and table are."""
    block = bytearray(format.pack(frames))
    for place, value in changes:
        block[(place % 64 - 32) % len(block) if place & 64 else place % len(block)] = value
    check_bounded(bytes(block[: len(block) - cut]), format)


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS.values())
@pytest.mark.parametrize("packet", [64, 512, 1024])
def test_a_block_fills_its_buffer_and_never_a_last_packet(format: BlockFormat, packet: int) -> None:
    for size in range(2048, 2048 + 2 * packet, 4):
        buffer = memoryview(bytearray(b"\xee" * size))
        writer = BlockWriter(buffer, format, 1000)
        written: list[bytes] = []
        while len(room := writer.room()) >= 60:
            frame = bytes([len(written)]) * 60
            room[:60] = frame
            writer.add(60)
            written.append(frame)
        total = writer.finish(0, packet)
        assert total <= size
        assert total % packet
        assert unpack(buffer[:total], format) == written


def test_no_more_frames_than_the_driver_wants() -> None:
    writer = BlockWriter(memoryview(bytearray(4096)), NTB16, 1)
    writer.add(60)
    assert not len(writer.room())


# -- blocks and transfers ----------------------------------------------------------------------------------------------


def take(reader: BlockReader, *transfers: bytes) -> list[bytes | None]:
    found = []
    for data in transfers:
        block = reader.take([memoryview(data)] if data else [], len(data), NTB16)
        found.append(None if block is None else bytes(block))
    return found


@pytest.mark.parametrize("size", [1000, 1024, 1500, 2048])
def test_a_block_in_transfers_of_any_size(size: int) -> None:
    block = bytes(block16([(12, 14)], size=size))
    for piece in (512, 1024, 1536, 2048, 4096):
        pieces = [block[start : start + piece] for start in range(0, size, piece)]
        reader = BlockReader(512, 4096)
        for _ in range(2):
            assert take(reader, *pieces) == [None] * (len(pieces) - 1) + [block]
        assert take(reader, b"", *pieces)[-1] == block  # a packet without data that was not needed


def test_a_block_in_place_is_not_copied() -> None:
    window = memoryview(bytearray(NTB16.pack([ONE])))
    block = BlockReader(512, 4096).take([window], len(window), NTB16)
    assert block is not None
    window[12] = 99
    assert block[12] == 99


def test_a_block_that_does_not_say_ends_with_a_short_packet() -> None:
    block = bytes(block16([(12, 14)], size=1024, length=0))
    assert take(BlockReader(512, 4096), block, b"") == [None, block]


def test_a_block_may_be_scattered() -> None:
    block = NTB16.pack([ONE, TWO])
    windows = [memoryview(block[:5]), memoryview(block[5:40]), memoryview(block[40:])]
    found = BlockReader(512, 4096).take(windows, len(block), NTB16)
    assert found is not None
    assert unpack(found) == [ONE, TWO]


def test_too_much_is_left_out_up_to_its_end() -> None:
    reader, block = BlockReader(512, 2048), NTB16.pack([ONE])
    assert take(reader, bytes(1024), bytes(512)) == [None, None]
    with pytest.raises(BlockError, match="more than 2048 bytes"):
        take(reader, bytes(1024))
    assert take(reader, bytes(1024), bytes(100), block) == [None, None, block]
    with pytest.raises(BlockError, match="more than 2048 bytes"):
        take(reader, bytes(2049))
    assert take(reader, block) == [block]
