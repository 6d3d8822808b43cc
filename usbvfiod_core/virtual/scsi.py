"""Numbers of SCSI, and sense data (SPC-4 and SBC-3; sections are SPC-4's unless said)."""

from __future__ import annotations

from typing import Final, NamedTuple

# Operation codes (SPC-4 6, SBC-3 5)
TEST_UNIT_READY: Final = 0x00
REQUEST_SENSE: Final = 0x03
READ_6: Final = 0x08
WRITE_6: Final = 0x0A
INQUIRY: Final = 0x12
MODE_SELECT_6: Final = 0x15
MODE_SENSE_6: Final = 0x1A
START_STOP_UNIT: Final = 0x1B
PREVENT_ALLOW_MEDIUM_REMOVAL: Final = 0x1E
READ_FORMAT_CAPACITIES: Final = 0x23
READ_CAPACITY_10: Final = 0x25
READ_10: Final = 0x28
WRITE_10: Final = 0x2A
WRITE_AND_VERIFY_10: Final = 0x2E
VERIFY_10: Final = 0x2F
SYNCHRONIZE_CACHE_10: Final = 0x35
WRITE_SAME_10: Final = 0x41
UNMAP: Final = 0x42
MODE_SELECT_10: Final = 0x55
MODE_SENSE_10: Final = 0x5A
READ_16: Final = 0x88
WRITE_16: Final = 0x8A
WRITE_AND_VERIFY_16: Final = 0x8E
VERIFY_16: Final = 0x8F
SYNCHRONIZE_CACHE_16: Final = 0x91
WRITE_SAME_16: Final = 0x93
SERVICE_ACTION_IN_16: Final = 0x9E
REPORT_LUNS: Final = 0xA0
MAINTENANCE_IN: Final = 0xA3
READ_12: Final = 0xA8
WRITE_12: Final = 0xAA
WRITE_AND_VERIFY_12: Final = 0xAE
VERIFY_12: Final = 0xAF

# Service actions
READ_CAPACITY_16: Final = 0x10  # of SERVICE ACTION IN(16)
REPORT_SUPPORTED_OPERATION_CODES: Final = 0x0C  # of MAINTENANCE IN


class Sense(NamedTuple):
    """Why a command did not end well: sense key (4.5.6), additional sense code and qualifier (annex D).

    `information` is the logical block concerned.
    """

    key: int
    code: int
    qualifier: int = 0
    information: int | None = None

    def fixed(self) -> bytes:
        """Fixed format (4.5.3), 18 bytes."""
        information = self.information
        valid = information is not None and information <= 0xFFFFFFFF
        return (
            bytes((0xF0 if valid else 0x70, 0, self.key))
            + (information if information is not None and valid else 0).to_bytes(4, "big")
            + bytes((10, 0, 0, 0, 0, self.code, self.qualifier, 0, 0, 0, 0))
        )

    def descriptor(self) -> bytes:
        """Descriptor format (4.5.2), with an information descriptor if there is information."""
        more = b"" if self.information is None else b"\x00\x0a\x80\x00" + self.information.to_bytes(8, "big")
        return bytes((0x72, self.key, self.code, self.qualifier, 0, 0, 0, len(more))) + more


NO_SENSE: Final = Sense(0x0, 0x00)
MEDIUM_NOT_PRESENT: Final = Sense(0x2, 0x3A)
WRITE_ERROR: Final = Sense(0x3, 0x0C)
UNRECOVERED_READ_ERROR: Final = Sense(0x3, 0x11)
PARAMETER_LIST_LENGTH_ERROR: Final = Sense(0x5, 0x1A)
INVALID_COMMAND_OPERATION_CODE: Final = Sense(0x5, 0x20)
LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE: Final = Sense(0x5, 0x21)
INVALID_FIELD_IN_CDB: Final = Sense(0x5, 0x24)
LOGICAL_UNIT_NOT_SUPPORTED: Final = Sense(0x5, 0x25)
INVALID_FIELD_IN_PARAMETER_LIST: Final = Sense(0x5, 0x26)
SAVING_PARAMETERS_NOT_SUPPORTED: Final = Sense(0x5, 0x39)
INVALID_MESSAGE: Final = Sense(0x5, 0x49)
MEDIUM_REMOVAL_PREVENTED: Final = Sense(0x5, 0x53, 0x02)
MEDIUM_MAY_HAVE_CHANGED: Final = Sense(0x6, 0x28)
BUS_DEVICE_RESET_OCCURRED: Final = Sense(0x6, 0x29, 0x03)
NEXUS_LOSS_OCCURRED: Final = Sense(0x6, 0x29, 0x07)
WRITE_PROTECTED: Final = Sense(0x7, 0x27)
SPACE_ALLOCATION_FAILED: Final = Sense(0x7, 0x27, 0x07)
MISCOMPARE_DURING_VERIFY: Final = Sense(0xE, 0x1D)
