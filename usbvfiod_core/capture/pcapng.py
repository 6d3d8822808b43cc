"""Files of packets: pcapng (draft-ietf-opsawg-pcapng) written and read, the older pcap read.

`Writer` makes the blocks of one section, little-endian, in nanoseconds. `Reader` takes both byte orders and any
resolution of time, and takes no more memory than the file has bytes for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError
from typing import BinaryIO, Final, Literal, NamedTuple

from ..errors import CaptureError

Buffer = bytes | bytearray | memoryview
Order = Literal["<", ">"]

SECTION_HEADER: Final = 0x0A0D0D0A
INTERFACE_DESCRIPTION: Final = 1
INTERFACE_STATISTICS: Final = 5
ENHANCED_PACKET: Final = 6
BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D

# Options.
END_OF_OPTIONS: Final = 0
COMMENT: Final = 1
SHB_HARDWARE, SHB_OS, SHB_USERAPPL = 2, 3, 4
IF_NAME, IF_DESCRIPTION, IF_SPEED, IF_TSRESOL, IF_TSOFFSET = 2, 3, 8, 9, 14
EPB_FLAGS, EPB_DROPCOUNT = 2, 4
ISB_STARTTIME, ISB_ENDTIME, ISB_IFRECV, ISB_IFDROP = 2, 3, 4, 5

MAX_BLOCK: Final = 64 << 20
"""Bytes of a block that is read; a transfer of Linux has at most 16 MiB."""
PIECE: Final = 1 << 20
"""Bytes that are read at once, so that a block is only as large as the file."""
MAX_INTERFACES: Final = 65536
_LAST_TIME: Final = (1 << 64) - 1
NANOSECONDS: Final = 9
"""if_tsresol: a power of ten."""

_LENGTH = Struct("<I")
_SECTION = Struct("<IIIHHq")
_INTERFACE = Struct("<IIHHI")
_PACKET = Struct("<IIIIIII")
_STATISTICS = Struct("<IIIII")
_OPTION = Struct("<HH")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
#             magic major minor zone accuracy snap length link type
_PCAP = {"<": Struct("<IHHiIII"), ">": Struct(">IHHiIII")}
_PCAP_PACKET = {"<": Struct("<IIII"), ">": Struct(">IIII")}
_PCAP_MAGIC = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
"""And the nanoseconds that the smaller unit of time has."""


def text_option(code: int, text: str) -> bytes:
    """An option with a text, padded; cut where it would be longer than an option may be."""
    return option(code, text.encode(errors="replace")[:0xFFFF])


def option(code: int, value: bytes) -> bytes:
    """An option, padded."""
    return _OPTION.pack(code, len(value)) + value + _PADDING[len(value) & 3]


_END = option(END_OF_OPTIONS, b"")


class Writer:
    """The blocks of a file with one section. It writes nothing itself: whoever calls it writes what it returns, in
    order. An interface's number is that of the calls of `interface` before it."""

    def section(self, application: str, *, hardware: str = "", system: str = "") -> bytes:
        """The Section Header Block, which opens the file."""
        told = ((SHB_HARDWARE, hardware), (SHB_OS, system), (SHB_USERAPPL, application))
        options = b"".join(text_option(code, text) for code, text in told if text) + _END
        length = _SECTION.size + len(options) + 4
        return _SECTION.pack(SECTION_HEADER, length, BYTE_ORDER_MAGIC, 1, 0, -1) + options + _LENGTH.pack(length)

    def interface(
        self, link_type: int, *, snap_length: int = 0, name: str = "", description: str = "", speed: int = 0
    ) -> bytes:
        """An Interface Description Block; a snap length of 0 is none, a `speed` (bits a second) of 0 unknown."""
        told = ((IF_NAME, name), (IF_DESCRIPTION, description))
        options = b"".join(text_option(code, text) for code, text in told if text)
        options += option(IF_SPEED, speed.to_bytes(8, "little")) if speed else b""
        options += option(IF_TSRESOL, bytes([NANOSECONDS])) + _END
        length = _INTERFACE.size + len(options) + 4
        head = _INTERFACE.pack(INTERFACE_DESCRIPTION, length, link_type, 0, snap_length)
        return head + options + _LENGTH.pack(length)

    def packet(
        self,
        out: list[Buffer],
        interface: int,
        time: int,
        pieces: Sequence[Buffer],
        captured: int,
        length: int,
        *,
        dropped: int = 0,
        comment: str = "",
    ) -> int:
        """Append an Enhanced Packet Block to `out`: what surrounds the packet, and the buffers in `pieces` themselves,
        which together have `captured` bytes of the `length` that it had. Returns the size of the block.

        `time` in nanoseconds since 1970. `dropped` packets are missing in front of it.
        """
        options = b""
        if comment:
            options += text_option(COMMENT, comment)
        if dropped:
            options += option(EPB_DROPCOUNT, dropped.to_bytes(8, "little"))
        if options:
            options += _END
        padding = _PADDING[captured & 3]
        size = _PACKET.size + captured + len(padding) + len(options) + 4
        high, low = time >> 32, time & 0xFFFFFFFF
        out.append(_PACKET.pack(ENHANCED_PACKET, size, interface, high, low, captured, length))
        out += pieces
        out.append(padding + options + _LENGTH.pack(size))
        return size

    def statistics(self, interface: int, time: int, *, start: int, received: int, dropped: int) -> bytes:
        """An Interface Statistics Block: packets since `start` (both times in nanoseconds since 1970)."""
        options = b"".join(
            (
                option(ISB_STARTTIME, _LENGTH.pack(start >> 32) + _LENGTH.pack(start & 0xFFFFFFFF)),
                option(ISB_ENDTIME, _LENGTH.pack(time >> 32) + _LENGTH.pack(time & 0xFFFFFFFF)),
                option(ISB_IFRECV, received.to_bytes(8, "little")),
                option(ISB_IFDROP, dropped.to_bytes(8, "little")),
                _END,
            )
        )
        length = _STATISTICS.size + len(options) + 4
        head = _STATISTICS.pack(INTERFACE_STATISTICS, length, interface, time >> 32, time & 0xFFFFFFFF)
        return head + options + _LENGTH.pack(length)


