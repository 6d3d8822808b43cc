"""The bulk-only transport between guest and device: one command at a time, followed step by step.

Where commands are guarded, the device is given nothing but whole, valid command block wrappers that were inspected, as
copies that the guest cannot change meanwhile, and the data of commands that may have some: in read-only mode none. What
comes at the wrong time waits, as it would for a device that answers NAK. A wrapper that is none halts both endpoints
until the guest does Reset Recovery, as the transport has it for a device (6.6.1).

A refused command gets the data stage that it announced, taken and thrown away or filled with zeros (6.7), then a status
of failed with all of it as residue, and its sense data is the answer to the next REQUEST SENSE of that logical unit.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from usbvfiod_core import InterceptedTransfer, TransferStatus

from . import scsi
from .commands import Command, CommandSet, log
from .information_units import DATA_IN_PIPE, DATA_OUT_PIPE
from .quirks import Quirk
from .scsi import INVALID_FIELD_IN_CDB, NO_SENSE, Sense
from .state import State
from .transfers import in_flight
from .wrappers import (
    CBW_LENGTH,
    COMMAND_FAILED,
    COMMAND_PASSED,
    CSW_LENGTH,
    MOST_SENSE,
    CommandBlockWrapper,
    CommandStatusWrapper,
)

if TYPE_CHECKING:
    from .recovery import Recovery
    from .splitting import Splitting

_COMPLETED = TransferStatus.COMPLETED
_CANCELLED = TransferStatus.CANCELLED
_STALL = TransferStatus.STALL
_DESC = 0x01


class BulkOnly:
    """One bulk-only interface. By endpoint, `down` takes the guest's transfers, `up` those that the device has ended.

    recovery    what deals with a device that does not answer, None if nobody does
    splitting   what deals with commands that are too long, None if none is
    """

    def __init__(self, commands: CommandSet, pipes: Mapping[int, int]) -> None:
        self.commands = commands
        self.down = {pipes[DATA_IN_PIPE]: self.give_in, pipes[DATA_OUT_PIPE]: self.take_out}
        self.up = {pipes[DATA_IN_PIPE]: self._in_ended, pipes[DATA_OUT_PIPE]: self._out_ended}
        self.state = State.READY
        self.recovery: Recovery | None = None
        self.splitting: Splitting | None = None
        self.command: Command | None = None
        self.wrapper: InterceptedTransfer | None = None
        """The transfer that has brought it."""
        self.tag = 0
        self.sent: list[InterceptedTransfer] = []
        """What the device has of the command at hand, in order."""
        self.in_left = 0
        """Bytes of data that the guest still expects; `out_left` what it still has to give."""
        self.out_left = 0
        self._guards = commands.guards
        self._residues = Quirk.IGNORE_RESIDUE in commands.quirks
        self._reads_status = commands.logs or self._residues
        self._edits = commands.edits
        self._plain = commands.plain
        self._shortens = Quirk.BAD_SENSE in commands.quirks
        self._logs = commands.logs
        self.delay = 0.0
        self._delayed: InterceptedTransfer | None = None  # the wrapper, until that is over
        self._delayed_since = 0.0
        self._old: set[InterceptedTransfer] = set()  # with the device since before a reset
        self._held_in: InterceptedTransfer | None = None
        self._held_out: InterceptedTransfer | None = None
        self.out_due = 0  # bytes of data that the device has not taken yet, and that the guest has or had to give
        self._asked = 0  # bytes of data for which no transfer has been given to the device yet
        self._status_asked = False
        self.shortened = 0  # how much less data the device was told of than the guest has announced
        self.senses: dict[Hashable, Sense] = {}
        self.own_data = b""
        self.own_residue = 0
        self.own_status = COMMAND_PASSED

    # -- from the interceptor ----------------------------------------------------------------------------------------

    def begin(self, delay: float) -> None:
        """The interface has this setting from now on; its first command waits for `delay` seconds."""
        self.delay = delay
        self.reset()

    def reset(self) -> None:
        """The device has forgotten the command: Bulk-Only Mass Storage Reset, or the setting was chosen anew."""
        if self.recovery is not None:
            self.recovery.forget()
        if self.splitting is not None:
            self.splitting.forget()
        self.command = self.wrapper = None
        self._old.update(self.sent)
        self._old = {each for each in self._old if in_flight(each)}
        self.sent.clear()
        self.senses.clear()
        self.commands.reset()
        self._ready()
        self.proceed()

    def stop(self) -> None:
        """The interface does not have this setting any more."""
        self.state = State.WEDGED
        self.command = None
        self._refuse_held()

    # -- for recovery and splitting ----------------------------------------------------------------------------------

    @property
    def waits_for_device(self) -> bool:
        """Whether the device works on a command of the guest."""
        return self.state is State.PASSED

    def busy(self) -> None:
        """The device is used on our own account until `answer`; what the guest sends meanwhile waits."""
        self.state = State.BUSY

    def answer(self, sense: Sense | None, data: bytes = b"", *, residue: int | None = None, own: bool = True) -> None:
        """The rest of the command at hand goes without the device: `data` and GOOD, or failed because of `sense`, which
        the device can say itself unless it is our `own`. `residue` is of what is left if nothing is said."""
        if residue is None:
            residue = self.in_left - len(data) if self.in_left else self.out_left if sense is not None else 0
        self.own_data, self.own_residue = data, residue
        self.own_status = COMMAND_PASSED if sense is None else COMMAND_FAILED
        if sense is not None and own and self.command is not None:
            self.senses[self.command.lun] = sense
        self.state = State.ANSWERING

    def answered(self, sense: Sense | None, *, refused: bool = False) -> None:
        """What was to be done before the answer is done."""
        command, self.command = self.command, None
        if command is not None:
            self.commands.ended(command, sense, refused=refused)
        self.proceed()

    def not_taken(self) -> None:
        """The device has not taken the wrapper, which was taken back: it is as if it had not come yet."""
        self.command = None
        self._ready()

    def proceed(self) -> None:
        """Go on with what was held."""
        held, self._held_out = self._held_out, None
        if held is not None and in_flight(held):
            self.take_out(held)
            if held in self.sent:  # and not answered
                held.pass_on()
        held, self._held_in = self._held_in, None
        if held is not None and in_flight(held):
            self.give_in(held)
            if held in self.sent:
                held.pass_on()

    # -- to the device -----------------------------------------------------------------------------------------------

    def take_out(self, transfer: InterceptedTransfer) -> None:
        """A transfer of the guest on the OUT endpoint."""
        if self._delayed is not None:
            self.look_at_delayed()
        state = self.state
        if state is State.READY:
            self._wrapper(transfer)
        elif state is State.PASSED:
            if self.out_left:
                self.out_left -= min(transfer.length, self.out_left)
                self.sent.append(transfer)
            elif self._guards:
                self._hold_out(transfer)
            else:
                self._wrapper(transfer)  # guest and device agree on something that is not understood here
        elif state is State.ANSWERING and self.out_left:
            self.out_left -= min(transfer.length, self.out_left)
            transfer.answer()
            if not self.out_left:
                self.proceed()
        elif state is State.BUSY and self.splitting is not None and self.splitting.collects(transfer):
            pass
        elif state is State.WEDGED:
            transfer.refuse(_STALL)
        else:
            self._hold_out(transfer)

    def _wrapper(self, transfer: InterceptedTransfer) -> None:
        if transfer.length != CBW_LENGTH:
            self._malformed(transfer)
            return
        if self._guards:
            transfer.make_private()
        windows = transfer.windows
        wrapper = CommandBlockWrapper.unpack(windows[0] if len(windows) == 1 else transfer.read())
        if wrapper is None:
            self._malformed(transfer)
            return
        command = self.command = Command(wrapper.tag, wrapper.lun, wrapper.cdb)
        self.wrapper = transfer
        if self._logs:
            command.started = time.monotonic()
        self.tag = wrapper.tag
        self.in_left, self.out_left = (wrapper.length, 0) if wrapper.is_in else (0, wrapper.length)
        self.out_due, self.shortened = self.out_left, 0
        self.count_in()
        if not self._guards:
            self._pass(transfer)
            return
        plain = wrapper.cdb[0] in self._plain and not self.senses and (wrapper.is_in or not wrapper.length)
        verdict = None if plain else self._judge(wrapper)
        if verdict is None:
            if self.splitting is not None and self.splitting.takes(wrapper):
                self.busy()
                self.splitting.begin()
                transfer.answer()
                return
            if self._shortens:
                self._shorten_sense(transfer, wrapper)
            self._pass(transfer)
        elif self._old or any(map(in_flight, self.sent)):
            # A transfer that the answer would have to go to is with the device, where the guest put it too early.
            self._wedge(transfer, "data was asked for before there was a command")
        else:
            sense = verdict if isinstance(verdict, Sense) else None
            self.answer(sense, verdict[: wrapper.length] if not isinstance(verdict, Sense) else b"")
            transfer.answer()
            self.answered(sense, refused=sense is not None)

    def _judge(self, wrapper: CommandBlockWrapper) -> Sense | bytes | None:
        cdb, lun = wrapper.cdb, wrapper.lun
        pending = self.senses.pop(lun, None) if self.senses else None
        if pending is not None and cdb[0] == scsi.REQUEST_SENSE:
            return (pending.descriptor() if cdb[1] & _DESC else pending.fixed())[: cdb[4]]
        commands = self.commands
        verdict = commands.judge(lun, cdb)
        if verdict is None and wrapper.length and not wrapper.is_in and commands.readonly:
            return INVALID_FIELD_IN_CDB  # no command that reads has data for the device
        return verdict

    def _pass(self, transfer: InterceptedTransfer) -> None:
        self.state = State.PASSED
        self.sent.append(transfer)
        if self.delay:
            self._delayed, self._delayed_since = transfer, transfer.path.interceptor.loop.time()
            transfer.delay(self.delay)
        if self.recovery is not None:
            self.recovery.watch()
        if self._held_in is not None:
            self.proceed()

    def look_at_delayed(self) -> None:
        """Whether the first wrapper has gone, or was taken back before, of which nobody is told."""
        transfer, taken_back = self._delayed, self._delayed in self.sent
        if transfer is None or (taken_back and in_flight(transfer)):
            return
        self._delayed = None
        if taken_back:
            self.sent.remove(transfer)
            self.not_taken()
            waited = transfer.path.interceptor.loop.time() - self._delayed_since
            self.delay = max(self.delay - waited, 0.0)
        else:
            self.delay = 0.0

    def _shorten_sense(self, transfer: InterceptedTransfer, wrapper: CommandBlockWrapper) -> None:
        if wrapper.cdb[0] == scsi.REQUEST_SENSE and wrapper.is_in and wrapper.length > MOST_SENSE:
            transfer.replace(wrapper.with_less_sense().pack())
            self.shortened = wrapper.length - MOST_SENSE

    def _malformed(self, transfer: InterceptedTransfer) -> None:
        if self._guards:
            self._wedge(transfer, f"{transfer.length} bytes are not a command block wrapper")
        else:
            self.sent.append(transfer)

    def _wedge(self, transfer: InterceptedTransfer, why: str) -> None:
        log.debug("%s: %s; halted until Reset Recovery", self.commands.name, why)
        self.state = State.WEDGED
        self.command = None
        self._refuse_held()
        transfer.refuse(_STALL)

    def _refuse_held(self) -> None:
        for held in (self._held_out, self._held_in):
            if held is not None and in_flight(held):
                held.refuse(_STALL)
        self._held_out = self._held_in = None

    def _hold_out(self, transfer: InterceptedTransfer) -> None:
        self._held_out = transfer
        transfer.hold()

    # -- to the guest ------------------------------------------------------------------------------------------------

    def give_in(self, transfer: InterceptedTransfer) -> None:
        """A transfer of the guest on the IN endpoint."""
        if self._delayed is not None:
            self.look_at_delayed()
        state = self.state
        if not self._guards and state in (State.READY, State.PASSED):
            self.sent.append(transfer)
        elif state is State.PASSED and not self._status_asked:
            if self._asked:
                self._asked -= min(transfer.length, self._asked)
            else:
                self._status_asked = True
            self.sent.append(transfer)
        elif state is State.ANSWERING and not self.out_left:
            self._answer_in(transfer)
        elif state is State.WEDGED:
            transfer.refuse(_STALL)
        else:
            self._held_in = transfer
            transfer.hold()

    def _answer_in(self, transfer: InterceptedTransfer) -> None:
        left, length = self.in_left, transfer.length
        if not left:
            wrapper = CommandStatusWrapper(self.tag, self.own_residue, self.own_status).pack()
            self._ready()
            if length < CSW_LENGTH:
                transfer.refuse(TransferStatus.BABBLE)
            else:
                transfer.answer(wrapper)
            self.proceed()
            return
        size = min(length, left)
        part, self.own_data = self.own_data[:size], self.own_data[size:]
        if self.own_status == COMMAND_PASSED:
            self.in_left = left - size if len(part) == length else 0  # a short packet ends the data stage
        else:
            self.in_left = left - size
            part += bytes(size - len(part))
        transfer.answer(part)

    def _in_ended(self, transfer: InterceptedTransfer) -> None:
        if self._is_followed(transfer):
            if self.in_left:
                self._data_came(transfer)
            else:
                self._status_came(transfer)

    def _out_ended(self, transfer: InterceptedTransfer) -> None:
        if not self._is_followed(transfer):
            return
        taken_back = transfer.status is _CANCELLED
        if transfer is not self.wrapper:
            self.out_due -= min(transfer.actual, self.out_due)
            if taken_back:  # the guest sends the rest again, or gives up
                self.out_left = max(self.out_due - sum(each.length for each in self.sent if not each.is_in), 0)
        elif taken_back and transfer.actual < transfer.length:
            self.not_taken()
        if transfer.status is not _COMPLETED and not taken_back and not self.out_left and not self.sent:
            self._over(NO_SENSE)  # the device would not have the wrapper

    def _is_followed(self, transfer: InterceptedTransfer) -> bool:
        """Whether a transfer that has come back is of the command at hand, and tells of it."""
        try:
            self.sent.remove(transfer)
        except ValueError:
            self._old.discard(transfer)
            return False
        if self.recovery is not None and self.recovery.takes(transfer):
            return False
        return self.state is State.PASSED

    def _data_came(self, transfer: InterceptedTransfer) -> None:
        command = self.command
        actual = transfer.actual
        if transfer.status is _STALL:
            self.in_left = self._asked = 0
            return
        if command is not None and actual and transfer.status in (_COMPLETED, _CANCELLED):
            edit = self._edits.get(command.cdb[0])
            if edit is not None and not command.moved:
                data = bytearray(transfer.read())
                if edit(command, data):
                    transfer.replace(data)
            command.moved += actual
        self.in_left -= min(actual, self.in_left)
        if transfer.status is _CANCELLED:
            self.count_in()
        if actual < transfer.length and transfer.status is _COMPLETED:
            self.in_left = self._asked = 0
            if actual == CSW_LENGTH:
                # Some devices leave the data stage out, and the guest's driver knows them.
                wrapper = CommandStatusWrapper.unpack(transfer.read())
                if wrapper is not None and wrapper.tag == self.tag:
                    self._status_came(transfer)

    def count_in(self) -> None:
        """Which of the data and the status are asked for by what the device has."""
        self._asked, self._status_asked = self.in_left, False
        for each in self.sent:
            if each.is_in and self._asked:
                self._asked -= min(each.length, self._asked)
            elif each.is_in:
                self._status_asked = True

    def _status_came(self, transfer: InterceptedTransfer) -> None:
        if transfer.status is not _COMPLETED:
            self._status_asked = False  # the guest asks again, or gives up
            return
        command = self.command
        if not self._reads_status and not self.shortened and (command is None or command.cdb[0] not in self._edits):
            self._over(None)  # how it went is between guest and device
            return
        wrapper = CommandStatusWrapper.unpack(transfer.read())
        sense: Sense | None = NO_SENSE
        if wrapper is not None and wrapper.tag == self.tag and wrapper.status <= COMMAND_FAILED:
            sense = None if wrapper.status == COMMAND_PASSED else NO_SENSE
            residue = wrapper.residue + self.shortened
            if sense is None and self._residues:
                residue = 0
            if residue != wrapper.residue:
                transfer.replace(wrapper._replace(residue=residue).pack())
        self._over(sense)

    def _over(self, sense: Sense | None) -> None:
        command, self.command = self.command, None
        if command is not None and (self._logs or sense is not None):
            self.commands.ended(command, sense)
        self._ready()
        if self._held_in is not None or self._held_out is not None:
            self.proceed()

    def _ready(self) -> None:
        self.state = State.READY
        self.in_left = self.out_left = 0
        self._status_asked = False
