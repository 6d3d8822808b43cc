"""Read-only mode: which commands a device may be given, and how the others are refused.

What is not known to leave the medium and the device's settings as they are is refused: the list below is of what is
allowed. A command that is known to write is answered as a write-protected drive does (DATA PROTECT, write protected);
a driver takes that for what it is and does not try again. All others, vendor commands and those of a future standard
among them, are answered like one that the drive does not have (ILLEGAL REQUEST, invalid command operation code): a
driver that asks for an optional command then goes on without it, where DATA PROTECT would look like a broken drive.

No command that is allowed has data for the device. That is what makes the mode hold whatever a device thinks of a
command's data stage: it never gets a byte from the guest but inspected commands.
"""

from __future__ import annotations

from . import scsi
from .scsi import INVALID_COMMAND_OPERATION_CODE, INVALID_FIELD_IN_CDB, TYPE_CD_DVD, WRITE_PROTECTED, Sense

_BYTCHK = 0x06
_SAVE_PARAMETERS = 0x01

READS = frozenset(
    (
        0x00,  # TEST UNIT READY
        0x03,  # REQUEST SENSE
        0x08,  # READ(6)
        0x0B,  # SEEK(6)
        0x12,  # INQUIRY
        0x1A,  # MODE SENSE(6)
        0x1B,  # START STOP UNIT: ejecting takes the medium away, and leaves it as it is
        0x1C,  # RECEIVE DIAGNOSTIC RESULTS
        0x1E,  # PREVENT ALLOW MEDIUM REMOVAL
        0x23,  # READ FORMAT CAPACITIES
        0x25,  # READ CAPACITY(10)
        0x28,  # READ(10)
        0x2B,  # SEEK(10)
        0x2F,  # VERIFY(10), if the medium is not compared with data
        0x34,  # PRE-FETCH(10)
        0x35,  # SYNCHRONIZE CACHE(10): there is nothing of the guest's in the cache
        0x37,  # READ DEFECT DATA(10)
        0x3C,  # READ BUFFER
        0x3E,  # READ LONG(10)
        0x4D,  # LOG SENSE, if it saves nothing
        0x5A,  # MODE SENSE(10)
        0x5E,  # PERSISTENT RESERVE IN
        0x88,  # READ(16)
        0x8F,  # VERIFY(16), as above
        0x90,  # PRE-FETCH(16)
        0x91,  # SYNCHRONIZE CACHE(16)
        0xA0,  # REPORT LUNS
        0xA2,  # SECURITY PROTOCOL IN
        0xA8,  # READ(12)
        0xAF,  # VERIFY(12), as above
        0xB7,  # READ DEFECT DATA(12)
    )
)
"""Operation codes that read, of block devices (SBC-3, SPC-4)."""

READ_ACTIONS = frozenset(
    (
        (0x9E, 0x10),  # READ CAPACITY(16)
        (0x9E, 0x11),  # READ LONG(16)
        (0x9E, 0x12),  # GET LBA STATUS
        (0x9E, 0x13),  # REPORT REFERRALS
        (0xA3, 0x05),  # REPORT IDENTIFYING INFORMATION
        (0xA3, 0x0A),  # REPORT TARGET PORT GROUPS
        (0xA3, 0x0B),  # REPORT ALIASES
        (0xA3, 0x0C),  # REPORT SUPPORTED OPERATION CODES
        (0xA3, 0x0D),  # REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
        (0xA3, 0x0E),  # REPORT PRIORITY
        (0xA3, 0x0F),  # REPORT TIMESTAMP
        (0xAB, 0x01),  # READ MEDIA SERIAL NUMBER
    )
)
"""The same for codes that have service actions (low five bits of byte 1)."""

