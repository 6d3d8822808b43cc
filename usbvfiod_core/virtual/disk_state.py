"""What another process has to know to go on with a disk in the middle of its work, and to begin its commands again.

What a command does when its data have come is code, and is found anew by the command descriptor block. Nothing of it
has been done by then: whatever works for a command in a thread has ended before a disk is handed over.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..state import U8, U64
from .command import FAILED, SEND, WRITE, Command
from .disk import Disk
from .scsi import Sense


@dataclass
class SenseState:
    """Sense data (SPC-4 4.5)."""

    key: U8
    code: U8
    qualifier: U8
    information: U64 | None


@dataclass
class DiskState:
    """A logical unit."""

    sense: SenseState
    attention: SenseState | None
    """A unit attention that no command was told of yet."""
    loaded: bool
    removal_prevented: bool
    write_cache: bool


@dataclass
class CommandState:
    """A command that is not over."""

    cdb: bytes
    lun: U8
    failed: bool
    data: bytes
    """What it sends, if that is no part of the image."""
    syncs: bool
    """Of one that writes: whether its data have to be on stable storage before it is over."""


def disk_state(disk: Disk) -> DiskState:
    """What a disk is in the middle of."""
    attention = disk.attention
    return DiskState(
        SenseState(*disk.sense),
        None if attention is None else SenseState(*attention),
        disk.loaded,
        disk.removal_prevented,
        disk.mode.write_cache,
    )


def take_disk_state(disk: Disk, state: DiskState) -> None:
    """Go on there, with a new disk; after its commands have begun again."""
    attention = state.attention
    disk.go_on(
        _sense(state.sense),
        None if attention is None else _sense(attention),
        loaded=state.loaded,
        removal_prevented=state.removal_prevented,
    )
    disk.mode.write_cache = state.write_cache


def command_state(command: Command, cdb: bytes, lun: int) -> CommandState:
    """What is left to do for a command whose descriptor block is `cdb`."""
    syncs = command.kind == WRITE and command.work is not None
    return CommandState(bytes(cdb), lun, command.failed, command.data, syncs)


def begin_again(disk: Disk, state: CommandState) -> Command:
    """A command of another process, on a new disk with the same image and mode pages: whatever could refuse it has done
    so there."""
    if state.failed:
        return FAILED
    if state.data:
        return Command(SEND, length=len(state.data), data=state.data)
    command = disk.execute(state.cdb.ljust(16, b"\0"), state.lun)
    if command.kind == WRITE:
        command.work = disk.image.sync if state.syncs else None
    return command


def _sense(state: SenseState) -> Sense:
    return Sense(state.key, state.code, state.qualifier, state.information)
