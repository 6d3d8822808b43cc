"""Mode pages of the disk: MODE SENSE and MODE SELECT (SPC-4 6.11, 6.13 and 7.5, SBC-3 6.4)."""

from __future__ import annotations

from . import scsi
from .scsi import Sense

READ_WRITE_ERROR_RECOVERY = 0x01
CACHING = 0x08
CONTROL = 0x0A
INFORMATIONAL_EXCEPTIONS = 0x1C
ALL_PAGES = 0x3F

_CURRENT, _CHANGEABLE, _DEFAULT, _SAVED = range(4)
_WCE = 0x04
_DPOFUA = 0x10
_WRITE_PROTECT = 0x80


class ModePages:
    """The disk's mode parameters. One of them can be changed: the write cache (WCE of the caching page).

    With the write cache off, every write is flushed to the image's storage before it is reported as done.
    """

    def __init__(self, blocks: int, block_size: int, *, write_protected: bool) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.write_protected = write_protected
        self.write_cache = True

    def sense(self, cdb: bytes, *, ten: bool) -> bytes | Sense:
        """The mode data that MODE SENSE(6) or (10) asks for, not yet cut to its allocation length, or the refusal."""
        control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
        if control == _SAVED:
            return scsi.SAVING_PARAMETERS_NOT_SUPPORTED
        pages = self._pages(control)
        if code == ALL_PAGES and subpage in (0x00, 0xFF):
            body = b"".join(pages.values())
        elif code in pages and subpage in (0x00, 0xFF):
            body = pages[code]
        else:
            return scsi.INVALID_FIELD_IN_CDB
        long_blocks = ten and bool(cdb[1] & 0x10)
        block = b"" if cdb[1] & 0x08 else self._block_descriptor(long=long_blocks)
        specific = (_WRITE_PROTECT if self.write_protected else 0) | _DPOFUA
        rest = block + body
        if ten:
            head = bytes((0, specific, 1 if long_blocks and block else 0, 0)) + len(block).to_bytes(2, "big")
            return (len(head) + len(rest)).to_bytes(2, "big") + head + rest
        return bytes((3 + len(rest), 0, specific, len(block))) + rest

    def select(self, data: bytes, *, ten: bool) -> Sense | None:
        """Take the parameter list of MODE SELECT: all of it, or nothing and the refusal."""
        size = 8 if ten else 4
        if not data:
            return None
        if len(data) < size:
            return scsi.PARAMETER_LIST_LENGTH_ERROR
        block_length = int.from_bytes(data[6:8], "big") if ten else data[3]
        block, rest = data[size : size + block_length], data[size + block_length :]
        if len(block) < block_length:
            return scsi.PARAMETER_LIST_LENGTH_ERROR
        if block and not self._same_blocks(block, long=ten and bool(data[4] & 1)):
            return scsi.INVALID_FIELD_IN_PARAMETER_LIST
        write_cache = self.write_cache
        current, changeable = self._pages(_CURRENT), self._pages(_CHANGEABLE)
        while rest:
            code = rest[0]
            page = current.get(code)
            if page is None or rest[1:2] != page[1:2]:
                return scsi.INVALID_FIELD_IN_PARAMETER_LIST
            if len(rest) < len(page):
                return scsi.PARAMETER_LIST_LENGTH_ERROR
            new = rest[: len(page)]
            if any((a ^ b) & ~mask for a, b, mask in zip(new[2:], page[2:], changeable[code][2:], strict=True)):
                return scsi.INVALID_FIELD_IN_PARAMETER_LIST
            if code == CACHING:
                write_cache = bool(new[2] & _WCE)
            rest = rest[len(page) :]
        self.write_cache = write_cache
        return None

    def _pages(self, control: int) -> dict[int, bytes]:
        cache = self.write_cache if control == _CURRENT else True  # by default on; as a mask: WCE can be changed
        return {
            READ_WRITE_ERROR_RECOVERY: bytes((READ_WRITE_ERROR_RECOVERY, 10)) + bytes(10),
            CACHING: bytes((CACHING, 18, _WCE if cache else 0)) + bytes(17),
            CONTROL: bytes((CONTROL, 10)) + bytes(10),
            INFORMATIONAL_EXCEPTIONS: bytes((INFORMATIONAL_EXCEPTIONS, 10)) + bytes(10),
        }

    def _block_descriptor(self, *, long: bool) -> bytes:
        if long:
            return self.blocks.to_bytes(8, "big") + bytes(4) + self.block_size.to_bytes(4, "big")
        return min(self.blocks, 0xFFFFFFFF).to_bytes(4, "big") + b"\0" + self.block_size.to_bytes(3, "big")

    def _same_blocks(self, descriptor: bytes, *, long: bool) -> bool:
        """Whether a block descriptor leaves the disk as it is; a count of zero or all ones means that, too."""
        own = self._block_descriptor(long=long)
        if len(descriptor) != len(own):
            return False
        size, unchanged = (8, 0xFFFFFFFF_FFFFFFFF) if long else (4, 0xFFFFFFFF)
        count = int.from_bytes(descriptor[:size], "big")
        return count in (0, unchanged, self.blocks) and descriptor[-3:] == own[-3:]