DISC_READS = frozenset(
    (
        0x42,  # READ SUB-CHANNEL
        0x43,  # READ TOC/PMA/ATIP
        0x44,  # READ HEADER
        0x46,  # GET CONFIGURATION
        0x4A,  # GET EVENT STATUS NOTIFICATION
        0x51,  # READ DISC INFORMATION
        0x52,  # READ TRACK INFORMATION
        0x5C,  # READ BUFFER CAPACITY
        0xA4,  # REPORT KEY
        0xAC,  # GET PERFORMANCE
        0xAD,  # READ DISC STRUCTURE
        0xB9,  # READ CD MSF
        0xBB,  # SET CD SPEED
        0xBD,  # MECHANISM STATUS
        0xBE,  # READ CD
    )
)
"""What reads besides on a CD or DVD drive (MMC-6). Some of these codes write on a disk: 42h is UNMAP there."""

WRITES = frozenset(
    (
        0x04,  # FORMAT UNIT
        0x07,  # REASSIGN BLOCKS
        0x0A,  # WRITE(6)
        0x15,  # MODE SELECT(6)
        0x18,  # COPY
        0x2A,  # WRITE(10)
        0x2C,  # ERASE(10)
        0x2E,  # WRITE AND VERIFY(10)
        0x39,  # COMPARE
        0x3A,  # COPY AND VERIFY
        0x3B,  # WRITE BUFFER: firmware among others
        0x3D,  # UPDATE BLOCK
        0x3F,  # WRITE LONG(10)
        0x40,  # CHANGE DEFINITION
        0x41,  # WRITE SAME(10)
        0x42,  # UNMAP
        0x48,  # SANITIZE
        0x4C,  # LOG SELECT
        0x50,  # XDWRITE(10)
        0x51,  # XPWRITE(10)
        0x53,  # XDWRITEREAD(10)
        0x55,  # MODE SELECT(10)
        0x5F,  # PERSISTENT RESERVE OUT
        0x83,  # EXTENDED COPY
        0x89,  # COMPARE AND WRITE
        0x8A,  # WRITE(16)
        0x8B,  # ORWRITE(16)
        0x8D,  # WRITE ATTRIBUTE
        0x8E,  # WRITE AND VERIFY(16)
        0x93,  # WRITE SAME(16)
        0x94,  # ZBC OUT
        0x9A,  # WRITE STREAM(16)
        0x9C,  # WRITE ATOMIC(16)
        0x9D,  # SERVICE ACTION BIDIRECTIONAL
        0x9F,  # SERVICE ACTION OUT(16): WRITE LONG(16) among others
        0xA4,  # MAINTENANCE OUT
        0xA9,  # SERVICE ACTION OUT(12)
        0xAA,  # WRITE(12)
        0xAC,  # ERASE(12)
        0xAE,  # WRITE AND VERIFY(12)
        0xB5,  # SECURITY PROTOCOL OUT
    )
)
"""Operation codes that change the medium, the settings or the firmware of a device."""

_VERIFIES = frozenset((scsi.VERIFY_10, scsi.VERIFY_12, scsi.VERIFY_16))
_READ_CODES_32 = frozenset((0x0003, 0x0009, 0x000A, 0x0012))  # XDREAD, READ, VERIFY, GET LBA STATUS


def refusal(cdb: bytes, device_type: int = 0) -> Sense | None:
    """Why a command is not given to a device of this peripheral type, None if it may be. `cdb` has 16 bytes or more."""
    code = cdb[0]
    if code in READS:
        if (code in _VERIFIES and cdb[1] & _BYTCHK) or (code == scsi.LOG_SENSE and cdb[1] & _SAVE_PARAMETERS):
            return INVALID_FIELD_IN_CDB
        return None
    if (code, cdb[1] & 0x1F) in READ_ACTIONS or (device_type == TYPE_CD_DVD and code in DISC_READS):
        return None
    if code == scsi.VARIABLE_LENGTH:
        # Those that read are refused too: nothing needs them, and few devices have them.
        reads = int.from_bytes(cdb[8:10], "big") in _READ_CODES_32
        return INVALID_COMMAND_OPERATION_CODE if reads else WRITE_PROTECTED
    return WRITE_PROTECTED if code in WRITES else INVALID_COMMAND_OPERATION_CODE
