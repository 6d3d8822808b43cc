"""The information units of USB Attached SCSI (UAS-3 6.2), as the command and status pipes carry them."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from .scsi import Sense, parse_sense

# IU ID (table 10)
COMMAND = 0x01
SENSE = 0x03
RESPONSE = 0x04
TASK_MANAGEMENT = 0x05
READ_READY = 0x06
WRITE_READY = 0x07

# Task management function (table 19)
ABORT_TASK = 0x01
I_T_NEXUS_RESET = 0x10
QUERY_TASK = 0x80
QUERY_TASK_SET = 0x81
QUERY_ASYNCHRONOUS_EVENT = 0x82

# Response code (table 17)
FUNCTION_COMPLETE = 0x00
INVALID_INFORMATION_UNIT = 0x02
FUNCTION_SUCCEEDED = 0x08

# Status (SAM-5 5.3.1)
GOOD = 0x00
CHECK_CONDITION = 0x02

# bPipeID (table 5) in a pipe usage descriptor
PIPE_USAGE = 0x24
COMMAND_PIPE, STATUS_PIPE, DATA_IN_PIPE, DATA_OUT_PIPE = 1, 2, 3, 4

COMMAND_LENGTH = 32
TASK_MANAGEMENT_LENGTH = 16

_HEADER = Struct(">BxH")
_COMMAND = Struct(">BxHBxBx8s16s")
_TASK_MANAGEMENT = Struct(">BxHBxH8s")
_SENSE = Struct(">BxHHB7xH")
_RESPONSE = Struct(">BxH3xB")


class CommandUnit(NamedTuple):
    """A COMMAND IU (6.2.2). `cdb` has 16 bytes, or more for a command of variable length."""

    tag: int
    lun: bytes
    cdb: bytes

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> CommandUnit | None:
        """Read one; None for anything else, and for one whose length is not what it says."""
        if len(data) < COMMAND_LENGTH or data[0] != COMMAND:
            return None
        _, tag, _, additional, lun, cdb = _COMMAND.unpack_from(data)
        if additional & 3 or len(data) != COMMAND_LENGTH + additional:
            return None
        return cls(tag, lun, cdb + bytes(data[COMMAND_LENGTH:]))


class TaskManagement(NamedTuple):
    """A TASK MANAGEMENT IU (6.2.7); `managed` is the tag that it is about."""

    tag: int
    function: int
    managed: int
    lun: bytes

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> TaskManagement | None:
        """Read one; None for anything else."""
        if len(data) != TASK_MANAGEMENT_LENGTH or data[0] != TASK_MANAGEMENT:
            return None
        return cls(*_TASK_MANAGEMENT.unpack(data)[1:])


class StatusUnit(NamedTuple):
    """What comes over the status pipe: of a SENSE IU `code` is the status, of a RESPONSE IU the response code."""

    kind: int
    tag: int
    code: int
    sense: Sense

    @classmethod
    def unpack(cls, data: bytes) -> StatusUnit | None:
        """Read one; None if it is too short for what it is."""
        if len(data) < _HEADER.size:
            return None
        kind, tag = _HEADER.unpack_from(data)
        if kind == SENSE and len(data) >= _SENSE.size:
            length = int.from_bytes(data[14:16], "big")
            return cls(kind, tag, data[6], parse_sense(data[_SENSE.size : _SENSE.size + length]))
        if kind == RESPONSE and len(data) >= _RESPONSE.size:
            return cls(kind, tag, data[7], parse_sense(b""))
        if kind in (READ_READY, WRITE_READY):
            return cls(kind, tag, 0, parse_sense(b""))
        return None


def header(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """IU ID and tag, with which every information unit begins; `data` has at least four bytes."""
    kind, tag = _HEADER.unpack_from(data)
    return kind, tag


def status(tag: int, code: int, sense: Sense | None = None) -> bytes:
    """A SENSE IU, which ends a command with this status."""
    data = b"" if sense is None else sense.fixed()
    return _SENSE.pack(SENSE, tag, 0, code, len(data)) + data


def response(tag: int, code: int) -> bytes:
    """A RESPONSE IU, which ends a task management function or refuses an information unit."""
    return _RESPONSE.pack(RESPONSE, tag, code)
