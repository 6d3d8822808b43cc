"""A drive of a recording, which is bulk-only (USB Mass Storage Class, Bulk-Only Transport 1.0), whatever was recorded.

A driver does not send its commands in the order of another day, and its tags never fit. So a drive is replayed command
by command: each is answered as the same command was, in order, the last answer again when there are no more. A read of
blocks that were all read, in whatever pieces, is answered too. Any other command fails, and the sense data say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from struct import Struct
from typing import Final

from ..capture.bulk import gathered, let_go, uncollected
from ..capture.recording import Exchange, Traffic
from ..state import StateError
from ..usb.descriptors import Interface
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .bulk_only import CBW_LENGTH, CBW_SIGNATURE, COMMAND_FAILED, COMMAND_PASSED, CSW_LENGTH, CSW_SIGNATURE
from .endpoint import VirtualEndpoint
from .replay_commands import Command, Key, started
from .replay_requests import MAX_COMPARED, first_difference
from .replay_state import DriveState, NextCommand
from .replay_uas import uas_commands
from .scsi import INVALID_COMMAND_OPERATION_CODE, READ_10, READ_12, READ_16, REQUEST_SENSE, UNRECOVERED_READ_ERROR

_log = logging.getLogger(__name__)

MAX_TOLD: Final = 64
"""Commands without an answer in the recording that are logged, each once."""
MAX_DATA: Final = 16 << 20
"""Bytes of a command's data phase; one with more is as if it had not been recorded. Systems ask for 1 MiB at a time, or
a little more."""
SMALLEST_BLOCK: Final = 512
"""Bytes."""

_CBW = Struct("<IIIBBB16s")
_CSW = Struct("<IIIB")
_COMPLETED = TransferStatus.COMPLETED


class RecordedDrive:
    """The commands that were recorded at an interface, and the blocks that were read."""

    def __init__(self, interface: Interface, traffic: Traffic, uas: Interface | None = None) -> None:
        """`uas` is the interface's setting of USB Attached SCSI, if it has one: commands of both are the drive's."""
        self.interface = interface
        self.commands: dict[Key, list[Command]] = {}
        self.blocks: dict[tuple[int, int], bytes] = {}
        """By logical unit and block."""
        addresses = {each.address for each in interface.endpoints if each.type is TransferType.BULK}
        last: Command | None = None
        failed: Command | None = None
        for exchange in traffic.exchanges:
            if exchange.first.endpoint not in addresses or exchange.submitted is None:
                continue
            command = _command(exchange)
            if command is not None:
                last = command
            elif last is None or last.ended:
                continue
            elif _is_status(exchange):
                last.status, last.ended = exchange.data[12], True
                self._keep(last)
                if last.key[1][0] == REQUEST_SENSE and failed is not None:
                    failed.sense = b"".join(last.data)
                failed = last if last.status != COMMAND_PASSED else None
            elif exchange.status in (_COMPLETED, TransferStatus.STALL, TransferStatus.CANCELLED):
                last.take(exchange)
        for command in uas_commands(uas, traffic) if uas is not None else ():
            self._keep(command)
        uncollected(self.commands)
        uncollected(self.blocks)

    def let_go(self) -> None:
        """Forget all of it, in a thread."""
        for same in self.commands.values():
            let_go(same)
        let_go(self.commands, self.blocks)

    def _keep(self, command: Command) -> None:
        if sum(map(len, command.data)) > MAX_DATA:
            return
        same = self.commands.get(command.key)
        if same is None:
            same = self.commands[uncollected(command.key)] = gathered(())
        same.append(command)
        blocks = _blocks(command.key[1])
        data = b"".join(command.data)
        if blocks is None or command.status != COMMAND_PASSED or command.missing:
            return
        first, count = blocks
        size = len(data) // count
        if size >= SMALLEST_BLOCK and size * count == len(data):
            for number in range(count):
                key = uncollected((command.key[0], first + number))
                self.blocks.setdefault(key, data[number * size : (number + 1) * size])


class ReplayedDrive:
    """Answers commands at the endpoints of an interface. Everything is called on the loop's thread."""

    def __init__(self, name: str, recorded: RecordedDrive) -> None:
        self._name = name
        self._recorded = recorded
        self._in: VirtualEndpoint | None = None
        self._out: VirtualEndpoint | None = None
        self._next: dict[Key, int] = {}
        self._sense = b""
        self._told: set[bytes] = set()
        self._differs = False
        self._announced = self._moved = 0
        self.forget()

    def connect(self, endpoints: Mapping[int, VirtualEndpoint], interface: Interface | None) -> None:
        """The interface's setting is in force, with the endpoints that there are now; None if another one is."""
        bulk = [] if interface is None else [each for each in interface.endpoints if each.type is TransferType.BULK]
        ins = [endpoints.get(each.address) for each in bulk if each.is_in]
        outs = [endpoints.get(each.address) for each in bulk if not each.is_in]
        new = (ins[0] if ins else None, outs[0] if outs else None)
        if new != (self._in, self._out):
            self._in, self._out = new
            self.forget()

    def forget(self) -> None:
        """Forget the command at hand: after a reset, or when the interface is set."""
        self._expects = self._out
        self._step: Callable[[Transfer], None] = self._command
        self._tag = self._left = 0
        self._rest: bytes | memoryview = b""
        self._written = bytearray()
        self._status = COMMAND_PASSED
        self._answer: Command | None = None

    def let_go(self) -> None:
        """Forget what was recorded, in a thread."""
        self._recorded.let_go()

    def rewind(self) -> None:
        """Begin from the start."""
        self.forget()
        self._next.clear()
        self._sense = b""

    def state(self) -> DriveState:
        """What another process has to know."""
        answer = None
        if self._answer is not None:
            lun, block = self._answer.key
            same = self._recorded.commands[self._answer.key]
            answer = NextCommand(lun, block, next(n for n, each in enumerate(same) if each is self._answer))
        return DriveState(
            next(name for name, (step, _) in self._steps.items() if step == self._step),
            self._tag,
            self._announced,
            self._left,
            self._moved,
            bytes(self._rest),
            bytes(self._written),
            self._status,
            self._sense,
            self._differs,
            answer,
            [NextCommand(*key, number) for key, number in self._next.items()],
        )

    def take_state(self, state: DriveState) -> None:
        """Go on where another was, with the endpoints that are connected. Raises StateError."""
        if state.step not in self._steps:
            raise StateError(f"drive.step: there is no {state.step!r}")
        self._step, self._expects = self._steps[state.step]
        self._tag, self._announced, self._left, self._moved = state.tag, state.announced, state.left, state.moved
        self._rest, self._status, self._sense, self._differs = state.rest, state.status, state.sense, state.differs
        self._written[:] = state.written
        if state.answer is not None:
            known = self._recorded.commands.get((state.answer.lun, state.answer.block), [])
            if state.answer.number >= len(known):
                raise StateError(f"drive.answer: {state.answer.block.hex(' ')} was not recorded so often")
            self._answer = known[state.answer.number]
        self._next = {(each.lun, each.block): each.number for each in state.next}

    @property
    def _steps(self) -> dict[str, tuple[Callable[[Transfer], None], VirtualEndpoint | None]]:
        """By name: what is done, and the endpoint whose transfer it is done with."""
        return {
            "command": (self._command, self._out),
            "send": (self._send, self._in),
            "receive": (self._receive, self._out),
            "status": (self._send_status, self._in),
        }

    def process(self, endpoint: VirtualEndpoint) -> bool:
        """Something is queued; False if the endpoint is none of the drive's."""
        if endpoint is not self._in and endpoint is not self._out:
            return False
        while self._expects is not None and self._expects.queue and not self._expects.halted:
            self._step(self._expects.queue.popleft())
        return True

    # -- the command ---------------------------------------------------------------------------------------------------

    def _command(self, transfer: Transfer) -> None:
        cbw = transfer.read()
        if len(cbw) != CBW_LENGTH or int.from_bytes(cbw[:4], "little") != CBW_SIGNATURE or not 1 <= cbw[14] <= 16:
            transfer.complete(_COMPLETED, transfer.length)
            for endpoint in (self._in, self._out):
                if endpoint is not None:
                    endpoint.halt()
            return
        _, self._tag, announced, flags, lun, size, block = _CBW.unpack(cbw)
        key = (lun, block[:size])
        is_in = flags >= 0x80
        self._left = self._announced = announced
        self._answer = self._find(key, is_in)
        data, self._status, self._sense = self._answered(key, self._answer)
        self._rest = data[:announced] if is_in else b""
        self._moved = len(self._rest)
        self._written.clear()
        if not announced:
            self._expects, self._step = self._in, self._send_status
        elif is_in:
            self._expects, self._step = self._in, self._send
        else:
            self._expects, self._step = self._out, self._receive
        transfer.complete(_COMPLETED, CBW_LENGTH)

    def _find(self, key: Key, is_in: bool) -> Command | None:
        """The recorded command that answers, in order."""
        known = self._recorded.commands.get(key)
        if known is None:
            return None
        number = self._next.get(key, 0)
        self._next[key] = number + 1
        answer = known[min(number, len(known) - 1)]
        return answer if answer.is_in == is_in or not answer.announced else None

    def _answered(self, key: Key, answer: Command | None) -> tuple[bytes, int, bytes]:
        """Data, status, and what REQUEST SENSE will say."""
        if key[1][0] == REQUEST_SENSE and self._sense:
            return self._sense, COMMAND_PASSED, b""
        if answer is not None:
            sense = answer.sense or INVALID_COMMAND_OPERATION_CODE.fixed()
            failed = answer.status != COMMAND_PASSED
            return b"".join(answer.data), answer.status, sense if failed else b""
        blocks = _blocks(key[1])
        if blocks is not None and blocks[1] <= MAX_DATA // SMALLEST_BLOCK:
            first, count = blocks
            parts: list[bytes] = []
            for number in range(first, first + count):
                part = self._recorded.blocks.get((key[0], number))
                if part is None:
                    break
                parts.append(part)
            else:
                return b"".join(parts), COMMAND_PASSED, b""
            self._tell(key, f"block {number} was never read")
            return b"", COMMAND_FAILED, UNRECOVERED_READ_ERROR.fixed()
        self._tell(key, "it was never recorded")
        return b"", COMMAND_FAILED, INVALID_COMMAND_OPERATION_CODE.fixed()

    def _tell(self, key: Key, why: str) -> None:
        command = key[1]
        if command in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(command)
        known = islice(self._recorded.commands, MAX_COMPARED)
        near = min(known, key=lambda known: _distance(key, known), default=None)
        closest = f"; the closest that was: {near[1].hex(' ')}" if near is not None else ""
        _log.warning("%s: command %s fails: %s%s", self._name, command.hex(" "), why, closest)

    # -- data and status -----------------------------------------------------------------------------------------------

    def _send(self, transfer: Transfer) -> None:
        count = transfer.write(self._rest[: self._left])
        self._rest = self._rest[count:]
        self._left -= count
        if count < transfer.length or not self._left:
            self._expects, self._step = self._in, self._send_status
        transfer.complete(_COMPLETED, count)

    def _receive(self, transfer: Transfer) -> None:
        if self._is_compared and len(self._written) <= MAX_DATA:  # which is more than was recorded of any
            self._written += transfer.read()[: min(self._left, MAX_DATA + 1)]
        self._left -= min(transfer.length, self._left)
        if not self._left:
            self._expects, self._step = self._in, self._send_status
            self._compare()
        transfer.complete(_COMPLETED, transfer.length)

    @property
    def _is_compared(self) -> bool:
        return self._answer is not None and not self._answer.missing and not self._differs

    def _compare(self) -> None:
        self._moved = self._announced if self._status == COMMAND_PASSED else 0
        if self._answer is None or not self._is_compared:
            return
        recorded = b"".join(self._answer.data)
        if recorded != self._written:
            self._differs = True
            _log.warning(
                "%s: command %s comes with other data than were recorded, from byte %d on; no more is said of such",
                self._name,
                self._answer.key[1].hex(" "),
                first_difference(recorded, self._written),
            )

    def _send_status(self, transfer: Transfer) -> None:
        residue = max(self._announced - self._moved, 0)
        count = transfer.write(_CSW.pack(CSW_SIGNATURE, self._tag, residue, self._status))
        self._expects, self._step = self._out, self._command
        transfer.complete(_COMPLETED, count)


