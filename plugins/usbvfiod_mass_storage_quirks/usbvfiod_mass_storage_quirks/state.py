"""What another process has to know to go on between a guest and its drive (`usbvfiod upgrade`), as plain dataclasses.

No transfer is under way then: whatever was, the guest sends again.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from usbvfiod_core import CannotHandOver
from usbvfiod_core.state import U8, U16, U32, U64

from .scsi import Sense


class State(Enum):
    """What a bulk-only transport is at."""

    READY = "waits for a command"
    PASSED = "the device works on a command"
    ANSWERING = "a command is answered here"
    BUSY = "the device is used on our own account; the guest waits"
    WEDGED = "halted until Reset Recovery"


@dataclass
class SenseState:
    """See `Sense`."""

    key: U8
    code: U8
    qualifier: U8


@dataclass
class CommandState:
    """See `Command`."""

    tag: U32
    lun: str
    cdb: bytes
    moved: U64


@dataclass
class SplittingState:
    """A command that is too long, whose data the guest still gives."""

    wrapper: bytes
    block_size: U32
    data: bytes


@dataclass
class BulkOnlyState:
    """See `BulkOnly`. `ejecting` is the seconds that a device that was ejected has left to leave."""

    state: State
    command: CommandState | None
    tag: U32
    in_left: U32
    out_left: U32
    shortened: U32
    senses: dict[str, SenseState]
    """What is to be said of each logical unit."""
    answer: bytes
    residue: U32
    status: U8
    delay: float
    failures: U32
    ejecting: float | None = None
    splitting: SplittingState | None = None


@dataclass
class TaskState:
    """What a UAS device owes an answer for: a command, or task management function `function` of task `managed`."""

    tag: U16
    command: CommandState | None
    function: U8 = 0
    managed: U16 = 0
    lun: bytes = b""


@dataclass
class LineState:
    """Answers of our own that the guest has not fetched yet; `stream` is that of the status pipe."""

    stream: U16
    answers: list[bytes]


@dataclass
class UasState:
    """See `Uas`."""

    tasks: list[TaskState]
    lines: list[LineState]
    moving: U16
    delay: float


@dataclass
class TransportState:
    """The transport of an interface, by its setting."""

    interface: U8
    alternate: U8
    bulk_only: BulkOnlyState | None = None
    uas: UasState | None = None


@dataclass
class DescriptorsState:
    """A configuration descriptor as the guest sees it, and as the device has it."""

    shown: bytes
    raw: bytes


@dataclass
class CommandSetState:
    """See `CommandSet`."""

    types: dict[str, U8]
    without_mode_sense: list[str]
    failed: dict[str, U8]


@dataclass
class MassStorageState:
    """See `MassStorageQuirks`. `settings` are mode and quirks for people; they have to be the same here and there."""

    settings: str
    known: bool
    unreadable: bool
    configurations: list[DescriptorsState]
    configuration: U8 | None
    ejected: bool
    commands: CommandSetState
    transports: list[TransportState]


def lun_text(lun: Hashable) -> str:
    """The name of a logical unit: decimal digits for bulk-only, hexadecimal ones behind an `x` for UAS."""
    return f"x{lun.hex()}" if isinstance(lun, bytes) else str(lun)


def lun_of(text: str) -> Hashable:
    """The other way round. Raises CannotHandOver."""
    try:
        return bytes.fromhex(text[1:]) if text.startswith("x") else int(text)
    except ValueError:
        raise CannotHandOver(f"{text!r} names no logical unit") from None


def sense_state(sense: Sense) -> SenseState:
    """As plain as it can be."""
    return SenseState(*sense)


def sense_of(state: SenseState) -> Sense:
    """The other way round."""
    return Sense(state.key, state.code, state.qualifier)