@dataclass(slots=True)
class Interface:
    """An interface of a file that is read, and what its statistics say once they have been read."""

    link_type: int
    snap_length: int = 0
    name: str = ""
    description: str = ""
    speed: int = 0
    """Bits a second, 0 if unknown."""
    unit: tuple[int, int] = (1000, 1)
    """Nanoseconds of a unit of time, as a fraction."""
    offset: int = 0
    """Seconds to add to times."""
    received: int | None = None
    dropped: int | None = None

    def time(self, units: int) -> int:
        """Nanoseconds since 1970; what no file of nanoseconds has room for is the nearest that there is."""
        time = units * self.unit[0] // self.unit[1] + self.offset * 1_000_000_000
        return min(max(time, 0), _LAST_TIME)


class Packet(NamedTuple):
    """A packet of a file that is read."""

    interface: Interface
    time: int
    """Nanoseconds since 1970."""
    data: bytes
    length: int
    """Bytes that it had; `data` may be less."""
    order: Order
    """The byte order of its section, in which link types of the host's order have their fields."""
    dropped: int = 0
    """Packets that are missing in front of it."""
    comment: str = ""


@dataclass(slots=True)
class Reader:
    """The packets of a file, one after the other: `for packet in Reader(file)`.

    Raises CaptureError for what is no such file. A file that ends in the middle (of a program that was killed, or on a
    full disk) gives what is whole, and then has `cut`.
    """

    file: BinaryIO
    interfaces: list[Interface] = field(default_factory=list)
    """All so far, of all sections."""
    application: str = ""
    """The program that wrote the file."""
    cut: str = ""
    """How the file ends where it is not whole; empty if it is."""
    skipped: int = 0
    """Blocks of other kinds that were left out."""
    offset: int = 0
    """Bytes read."""
    most: int | None = None
    """Bytes that are read at most, whatever is in them; None for any number."""

    def __iter__(self) -> Iterator[Packet]:
        start = self._read(4)
        if start is None:
            raise CaptureError("the file is empty" if not self.offset else f"a file of {self.offset} bytes")
        magic: dict[bytes, Order] = {number.to_bytes(4, "little"): "<" for number in _PCAP_MAGIC}
        magic |= {number.to_bytes(4, "big"): ">" for number in _PCAP_MAGIC}
        if start in magic:
            return self._pcap(start, magic[start])
        if start == _LENGTH.pack(SECTION_HEADER):
            return self._pcapng()
        raise CaptureError("this is neither a pcapng nor a pcap file")

    def _read(self, count: int) -> bytes | None:
        """So many bytes; None if the file ends before, and then `offset` counts what there was."""
        if self.most is not None and self.offset + count > self.most:
            raise CaptureError(f"it has more than {self.most >> 20} MiB; record less, or cut it with editcap")
        pieces = []
        while count:
            piece = self.file.read(min(count, PIECE))
            if not piece:
                return None
            self.offset += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _ends(self, start: int, what: str) -> None:
        """The file ends inside something that began at byte `start`."""
        if self.offset > start:
            self.cut = f"the file ends inside a {what} that begins at byte {start}"

    # -- pcap --------------------------------------------------------------------------------------------------------

    def _pcap(self, start: bytes, order: Order) -> Iterator[Packet]:
        rest = self._read(_PCAP[order].size - 4)
        if rest is None:
            raise CaptureError(f"the file ends inside its header, after {self.offset} bytes")
        magic, _, _, _, _, snap_length, link_type = _PCAP[order].unpack(start + rest)
        unit = _PCAP_MAGIC[magic]
        interface = Interface(link_type & 0xFFFF, snap_length, unit=(1, 1))
        self.interfaces.append(interface)
        head = _PCAP_PACKET[order]
        while True:
            begin = self.offset
            fields = self._read(head.size)
            if fields is None:
                return self._ends(begin, "packet")
            seconds, fraction, captured, length = head.unpack(fields)
            if captured > MAX_BLOCK:
                raise CaptureError(f"a packet of {captured} bytes at byte {begin}; {MAX_BLOCK} are the most")
            data = self._read(captured) if captured else b""
            if data is None:
                return self._ends(begin, "packet")
            yield Packet(interface, seconds * 1_000_000_000 + fraction * unit, data, length, order)

    # -- pcapng ------------------------------------------------------------------------------------------------------

    def _pcapng(self) -> Iterator[Packet]:
        order: Order = "<"
        section: list[Interface] = []
        type_bytes: bytes | None = _LENGTH.pack(SECTION_HEADER)
        begin = 0
        while type_bytes is not None:
            length_bytes = self._read(4)
            if length_bytes is None:
                break
            if type_bytes == _LENGTH.pack(SECTION_HEADER):  # the same in both byte orders
                magic = self._read(4)
                if magic is None:
                    break
                if int.from_bytes(magic, "little") == BYTE_ORDER_MAGIC:
                    order = "<"
                elif int.from_bytes(magic, "big") == BYTE_ORDER_MAGIC:
                    order = ">"
                else:
                    raise CaptureError(f"a section without a byte order at byte {begin}")
                section = []
            done = self.offset - begin
            word = Struct(order + "I")
            kind, length = word.unpack(type_bytes)[0], word.unpack(length_bytes)[0]
            if length % 4 or not done + 4 <= length <= MAX_BLOCK:
                raise CaptureError(f"a block of {length} bytes at byte {begin}")
            body = self._read(length - done - 4) if length > done + 4 else b""
            end = None if body is None else self._read(4)
            if body is None or end is None:
                break
            if end != length_bytes:
                raise CaptureError(f"the block at byte {begin} has two lengths")
            try:
                packet = self._block(kind, body, order, section)
            except (StructError, IndexError):
                raise CaptureError(f"the block at byte {begin} is too short for what is in it") from None
            if packet is not None:
                yield packet
            begin = self.offset
            type_bytes = self._read(4)
        self._ends(begin, "block")

    def _block(self, kind: int, body: bytes, order: Order, section: list[Interface]) -> Packet | None:
        """Take in a block's body. Raises StructError or IndexError if it is too short."""
        if kind == SECTION_HEADER:
            for code, value in _options(body, 12, order):
                if code == SHB_USERAPPL and not self.application:
                    self.application = value.decode(errors="replace")
        elif kind == INTERFACE_DESCRIPTION:
            if len(self.interfaces) >= MAX_INTERFACES:
                raise CaptureError(f"more than {MAX_INTERFACES} interfaces")
            interface = _interface(body, order)
            section.append(interface)
            self.interfaces.append(interface)
        elif kind == ENHANCED_PACKET:
            return _packet(body, order, section)
        elif kind == INTERFACE_STATISTICS:
            interface = section[Struct(order + "I").unpack_from(body)[0]]
            for code, value in _options(body, 12, order):
                if code in (ISB_IFRECV, ISB_IFDROP):
                    (count,) = Struct(order + "Q").unpack(value)
                    setattr(interface, "received" if code == ISB_IFRECV else "dropped", count)
        else:
            self.skipped += 1
        return None


