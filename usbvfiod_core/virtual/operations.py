"""Every operation the disk knows: one table, from which commands are dispatched and reported (SPC-4 6.35)."""

from __future__ import annotations

from typing import NamedTuple

from . import scsi
from .scsi import Sense


class Operation(NamedTuple):
    """One row.

    `action` is the service action, None for an operation code without. `name` is the method of `Disk`. `usage` is the
    CDB usage data: a set bit in each place of the CDB that the disk looks at; its length is the CDB's.
    `needs_medium`: refused with MEDIUM NOT PRESENT while the medium is ejected.
    """

    code: int
    action: int | None
    name: str
    usage: str
    needs_medium: bool = True


_NO_MEDIUM = False

OPERATIONS: tuple[Operation, ...] = (
    Operation(scsi.TEST_UNIT_READY, None, "test_unit_ready", "00 00 00 00 00 00"),
    Operation(scsi.REQUEST_SENSE, None, "request_sense", "03 01 00 00 ff 00", _NO_MEDIUM),
    Operation(scsi.READ_6, None, "read", "08 1f ff ff ff 00"),
    Operation(scsi.WRITE_6, None, "write", "0a 1f ff ff ff 00"),
    Operation(scsi.INQUIRY, None, "inquiry", "12 01 ff ff ff 00", _NO_MEDIUM),
    Operation(scsi.MODE_SELECT_6, None, "mode_select_6", "15 11 00 00 ff 00", _NO_MEDIUM),
    Operation(scsi.MODE_SENSE_6, None, "mode_sense_6", "1a 08 ff ff ff 00", _NO_MEDIUM),
    Operation(scsi.START_STOP_UNIT, None, "start_stop_unit", "1b 00 00 00 f3 00", _NO_MEDIUM),
    Operation(scsi.PREVENT_ALLOW_MEDIUM_REMOVAL, None, "prevent_allow_medium_removal", "1e 00 00 00 01 00", _NO_MEDIUM),
    Operation(scsi.READ_FORMAT_CAPACITIES, None, "read_format_capacities", "23 00 00 00 00 00 00 ff ff 00", _NO_MEDIUM),
    Operation(scsi.READ_CAPACITY_10, None, "read_capacity_10", "25 00 00 00 00 00 00 00 00 00"),
    Operation(scsi.READ_10, None, "read", "28 e0 ff ff ff ff 00 ff ff 00"),
    Operation(scsi.WRITE_10, None, "write", "2a e8 ff ff ff ff 00 ff ff 00"),
    Operation(scsi.WRITE_AND_VERIFY_10, None, "write_and_verify", "2e e0 ff ff ff ff 00 ff ff 00"),
    Operation(scsi.VERIFY_10, None, "verify", "2f e6 ff ff ff ff 00 ff ff 00"),
    Operation(scsi.SYNCHRONIZE_CACHE_10, None, "synchronize_cache", "35 00 ff ff ff ff 00 ff ff 00"),
    Operation(scsi.WRITE_SAME_10, None, "write_same", "41 fe ff ff ff ff 00 ff ff 00"),
    Operation(scsi.UNMAP, None, "unmap", "42 01 00 00 00 00 00 ff ff 00"),
    Operation(scsi.MODE_SELECT_10, None, "mode_select_10", "55 11 00 00 00 00 00 ff ff 00", _NO_MEDIUM),
    Operation(scsi.MODE_SENSE_10, None, "mode_sense_10", "5a 18 ff ff 00 00 00 ff ff 00", _NO_MEDIUM),
    Operation(scsi.READ_16, None, "read", "88 e0 ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.WRITE_16, None, "write", "8a e8 ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.WRITE_AND_VERIFY_16, None, "write_and_verify", "8e e0 ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.VERIFY_16, None, "verify", "8f e6 ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.SYNCHRONIZE_CACHE_16, None, "synchronize_cache", "91 00 ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.WRITE_SAME_16, None, "write_same", "93 ff ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
    Operation(
        scsi.SERVICE_ACTION_IN_16,
        scsi.READ_CAPACITY_16,
        "read_capacity_16",
        "9e 10 00 00 00 00 00 00 00 00 ff ff ff ff 00 00",
    ),
    Operation(scsi.REPORT_LUNS, None, "report_luns", "a0 00 ff 00 00 00 ff ff ff ff 00 00", _NO_MEDIUM),
    Operation(
        scsi.MAINTENANCE_IN,
        scsi.REPORT_SUPPORTED_OPERATION_CODES,
        "report_supported_operation_codes",
        "a3 0c 87 ff ff ff ff ff ff ff 00 00",
        _NO_MEDIUM,
    ),
    Operation(scsi.READ_12, None, "read", "a8 e0 ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.WRITE_12, None, "write", "aa e8 ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.WRITE_AND_VERIFY_12, None, "write_and_verify", "ae e0 ff ff ff ff ff ff ff ff 00 00"),
    Operation(scsi.VERIFY_12, None, "verify", "af e6 ff ff ff ff ff ff ff ff 00 00"),
)

NEEDS_MEDIUM = frozenset(row.code for row in OPERATIONS if row.needs_medium)

_WITH_ACTIONS = frozenset(row.code for row in OPERATIONS if row.action is not None)
_TIMEOUTS = bytes((0, 10)) + bytes(10)  # a command timeouts descriptor that names none (6.35.4)
_NOT_SUPPORTED, _AS_STANDARD = 1, 3


def report(cdb: bytes) -> bytes | Sense:
    """What REPORT SUPPORTED OPERATION CODES answers, not yet cut to its allocation length, or the refusal."""
    timeouts = bool(cdb[2] & 0x80)
    option, code, action = cdb[2] & 7, cdb[3], int.from_bytes(cdb[4:6], "big")
    if option == 0:
        rows = b"".join(_row(row, timeouts=timeouts) for row in OPERATIONS)
        return len(rows).to_bytes(4, "big") + rows
    if option > 3:
        return scsi.INVALID_FIELD_IN_CDB
    with_actions = code in _WITH_ACTIONS
    if (option == 1 and with_actions) or (option == 2 and not with_actions):
        return scsi.INVALID_FIELD_IN_CDB  # 1 names an operation code without, 2 one with a service action
    wanted = (code, action if with_actions else None)
    for row in OPERATIONS:
        if (row.code, row.action) == wanted:
            usage = bytes.fromhex(row.usage)
            head = bytes((0, timeouts << 7 | _AS_STANDARD)) + len(usage).to_bytes(2, "big")
            return head + usage + (_TIMEOUTS if timeouts else b"")
    return bytes((0, _NOT_SUPPORTED, 0, 0))


def _row(row: Operation, *, timeouts: bool) -> bytes:
    flags = timeouts << 1 | (row.action is not None)
    length = len(bytes.fromhex(row.usage))
    head = bytes((row.code, 0)) + (row.action or 0).to_bytes(2, "big") + bytes((0, flags)) + length.to_bytes(2, "big")
    return head + (_TIMEOUTS if timeouts else b"")
