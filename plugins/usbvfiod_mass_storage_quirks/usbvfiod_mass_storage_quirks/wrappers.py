"""The wrappers of the bulk-only transport (USB Mass Storage Class, Bulk-Only Transport 1.0, section 5)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

CBW_LENGTH = 31
CSW_LENGTH = 13
CBW_SIGNATURE = 0x43425355
CSW_SIGNATURE = 0x53425355

# bmRequestType and bRequest (section 3)
BULK_ONLY_RESET = (0x21, 0xFF)
GET_MAX_LUN = (0xA1, 0xFE)

# bCSWStatus (table 5.3)
COMMAND_PASSED = 0
COMMAND_FAILED = 1
PHASE_ERROR = 2

MOST_SENSE = 18
"""Bytes of sense data in fixed format (SPC-4 4.5.3), more than which some devices cannot be asked for."""

_CBW = Struct("<IIIBBB16s")
_CSW = Struct("<IIIB")


class CommandBlockWrapper(NamedTuple):
    """A CBW (5.1): the tag that the CSW repeats, how many bytes the data stage has and which way, and the command."""

    tag: int
    length: int
    is_in: bool
    lun: int
    size: int
    """bCBWCBLength: how many bytes of `cdb` count."""
    cdb: bytes
    """Always 16 bytes."""

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> CommandBlockWrapper | None:
        """Read one that is valid and meaningful (6.2), with every reserved bit zero; None for anything else."""
        if len(data) != CBW_LENGTH:
            return None
        signature, tag, length, flags, lun, size, cdb = _CBW.unpack(data)
        if signature != CBW_SIGNATURE or flags & 0x7F or lun > 15 or not 1 <= size <= 16:
            return None
        return cls(tag, length, flags >= 0x80, lun, size, cdb)

    def with_less_sense(self) -> CommandBlockWrapper:
        """The same REQUEST SENSE that asks for no more than MOST_SENSE."""
        cdb = self.cdb[:4] + bytes((min(self.cdb[4], MOST_SENSE),)) + self.cdb[5:]
        return self._replace(cdb=cdb, length=MOST_SENSE)

    def pack(self) -> bytes:
        """The 31 bytes on the wire."""
        flags = 0x80 if self.is_in else 0
        return _CBW.pack(CBW_SIGNATURE, self.tag, self.length, flags, self.lun, self.size, self.cdb)


class CommandStatusWrapper(NamedTuple):
    """A CSW (5.2)."""

    tag: int
    residue: int
    status: int

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> CommandStatusWrapper | None:
        """Read one; None if it is not valid (6.3.1)."""
        if len(data) != CSW_LENGTH:
            return None
        signature, tag, residue, status = _CSW.unpack(data)
        return cls(tag, residue, status) if signature == CSW_SIGNATURE else None

    def pack(self) -> bytes:
        """The 13 bytes on the wire."""
        return _CSW.pack(CSW_SIGNATURE, self.tag, self.residue, self.status)
