"""What another process has to know to go on with the commands of a drive, by either transport."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..state import U8, U16, U32, U64
from .disk_state import CommandState


class Step(Enum):
    """What comes next."""

    COMMAND = 0
    DATA_IN = 1
    DATA_OUT = 2
    STATUS = 3


STEPS = tuple(Step)


@dataclass
class BulkOnlyState:
    """The transport in the middle of a command."""

    step: Step
    wedged: bool
    tag: U32
    left: U32
    wanted: U64
    residue: U32
    result: U8
    place: U64
    parameters: bytes
    command: CommandState | None
    """The command whose data move."""


@dataclass
class TaskState:
    """One command whose status the driver has not fetched.

    waits     for how many others it waits; `followers` are the tags of those that wait for it
    waiting   whether it is among those that have not ended; `ended`: only its status is missing
    """

    tag: U16
    command: CommandState
    ordered: bool
    left: U64
    place: U64
    parameters: bytes
    waiting: bool
    ended: bool
    waits: U16
    followers: list[U16]


@dataclass
class OwedState:
    """An information unit that the driver has not fetched, on its stream; 0 where there are none."""

    stream: U16
    unit: bytes
    tag: U16 | None
    """Of the command that it is about, if that is not over."""


@dataclass
class UasState:
    """The commands of a drive, in the order in which they came."""

    tasks: list[TaskState]
    data_in: list[U16]
    """The tags of those whose data move to the driver; without streams the first one has the pipe, the others wait for
    it."""
    data_out: list[U16]
    """The same for data from the driver."""
    owed: list[OwedState]
