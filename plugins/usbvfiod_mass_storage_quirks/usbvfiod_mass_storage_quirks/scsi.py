"""Numbers of SCSI (SPC-4, SBC-3, MMC-6), sense data, and what a command descriptor block says, for people."""

from __future__ import annotations

from typing import NamedTuple

TEST_UNIT_READY = 0x00
REQUEST_SENSE = 0x03
READ_6 = 0x08
INQUIRY = 0x12
MODE_SENSE_6 = 0x1A
START_STOP_UNIT = 0x1B
PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
READ_CAPACITY_10 = 0x25
READ_10 = 0x28
WRITE_10 = 0x2A
VERIFY_10 = 0x2F
WRITE_SAME_10 = 0x41
LOG_SENSE = 0x4D
READ_DISC_INFORMATION = 0x51
MODE_SENSE_10 = 0x5A
VARIABLE_LENGTH = 0x7F
ATA_PASS_THROUGH_16 = 0x85
READ_16 = 0x88
WRITE_16 = 0x8A
VERIFY_16 = 0x8F
WRITE_SAME_16 = 0x93
SERVICE_ACTION_IN_16 = 0x9E
REPORT_LUNS = 0xA0
ATA_PASS_THROUGH_12 = 0xA1
MAINTENANCE_IN = 0xA3
READ_12 = 0xA8
WRITE_12 = 0xAA
VERIFY_12 = 0xAF

# Service actions
READ_CAPACITY_16 = 0x10  # of SERVICE ACTION IN(16)
REPORT_SUPPORTED_OPERATION_CODES = 0x0C  # of MAINTENANCE IN

TYPE_CD_DVD = 0x05
"""Peripheral device type of a CD or DVD drive (SPC-4 table 139), whose operation codes mean other things."""

NAMES = {
    0x00: "TEST UNIT READY",
    0x03: "REQUEST SENSE",
    0x04: "FORMAT UNIT",
    0x07: "REASSIGN BLOCKS",
    0x08: "READ(6)",
    0x0A: "WRITE(6)",
    0x0B: "SEEK(6)",
    0x12: "INQUIRY",
    0x15: "MODE SELECT(6)",
    0x16: "RESERVE(6)",
    0x17: "RELEASE(6)",
    0x1A: "MODE SENSE(6)",
    0x1B: "START STOP UNIT",
    0x1C: "RECEIVE DIAGNOSTIC RESULTS",
    0x1D: "SEND DIAGNOSTIC",
    0x1E: "PREVENT ALLOW MEDIUM REMOVAL",
    0x23: "READ FORMAT CAPACITIES",
    0x25: "READ CAPACITY(10)",
    0x28: "READ(10)",
    0x2A: "WRITE(10)",
    0x2B: "SEEK(10)",
    0x2E: "WRITE AND VERIFY(10)",
    0x2F: "VERIFY(10)",
    0x34: "PRE-FETCH(10)",
    0x35: "SYNCHRONIZE CACHE(10)",
    0x37: "READ DEFECT DATA(10)",
    0x3B: "WRITE BUFFER",
    0x3C: "READ BUFFER",
    0x3E: "READ LONG(10)",
    0x3F: "WRITE LONG(10)",
    0x41: "WRITE SAME(10)",
    0x42: "UNMAP",
    0x43: "READ TOC/PMA/ATIP",
    0x46: "GET CONFIGURATION",
    0x48: "SANITIZE",
    0x4A: "GET EVENT STATUS NOTIFICATION",
    0x4C: "LOG SELECT",
    0x4D: "LOG SENSE",
    0x51: "READ DISC INFORMATION",
    0x52: "READ TRACK INFORMATION",
    0x53: "XDWRITEREAD(10)",
    0x55: "MODE SELECT(10)",
    0x56: "RESERVE(10)",
    0x57: "RELEASE(10)",
    0x5A: "MODE SENSE(10)",
    0x5E: "PERSISTENT RESERVE IN",
    0x5F: "PERSISTENT RESERVE OUT",
    0x7F: "variable length command",
    0x83: "EXTENDED COPY",
    0x85: "ATA PASS-THROUGH(16)",
    0x88: "READ(16)",
    0x89: "COMPARE AND WRITE",
    0x8A: "WRITE(16)",
    0x8B: "ORWRITE(16)",
    0x8E: "WRITE AND VERIFY(16)",
    0x8F: "VERIFY(16)",
    0x90: "PRE-FETCH(16)",
    0x91: "SYNCHRONIZE CACHE(16)",
    0x93: "WRITE SAME(16)",
    0x9C: "WRITE ATOMIC(16)",
    0x9E: "SERVICE ACTION IN(16)",
    0x9F: "SERVICE ACTION OUT(16)",
    0xA0: "REPORT LUNS",
    0xA1: "ATA PASS-THROUGH(12)",
    0xA2: "SECURITY PROTOCOL IN",
    0xA3: "MAINTENANCE IN",
    0xA4: "MAINTENANCE OUT",
    0xA8: "READ(12)",
    0xAA: "WRITE(12)",
    0xAE: "WRITE AND VERIFY(12)",
    0xAF: "VERIFY(12)",
    0xB5: "SECURITY PROTOCOL OUT",
    0xB7: "READ DEFECT DATA(12)",
    0xBD: "MECHANISM STATUS",
    0xBE: "READ CD",
}
"""Names of operation codes of block devices."""