def _command(exchange: Exchange) -> Command | None:
    """The command that a transfer carries, if it is a CBW."""
    data = bytes(exchange.data)
    if exchange.first.is_in or len(data) != CBW_LENGTH or exchange.asked != CBW_LENGTH:
        return None
    signature, _, announced, flags, lun, size, block = _CBW.unpack(data)
    if signature != CBW_SIGNATURE or not 1 <= size <= 16:
        return None
    return started((lun, block[:size]), announced, is_in=flags >= 0x80)


def _is_status(exchange: Exchange) -> bool:
    data = exchange.data
    return (
        exchange.first.is_in and len(data) == CSW_LENGTH and int.from_bytes(bytes(data[:4]), "little") == CSW_SIGNATURE
    )


def _blocks(command: bytes) -> tuple[int, int] | None:
    """The first block and the number of blocks of a command that reads, if it is one (SBC-3 5)."""
    code = command[0]
    if code == READ_10 and len(command) >= 10:
        first, count = command[2:6], command[7:9]
    elif code == READ_12 and len(command) >= 12:
        first, count = command[2:6], command[6:10]
    elif code == READ_16 and len(command) >= 16:
        first, count = command[2:10], command[10:14]
    else:
        return None
    number = int.from_bytes(count, "big")
    return (int.from_bytes(first, "big"), number) if number else None


def _distance(wanted: Key, known: Key) -> tuple[bool, int]:
    different: Iterable[bool] = (a != b for a, b in zip(wanted[1], known[1], strict=False))
    return wanted[1][0] != known[1][0], sum(different)
