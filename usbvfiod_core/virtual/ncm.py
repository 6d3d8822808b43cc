"""NCM Transfer Blocks: Ethernet frames as they are packed for a network adapter's bulk endpoints (CDC NCM 1.0 3).

A block (NTB) has a header (NTH), datagrams, and tables that point to these (NDP). Both work in place: `unpack` gives
views of the frames in the guest's memory, and `BlockWriter` has frames put where the guest reads them.

The guest may change a block while it is read. So each number is read once, and it is that number which is checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

MIN_FRAME = 14
"""Bytes of an Ethernet frame without payload: two addresses and a type."""
MIN_BLOCK = 2048
"""The least dwNtbInMaxSize that a driver may set (6.2.7)."""
ALIGNMENT = 4
"""Of datagrams and tables, in both directions: wNdpInAlignment and wNdpInDivisor, and those of OUT (table 6-3)."""
_TABLES_MAX = 64
"""NDPs of one block that are read; drivers use one."""


class BlockError(ValueError):
    """What the driver has sent is no NTB; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """NTB16 or NTB32: how wide the fields are."""

    number: int
    """In SET_NTB_FORMAT (6.2.5); `1 << number` is its bit in bmNtbFormatsSupported."""
    max_size: int
    """Bytes of the largest block whose length there is a number for."""
    header: Struct
    """dwSignature, wHeaderLength, wSequence, block length, index of the first NDP (tables 3-1, 3-2)."""
    header_signature: bytes
    table: Struct
    """dwSignature, wLength, index of the next NDP (tables 3-3, 3-4)."""
    table_signature: bytes
    entry: Struct
    """Index and length of a datagram; zeros end the table."""

    def ends_at(self, data: bytes | bytearray | memoryview) -> int:
        """The length of the block that begins with `data`; 0 if it does not say or if this is no block. A block that
        does not say ends with a short packet."""
        if len(data) < self.header.size:
            return 0
        signature, _, _, size, _ = self.header.unpack_from(data)
        return int(size) if signature == self.header_signature else 0

    def unpack(self, block: memoryview, *, max_frame: int, max_frames: int) -> list[memoryview]:
        """The frames in a block, in order, as views of it. Raises BlockError; then nothing of the block is good.

        The frames together are never longer than the block, so that a short one cannot ask for much work.
        """
        if len(block) < self.header.size:
            raise BlockError(f"a block of {len(block)} bytes has no header")
        signature, header_length, _, size, table = self.header.unpack_from(block)
        if signature != self.header_signature or header_length != self.header.size:
            raise BlockError(f"a block begins with {bytes(signature)!r} and a header of {header_length} bytes")
        if size > len(block):
            raise BlockError(f"a block says that it has {size} bytes, and has {len(block)}")
        if size:
            block = block[:size]
        frames: list[memoryview] = []
        left = len(block)
        for _ in range(_TABLES_MAX):
            entries, table = self._read_table(block, table)
            for index, length in self.entry.iter_unpack(entries):
                if not index or not length:
                    break
                if not MIN_FRAME <= length <= max_frame:
                    raise BlockError(f"a block has a frame of {length} bytes")
                if index < self.header.size or index + length > len(block):
                    raise BlockError(f"a block of {len(block)} bytes has a frame of {length} bytes at {index}")
                left -= length
                if left < 0 or len(frames) == max_frames:
                    raise BlockError(f"a block of {len(block)} bytes has frames over frames")
                frames.append(block[index : index + length])
            if not table:
                return frames
        raise BlockError(f"a block has more than {_TABLES_MAX} tables")

    def _read_table(self, block: memoryview, index: int) -> tuple[bytes, int]:
        """A copy of the entries of the NDP at `index`, and where the next one is."""
        head = self.table.size
        if index % ALIGNMENT or index < self.header.size or index + head > len(block):
            raise BlockError(f"a block of {len(block)} bytes has a table at {index}")
        signature, length, following = self.table.unpack_from(block, index)
        if signature != self.table_signature:
            raise BlockError(f"a table begins with {bytes(signature)!r}")
        size = length - head
        if size < 2 * self.entry.size or size % self.entry.size or index + length > len(block):
            raise BlockError(f"a block of {len(block)} bytes has a table of {length} bytes at {index}")
        return bytes(block[index + head : index + length]), following

    def pack(self, frames: Iterable[bytes], sequence: int = 0) -> bytes:
        """A block of these frames, one at least, as large as they need: for tests and programs, by copies."""
        listed = list(frames)
        padded = sum(len(frame) + -len(frame) % ALIGNMENT for frame in listed)
        size = self.header.size + padded + self.table.size + (len(listed) + 1) * self.entry.size + 2 * ALIGNMENT
        buffer = bytearray(size)
        with memoryview(buffer) as view:
            writer = BlockWriter(view, self, len(listed))
            for frame in listed:
                writer.room()[: len(frame)] = frame
                writer.add(len(frame))
            used = writer.finish(sequence)
        return bytes(buffer[:used])