_ACTIONS = {
    (0x9E, 0x10): "READ CAPACITY(16)",
    (0x9E, 0x11): "READ LONG(16)",
    (0x9E, 0x12): "GET LBA STATUS",
    (0x9F, 0x11): "WRITE LONG(16)",
    (0xA3, 0x0C): "REPORT SUPPORTED OPERATION CODES",
    (0xA3, 0x0D): "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
}

_BLOCKS_6 = frozenset((0x08, 0x0A))
_BLOCKS_10 = frozenset((0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x41))
_BLOCKS_12 = frozenset((0xA8, 0xAA, 0xAE, 0xAF))
_BLOCKS_16 = frozenset((0x88, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x9C))


class Sense(NamedTuple):
    """Why a command did not end well: sense key (SPC-4 4.5.6), additional sense code and qualifier (annex D)."""

    key: int
    code: int
    qualifier: int = 0

    def fixed(self) -> bytes:
        """Fixed format (4.5.3), 18 bytes."""
        return bytes((0x70, 0, self.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, self.code, self.qualifier, 0, 0, 0, 0))

    def descriptor(self) -> bytes:
        """Descriptor format (4.5.2)."""
        return bytes((0x72, self.key, self.code, self.qualifier, 0, 0, 0, 0))

    def __str__(self) -> str:
        return f"sense {self.key:x}/{self.code:02x}/{self.qualifier:02x}"


NO_SENSE = Sense(0x0, 0x00)
INVALID_COMMAND_OPERATION_CODE = Sense(0x5, 0x20)
INVALID_FIELD_IN_CDB = Sense(0x5, 0x24)
WRITE_PROTECTED = Sense(0x7, 0x27)
TIME_OUT = Sense(0xB, 0x08, 0x01)
"""ABORTED COMMAND, LOGICAL UNIT COMMUNICATION TIME-OUT: the driver may try again."""


def parse_sense(data: bytes | bytearray) -> Sense:
    """The sense in either format; NO_SENSE if there is none in `data`."""
    form = data[0] & 0x7F if data else 0
    if form in (0x70, 0x71) and len(data) >= 14:
        return Sense(data[2] & 0xF, data[12], data[13])
    if form in (0x72, 0x73) and len(data) >= 4:
        return Sense(data[1] & 0xF, data[2], data[3])
    return NO_SENSE


def blocks_of(cdb: bytes) -> tuple[int, int] | None:
    """The first logical block and how many, of a command that names them; None for others (SBC-3 5)."""
    code = cdb[0]
    if code in _BLOCKS_10:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
    if code in _BLOCKS_16:
        return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    if code in _BLOCKS_6:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if code in _BLOCKS_12:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big")
    return None


def name_of(cdb: bytes) -> str:
    """What the standards call the command."""
    code = cdb[0]
    name = _ACTIONS.get((code, cdb[1] & 0x1F)) or NAMES.get(code)
    return name or f"{'vendor' if code >= 0xC0 else 'unknown'} command {code:#04x}"


def describe(cdb: bytes) -> str:
    """The command for people: `READ(10) lba=2048 blocks=256`."""
    blocks = blocks_of(cdb)
    return name_of(cdb) if blocks is None else f"{name_of(cdb)} lba={blocks[0]} blocks={blocks[1]}"