def _options(body: bytes, start: int, order: Order) -> Iterator[tuple[int, bytes]]:
    """The options from byte `start` on."""
    head = Struct(order + "HH")
    while start < len(body):
        code, length = head.unpack_from(body, start)
        if code == END_OF_OPTIONS:
            return
        start += head.size
        if start + length > len(body):
            raise IndexError
        yield code, body[start : start + length]
        start += length + (-length & 3)


def _interface(body: bytes, order: Order) -> Interface:
    link_type, _, snap_length = Struct(order + "HHI").unpack_from(body)
    interface = Interface(link_type, snap_length)
    for code, value in _options(body, 8, order):
        if code == IF_NAME:
            interface.name = value.decode(errors="replace")
        elif code == IF_DESCRIPTION:
            interface.description = value.decode(errors="replace")
        elif code == IF_SPEED:
            (interface.speed,) = Struct(order + "Q").unpack(value)
        elif code == IF_TSRESOL:
            exponent = value[0] & 0x7F
            interface.unit = (1_000_000_000, (2 if value[0] & 0x80 else 10) ** exponent)
        elif code == IF_TSOFFSET:
            (interface.offset,) = Struct(order + "q").unpack(value)
    return interface


def _packet(body: bytes, order: Order, section: list[Interface]) -> Packet:
    head = Struct(order + "IIIII")
    number, high, low, captured, length = head.unpack_from(body)
    end = head.size + captured
    if end > len(body):
        raise IndexError
    interface = section[number]
    dropped, comment = 0, ""
    for code, value in _options(body, end + (-captured & 3), order):
        if code == EPB_DROPCOUNT:
            (dropped,) = Struct(order + "Q").unpack(value)
        elif code == COMMENT and not comment:
            comment = value.decode(errors="replace")
    time = interface.time(high << 32 | low)
    return Packet(interface, time, body[head.size : end], length, order, dropped, comment)