NTB16 = BlockFormat(0, 0xFFFF, Struct("<4sHHHH"), b"NCMH", Struct("<4sHH"), b"NCM0", Struct("<HH"))
NTB32 = BlockFormat(1, 0xFFFF_FFFF, Struct("<4sHHII"), b"ncmh", Struct("<4sH2xI4x"), b"ncm0", Struct("<II"))
FORMATS = {each.number: each for each in (NTB16, NTB32)}


class BlockWriter:
    """A block in the making: `room` is where the next frame goes, `add` keeps it, `finish` writes what is around."""

    def __init__(self, buffer: memoryview, format: BlockFormat, max_frames: int) -> None:
        """`buffer` is where the block goes, no longer than the driver's limit; `max_frames` is at least 1."""
        self._buffer = buffer[: format.max_size]
        self._format = format
        self._max_frames = max_frames
        self._place = format.header.size
        self.entries: list[tuple[int, int]] = []
        """Index and length of the frames so far."""

    def room(self) -> memoryview:
        """All that there is for one more frame and its entry; empty if there is nothing left."""
        if len(self.entries) >= self._max_frames:
            return self._buffer[:0]
        # With what aligns the table, and what makes the last packet short.
        behind = self._format.table.size + (len(self.entries) + 2) * self._format.entry.size + 2 * ALIGNMENT
        return self._buffer[self._place : max(self._place, len(self._buffer) - behind)]

    def add(self, length: int) -> None:
        """The frame in the first `length` bytes of `room` is one of the block's."""
        self.entries.append((self._place, length))
        self._place += length + -length % ALIGNMENT

    def finish(self, sequence: int, packet_size: int = 1 << 16) -> int:
        """Write table and header; the bytes of the whole block. `sequence` counts blocks (wSequence). The last of its
        packets of `packet_size` bytes is a short one, so that none without data has to follow."""
        format, place = self._format, self._place
        pack_entry, step = format.entry.pack_into, format.entry.size
        length = format.table.size + (len(self.entries) + 1) * step
        format.table.pack_into(self._buffer, place, format.table_signature, length, 0)
        entry = place + format.table.size
        for index, size in self.entries:
            pack_entry(self._buffer, entry, index, size)
            entry += step
        pack_entry(self._buffer, entry, 0, 0)
        total = place + length
        if not total % packet_size:
            self._buffer[total : total + ALIGNMENT] = bytes(ALIGNMENT)
            total += ALIGNMENT
        header = (format.header_signature, format.header.size, sequence & 0xFFFF, total, place)
        format.header.pack_into(self._buffer, 0, *header)
        return total


class BlockReader:
    """Finds blocks in what a driver sends: usually one transfer is one block, but nothing says so."""

    def __init__(self, packet_size: int, max_size: int) -> None:
        """`packet_size` is wMaxPacketSize; a driver sends at most `max_size` bytes in a block (dwNtbOutMaxSize)."""
        self._packet_size = packet_size
        self._max_size = max_size
        self._begun = bytearray()
        self._skipping = False

    @property
    def begun(self) -> bytes | None:
        """What has come of a block that is not whole; None while the rest of one that is too long is left out."""
        return None if self._skipping else bytes(self._begun)

    def go_on(self, begun: bytes | None) -> None:
        """Go on where another reader was."""
        self._begun[:] = begun or b""
        self._skipping = begun is None

    def clear(self) -> None:
        """Forget what has begun."""
        self._begun.clear()
        self._skipping = False

    def take(self, windows: list[memoryview], length: int, format: BlockFormat) -> memoryview | None:
        """A transfer of `length` bytes has come: the block that it ends, in place if it is all of it; or None.

        Raises BlockError for more than a block may have; then what belongs to it is left out.
        """
        is_end = bool(length % self._packet_size) or not length
        if self._skipping:
            self._skipping = not is_end
            return None
        if not self._begun:
            if not length:
                return None  # the end of a block that was complete without it
            whole = windows[0] if len(windows) == 1 else memoryview(b"".join(windows))
            if length <= self._max_size and (is_end or length == self._max_size or format.ends_at(whole) == length):
                return whole
        if len(self._begun) + length > self._max_size:
            self.clear()
            self._skipping = not is_end
            raise BlockError(f"a block has more than {self._max_size} bytes")
        for window in windows:
            self._begun += window
        size = len(self._begun)
        if not (is_end or size == self._max_size or format.ends_at(self._begun) == size):
            return None
        whole = memoryview(bytes(self._begun))
        self._begun.clear()
        return whole
