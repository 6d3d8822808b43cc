"""USB Attached SCSI between guest and device: commands with tags, followed by their information units.

Where commands are guarded, the device is given inspected copies of information units only; in read-only mode nothing
of the guest's data reaches it, as no command that is allowed has any. A refused command is answered by a SENSE IU over
the status pipe. With streams, the transfer for its data is ended before: a driver that has to take it back, as Linux
has, calls that an error of the transport. So transfers of the data pipes wait until their command has been judged.

For the answer a transfer of the status pipe must be at hand, and not with the device. So the device is given no more of
them than it has answers to send, on each stream, or together where there are no streams; the others wait here.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from usbvfiod_core import InterceptedTransfer, TransferStatus

from . import information_units as iu
from .commands import Command, CommandSet, log
from .information_units import CommandUnit, StatusUnit, TaskManagement
from .scsi import Sense
from .state import LineState, TaskState, UasState
from .transfers import in_flight

OWED_LIMIT = 512
"""Answers of our own that the guest has not fetched, beyond which no information unit is taken."""

_COMPLETED = TransferStatus.COMPLETED
_QUERIES = (iu.QUERY_TASK, iu.QUERY_TASK_SET, iu.QUERY_ASYNCHRONOUS_EVENT)


class _Line:
    """One stream of the status pipe, or all of it without streams."""

    __slots__ = ("answers", "held", "sent")

    def __init__(self) -> None:
        self.answers: deque[bytes] = deque()  # of our own
        self.held: InterceptedTransfer | None = None
        self.sent = 0  # transfers that the device has


class _Task(NamedTuple):
    """What the device owes an answer for: a command or a task management function."""

    command: Command | None
    management: TaskManagement | None = None


class Uas:
    """One interface with the UAS setting. `pipes` are the addresses of its endpoints by bPipeID."""

    def __init__(self, commands: CommandSet, pipes: dict[int, int], *, streams: bool) -> None:
        self.commands = commands
        self._guards = commands.guards
        self._streams = streams
        self._delay = 0.0
        self.down = {
            pipes[iu.COMMAND_PIPE]: self._information_unit,
            pipes[iu.STATUS_PIPE]: self._fetch,
            pipes[iu.DATA_IN_PIPE]: self._data_in,
            pipes[iu.DATA_OUT_PIPE]: self._data_out,
        }
        """By endpoint, what takes the guest's transfers; `up` those that the device has ended."""
        self._data_pipes = (
            (pipes[iu.DATA_IN_PIPE], self._data_in),
            (pipes[iu.DATA_OUT_PIPE], self._data_out),
        )
        self.up = {pipes[iu.STATUS_PIPE]: self._fetched, pipes[iu.DATA_IN_PIPE]: self._data_came}
        self._tasks: dict[int, _Task] = {}
        self._lines: dict[int, _Line] = {}
        self._given: set[InterceptedTransfer] = set()  # of the status pipe, with the device
        self._owed = 0
        self._held: dict[tuple[int, int], InterceptedTransfer] = {}  # of the data pipes, by endpoint and stream
        self._refused = 0  # the tag of a command that is being refused
        self._moving = 0  # without streams: the tag whose data is on the data-in pipe

    # -- from the interceptor ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The interface does not have this setting any more, or begins anew."""
        held = [line.held for line in self._lines.values()] + list(self._held.values())
        self._forget()
        for transfer in held:
            if transfer is not None and in_flight(transfer):
                transfer.refuse(TransferStatus.STALL)

    def begin(self, delay: float) -> None:
        """The interface has this setting from now on; its first command waits for `delay` seconds."""
        self._delay = delay
        self._forget()
        self.commands.reset()

    # -- going on in another process, while nothing is in flight -----------------------------------------------------

    def saved(self) -> UasState:
        """What it is at."""
        tasks = []
        for tag, (command, management) in self._tasks.items():
            task = TaskState(tag, None if command is None else command.saved())
            if management is not None:
                task.function, task.managed, task.lun = management.function, management.managed, management.lun
            tasks.append(task)
        lines = [LineState(number, list(line.answers)) for number, line in self._lines.items() if line.answers]
        return UasState(tasks, lines, self._moving, self._delay)

    def take(self, state: UasState) -> None:
        """Go on, as a new one, where another was. Raises CannotHandOver."""
        for task in state.tasks:
            command = management = None
            if task.command is not None:
                command = Command.made_of(task.command)
            else:
                management = TaskManagement(task.tag, task.function, task.managed, task.lun)
            self._tasks[task.tag] = _Task(command, management)
        for each in state.lines:
            self._lines.setdefault(each.stream, _Line()).answers.extend(each.answers)
            self._owed += len(each.answers)
        self._moving, self._delay = state.moving, state.delay

    def _forget(self) -> None:
        self._tasks.clear()
        self._lines.clear()
        self._given.clear()
        self._held.clear()
        self._owed = 0

    # -- the command pipe --------------------------------------------------------------------------------------------

    def _information_unit(self, transfer: InterceptedTransfer) -> None:
        if self._guards:
            if not 4 <= transfer.length <= 32 + 252 or self._owed >= OWED_LIMIT:
                log.debug("%s: %d bytes are not an information unit", self.commands.name, transfer.length)
                transfer.refuse(TransferStatus.STALL)
                return
            transfer.make_private()
        windows = transfer.windows
        data = windows[0] if len(windows) == 1 else transfer.read()
        unit = CommandUnit.unpack(data)
        if unit is not None:
            self._command(transfer, unit)
            return
        management = TaskManagement.unpack(data)
        if management is not None:
            self._pass(transfer, management.tag, _Task(None, management))
        elif self._guards:
            tag = iu.header(data)[1]
            transfer.answer()
            self._answer(tag, iu.response(tag, iu.INVALID_INFORMATION_UNIT))

    def _command(self, transfer: InterceptedTransfer, unit: CommandUnit) -> None:
        command = Command(unit.tag, unit.lun, unit.cdb)
        if self.commands.logs:
            command.started = time.monotonic()
        verdict = self.commands.judge(unit.lun, unit.cdb) if self._guards else None
        if verdict is None or (verdict and not isinstance(verdict, Sense)):
            # Data of our own would have to go over the data-in pipe, where the guest's transfer is with the device.
            self._pass(transfer, unit.tag, _Task(command))
            return
        sense = verdict if isinstance(verdict, Sense) else None
        self.commands.ended(command, sense, refused=sense is not None)
        transfer.answer()
        if self._held and self._streams:
            self._judged(unit.tag, refused=True)
        code = iu.GOOD if sense is None else iu.CHECK_CONDITION
        self._answer(unit.tag, iu.status(unit.tag, code, sense))

    def _pass(self, transfer: InterceptedTransfer, tag: int, task: _Task) -> None:
        self._tasks[tag] = task
        if self._held:
            self._judged(tag, refused=False)
        if self._delay:
            delay, self._delay = self._delay, 0.0
            transfer.delay(delay)
        if self._guards:
            self._feed(self._line(tag))

    # -- the status pipe ---------------------------------------------------------------------------------------------

    def _line(self, tag: int) -> _Line:
        return self._lines.setdefault(tag if self._streams else 0, _Line())

    def _owes(self, number: int) -> int:
        """How many answers the device may send on a stream."""
        return int(number in self._tasks) if self._streams else len(self._tasks)

    def _fetch(self, transfer: InterceptedTransfer) -> None:
        if not self._guards:
            return
        line = self._lines.setdefault(transfer.stream_id, _Line())
        line.held = transfer
        if not self._offer(line):
            transfer.hold()

    def _feed(self, line: _Line) -> None:
        """Something has changed: see what the transfer that waits is for."""
        while line.held is not None and in_flight(line.held) and self._offer(line):
            pass

    def _offer(self, line: _Line) -> bool:
        """Find use for the transfer that waits on a line."""
        transfer = line.held
        assert transfer is not None
        if line.answers:
            answer = line.answers.popleft()
            self._owed -= 1
            line.held = None
            transfer.answer(answer[: transfer.length])
            return True
        if line.sent < self._owes(transfer.stream_id):
            line.sent += 1
            line.held = None
            self._given.add(transfer)
            transfer.pass_on()
            return True
        return False

    def _answer(self, tag: int, unit: bytes) -> None:
        line = self._line(tag)
        line.answers.append(unit)
        self._owed += 1
        self._feed(line)

    def _fetched(self, transfer: InterceptedTransfer) -> None:
        line = self._lines.get(transfer.stream_id)
        if transfer in self._given:
            self._given.discard(transfer)
            if line is not None:
                line.sent -= 1
        if transfer.status is _COMPLETED:
            unit = StatusUnit.unpack(transfer.read())
            if unit is not None:
                self._answered(unit)
        if line is not None:
            self._feed(line)

    def _answered(self, unit: StatusUnit) -> None:
        if unit.kind == iu.READ_READY:
            self._moving = unit.tag
            return
        if unit.kind == iu.WRITE_READY:
            return
        task = self._tasks.pop(unit.tag, None)
        if task is None:
            return
        if task.command is not None:
            good = unit.kind == iu.SENSE and unit.code == iu.GOOD
            if self.commands.logs or not good:
                self.commands.ended(task.command, None if good else unit.sense)
        management = task.management
        if management is None or unit.code not in (iu.FUNCTION_COMPLETE, iu.FUNCTION_SUCCEEDED):
            return
        if management.function == iu.ABORT_TASK:
            self._tasks.pop(management.managed, None)
        elif management.function not in _QUERIES:
            lun = None if management.function == iu.I_T_NEXUS_RESET else management.lun
            for tag, each in list(self._tasks.items()):
                if each.command is not None and lun in (None, each.command.lun):
                    del self._tasks[tag]

    # -- data --------------------------------------------------------------------------------------------------------

    def _data_in(self, transfer: InterceptedTransfer) -> None:
        if self._guards and self._streams:
            self._data(transfer, passes=transfer.stream_id in self._tasks)

    def _data_out(self, transfer: InterceptedTransfer) -> None:
        if self._guards and (self._streams or self.commands.readonly):
            passes = transfer.stream_id in self._tasks or not self._streams
            self._data(transfer, passes=passes and not self.commands.readonly)

    def _data(self, transfer: InterceptedTransfer, *, passes: bool) -> None:
        number = transfer.stream_id
        if number and number == self._refused:
            transfer.answer()  # what is given is thrown away, and what is asked for is nothing
        elif passes:
            transfer.pass_on()
        else:
            self._held[transfer.endpoint, number] = transfer
            transfer.hold()

    def _judged(self, tag: int, *, refused: bool) -> None:
        """Go on with the data of a command that has waited."""
        self._refused = tag if refused else 0
        for address, take in self._data_pipes:
            held = self._held.pop((address, tag), None)
            if held is not None and in_flight(held):
                take(held)
        self._refused = 0

    def _data_came(self, transfer: InterceptedTransfer) -> None:
        task = self._tasks.get(transfer.stream_id if self._streams else self._moving)
        command = task.command if task is not None else None
        if command is None:
            return
        edit = self.commands.edits.get(command.cdb[0])
        # What was taken back in the middle, the guest has the beginning of.
        moved = transfer.actual and transfer.status in (_COMPLETED, TransferStatus.CANCELLED)
        if edit is not None and not command.moved and moved:
            data = bytearray(transfer.read())
            if edit(command, data):
                transfer.replace(data)
        command.moved += transfer.actual
