"""The information units of USB Attached SCSI (UAS-3 6.2): what goes over the command and status pipes."""

from __future__ import annotations

from struct import Struct

from .scsi import Sense

# IU ID (table 10)
COMMAND = 0x01
SENSE = 0x03
RESPONSE = 0x04
TASK_MANAGEMENT = 0x05
READ_READY = 0x06
WRITE_READY = 0x07

# Task attribute (table 12)
SIMPLE = 0
HEAD_OF_QUEUE = 1
ORDERED = 2
ACA = 4

# Task management function (table 19)
ABORT_TASK = 0x01
ABORT_TASK_SET = 0x02
CLEAR_TASK_SET = 0x04
LOGICAL_UNIT_RESET = 0x08
I_T_NEXUS_RESET = 0x10
CLEAR_ACA = 0x40
QUERY_TASK = 0x80
QUERY_TASK_SET = 0x81
QUERY_ASYNCHRONOUS_EVENT = 0x82

# Response code (table 17)
FUNCTION_COMPLETE = 0x00
INVALID_INFORMATION_UNIT = 0x02
FUNCTION_NOT_SUPPORTED = 0x04
FUNCTION_FAILED = 0x05
FUNCTION_SUCCEEDED = 0x08
INCORRECT_LOGICAL_UNIT = 0x09
OVERLAPPED_TAG = 0x0A

# Status (SAM-5 5.3.1)
GOOD = 0x00
CHECK_CONDITION = 0x02
TASK_SET_FULL = 0x28

HEADER = Struct(">BxH")
"""IU ID and tag, with which every information unit begins."""
COMMAND_IU = Struct(">BxHBxBx8s16s")
"""IU ID, tag, priority and attribute, additional CDB length, logical unit, CDB."""
TASK_MANAGEMENT_IU = Struct(">BxHBxH8s")
"""IU ID, tag, function, tag of the task, logical unit."""
_SENSE_IU = Struct(">BxHHB7xH")
_RESPONSE_IU = Struct(">BxH3xB")

PIPE_USAGE = 0x24
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
