"""The information units of USB Attached SCSI (UAS-3 6.2): what goes over the command and status pipes."""

from __future__ import annotations

from struct import Struct
from typing import Final

from .scsi import Sense

# IU ID (table 10)
COMMAND: Final = 0x01
SENSE: Final = 0x03
RESPONSE: Final = 0x04
TASK_MANAGEMENT: Final = 0x05
READ_READY: Final = 0x06
WRITE_READY: Final = 0x07

# Task attribute (table 12)
SIMPLE: Final = 0
HEAD_OF_QUEUE: Final = 1
ORDERED: Final = 2
ACA: Final = 4

# Task management function (table 19)
ABORT_TASK: Final = 0x01
ABORT_TASK_SET: Final = 0x02
CLEAR_TASK_SET: Final = 0x04
LOGICAL_UNIT_RESET: Final = 0x08
I_T_NEXUS_RESET: Final = 0x10
CLEAR_ACA: Final = 0x40
QUERY_TASK: Final = 0x80
QUERY_TASK_SET: Final = 0x81
QUERY_ASYNCHRONOUS_EVENT: Final = 0x82

# Response code (table 17)
FUNCTION_COMPLETE: Final = 0x00
INVALID_INFORMATION_UNIT: Final = 0x02
FUNCTION_NOT_SUPPORTED: Final = 0x04
FUNCTION_FAILED: Final = 0x05
FUNCTION_SUCCEEDED: Final = 0x08
INCORRECT_LOGICAL_UNIT: Final = 0x09
OVERLAPPED_TAG: Final = 0x0A

# Status (SAM-5 5.3.1)
GOOD: Final = 0x00
CHECK_CONDITION: Final = 0x02
TASK_SET_FULL: Final = 0x28

HEADER: Final = Struct(">BxH")
"""IU ID and tag, with which every information unit begins."""
COMMAND_IU: Final = Struct(">BxHBxBx8s16s")
"""IU ID, tag, priority and attribute, additional CDB length, logical unit, CDB."""
TASK_MANAGEMENT_IU: Final = Struct(">BxHBxH8s")
"""IU ID, tag, function, tag of the task, logical unit."""
_SENSE_IU: Final = Struct(">BxHHB7xH")
_RESPONSE_IU: Final = Struct(">BxH3xB")

PIPE_USAGE: Final = 0x24
"""bDescriptorType of a pipe usage descriptor (5.3.3.5)."""
COMMAND_PIPE, STATUS_PIPE, DATA_IN_PIPE, DATA_OUT_PIPE = 1, 2, 3, 4


def pipe_usage(pipe: int) -> bytes:
    """The pipe usage descriptor behind an endpoint."""
    return bytes((4, PIPE_USAGE, pipe, 0))


def status(tag: int, code: int, sense: Sense | None = None) -> bytes:
    """A SENSE IU, which ends a command with this status."""
    data = b"" if sense is None else sense.fixed()
    return _SENSE_IU.pack(SENSE, tag, 0, code, len(data)) + data


def response(tag: int, code: int) -> bytes:
    """A RESPONSE IU, which ends a task management function or refuses an information unit."""
    return _RESPONSE_IU.pack(RESPONSE, tag, code)


def ready(tag: int, *, to_driver: bool) -> bytes:
    """READ READY or WRITE READY: the driver may now move the data of this command (only without streams)."""
    return HEADER.pack(READ_READY if to_driver else WRITE_READY, tag)
