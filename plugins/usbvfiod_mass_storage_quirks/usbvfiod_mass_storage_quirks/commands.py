"""The SCSI side of one device, for both transports: which commands it gets, what is changed in its answers, the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

from usbvfiod_core import CannotHandOver

from . import access, scsi
from .quirks import Quirk, Quirks, refused
from .scsi import NO_SENSE, Sense
from .state import CommandSetState, CommandState, lun_of, lun_text

log = logging.getLogger("usbvfiod.mass_storage_quirks")
"""Below `usbvfiod`, so that it is shown with -v."""

LINES_PER_SECOND = 200
"""Of the log of commands; what is more is counted, and the count is told."""

_WRITE_PROTECT = 0x80
_EVPD = 0x01
_BLOCK_LIMITS = 0xB0
_MODE_SENSE = (scsi.MODE_SENSE_6, scsi.MODE_SENSE_10)
_SECTOR = 512

Edit = Callable[["Command", bytearray], bool]
"""Changes the data that a command has given, or what of it came first; says whether it did."""


class Command:
    """A command that is at work. `lun` is what the transport names logical units by, `started` is for the log."""

    __slots__ = ("cdb", "lun", "moved", "started", "tag")

    def __init__(self, tag: int, lun: Hashable, cdb: bytes) -> None:
        self.tag = tag
        self.lun = lun
        self.cdb = cdb
        self.moved = 0
        """Bytes of data that the device has given."""
        self.started = 0.0

    def saved(self) -> CommandState:
        """What another process has to know of it."""
        return CommandState(self.tag, lun_text(self.lun), self.cdb, self.moved)

    @classmethod
    def made_of(cls, state: CommandState) -> Command:
        """The same command, of which the log does not say how long it has taken. Raises CannotHandOver."""
        if len(state.cdb) < 16:
            raise CannotHandOver(f"a command block of {len(state.cdb)} bytes")
        command = cls(state.tag, lun_of(state.lun), state.cdb)
        command.moved = state.moved
        return command


class CommandSet:
    """Judges commands and edits answers as mode and quirks want it.

    guards   whether some commands do not reach the device
    edits    operation codes whose data is looked at on its way to the guest
    logs     whether every command is logged
    plain    operation codes of commands that are allowed as they are
    """

    def __init__(self, name: str, quirks: Quirks, *, readonly: bool) -> None:
        self.name = name
        self.readonly = readonly
        self.quirks = quirks
        self.logs = log.isEnabledFor(logging.DEBUG)
        self.guards = readonly or bool(quirks & _GUARDING)
        self.edits: dict[int, Edit] = {}
        self._types: dict[Hashable, int] = {}
        self._without_mode_sense: set[Hashable] = set()
        self._failed: dict[Hashable, int] = {}  # operation code of the last command that failed
        self._log = _Limit()
        if readonly or Quirk.NO_WP_DETECT in quirks:
            self.edits[scsi.MODE_SENSE_6] = self.edits[scsi.MODE_SENSE_10] = self._mode
        if readonly or quirks & _LIMITING:
            self.edits[scsi.INQUIRY] = self._inquiry
        if quirks & {Quirk.FIX_CAPACITY, Quirk.CAPACITY_HEURISTICS}:
            self.edits[scsi.READ_CAPACITY_10] = self.edits[scsi.SERVICE_ACTION_IN_16] = self._capacity
        if readonly:
            self.edits[scsi.REQUEST_SENSE] = self._sense
        self.plain = frozenset(access.READS - {scsi.LOG_SENSE, *_MODE_SENSE, scsi.PREVENT_ALLOW_MEDIUM_REMOVAL})
        self.plain -= {scsi.VERIFY_10, scsi.VERIFY_12, scsi.VERIFY_16, scsi.REPORT_LUNS}

    @property
    def max_blocks(self) -> int:
        """Sectors of 512 bytes that one command may move, 0 for as many as it likes."""
        if Quirk.MAX_SECTORS_64 in self.quirks:
            return 64
        return 240 if Quirk.MAX_SECTORS_240 in self.quirks else 0

    # -- on the way down ---------------------------------------------------------------------------------------------

    def judge(self, lun: Hashable, cdb: bytes) -> Sense | bytes | None:
        """None: the device gets the command. Sense: it is refused. Bytes: it is answered with this data, well."""
        code = cdb[0]
        if self._failed and code != scsi.REQUEST_SENSE:
            self._failed.pop(lun, None)
        if code in self.plain:
            return None
        sense = refused(self.quirks, cdb)
        if sense is None and self.readonly:
            sense = access.refusal(cdb, self._types.get(lun, 0))
        if sense is not None:
            return sense
        if code == scsi.PREVENT_ALLOW_MEDIUM_REMOVAL and Quirk.NOT_LOCKABLE in self.quirks:
            return b""
        if code in _MODE_SENSE and lun in self._without_mode_sense:
            return _mode_header(cdb)
        return None

    # -- on the way up -----------------------------------------------------------------------------------------------

    def ended(self, command: Command, sense: Sense | None, *, refused: bool = False) -> None:
        """A command is over; `sense` is None if it went well, NO_SENSE if it is not known why it did not."""
        if sense is not None and not refused:
            self._failed[command.lun] = command.cdb[0]
            if sense != NO_SENSE:
                self.failed_with(command.lun, sense)
        if self.logs:
            self._log_command(command, sense, refused)

    def failed_with(self, lun: Hashable, sense: Sense) -> None:
        """The device has said why the last command failed. One that has no MODE SENSE cannot say that it is
        write-protected, so from now on that is said for it."""
        code = self._failed.pop(lun, None)
        if self.readonly and sense.key == 0x5 and code in _MODE_SENSE:
            self._without_mode_sense.add(lun)

    def reset(self) -> None:
        """The device begins anew: perhaps with another medium."""
        self._failed.clear()

    def saved(self) -> CommandSetState:
        """What another process has to know."""
        return CommandSetState(
            {lun_text(lun): type for lun, type in self._types.items()},
            [lun_text(lun) for lun in self._without_mode_sense],
            {lun_text(lun): code for lun, code in self._failed.items()},
        )

    def take(self, state: CommandSetState) -> None:
        """Go on where another was. Raises CannotHandOver."""
        self._types = {lun_of(lun): type for lun, type in state.types.items()}
        self._without_mode_sense = set(map(lun_of, state.without_mode_sense))
        self._failed = {lun_of(lun): code for lun, code in state.failed.items()}

    # -- edits -------------------------------------------------------------------------------------------------------

    def _mode(self, command: Command, data: bytearray) -> bool:
        """The device-specific parameter of a direct-access device (SBC-3 6.5.1)."""
        place = 2 if command.cdb[0] == scsi.MODE_SENSE_6 else 3
        if len(data) <= place:
            return False
        before = data[place]
        data[place] = before | _WRITE_PROTECT if self.readonly else before & ~_WRITE_PROTECT
        return data[place] != before

    def _inquiry(self, command: Command, data: bytearray) -> bool:
        cdb = command.cdb
        if not cdb[1] & _EVPD:
            if data:
                self._types[command.lun] = data[0] & 0x1F
            return False
        if cdb[2] != _BLOCK_LIMITS or len(data) < 16 or not self.max_blocks:
            return False
        # MAXIMUM and OPTIMAL TRANSFER LENGTH (SBC-3 6.6.4), taken to be in blocks of 512 bytes.
        for place in (8, 12):
            given = int.from_bytes(data[place : place + 4], "big")
            if place == 8 or given:
                data[place : place + 4] = min(given or self.max_blocks, self.max_blocks).to_bytes(4, "big")
        return True

    def _capacity(self, command: Command, data: bytearray) -> bool:
        """RETURNED LOGICAL BLOCK ADDRESS is that of the last block (SBC-3 5.15, 5.16)."""
        short = command.cdb[0] == scsi.READ_CAPACITY_10
        if not short and command.cdb[1] & 0x1F != scsi.READ_CAPACITY_16:
            return False
        width = 4 if short else 8
        last = int.from_bytes(data[:width], "big")
        if len(data) < width or not last or (short and last == 0xFFFFFFFF):
            return False
        if Quirk.FIX_CAPACITY not in self.quirks and last & 1:
            return False  # an even number of blocks is believed
        data[:width] = (last - 1).to_bytes(width, "big")
        return True

    def _sense(self, command: Command, data: bytearray) -> bool:
        self.failed_with(command.lun, scsi.parse_sense(data))
        return False

    # -- log ---------------------------------------------------------------------------------------------------------

    def _log_command(self, command: Command, sense: Sense | None, refused: bool) -> None:
        now = time.monotonic()
        skipped = self._log.skipped(now)
        if skipped is None:
            return
        if skipped:
            log.debug("%s: %d commands more", self.name, skipped)
        outcome = f"{(now - command.started) * 1000:.1f} ms" if command.started else ""
        if sense is not None:
            how = "refused" if refused else "failed"
            outcome = f"{outcome} {how}" + (f", {sense}" if sense != NO_SENSE else "")
        log.debug("%s: %s %s", self.name, scsi.describe(command.cdb), outcome.strip())


class _Limit:
    """Lets LINES_PER_SECOND through."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0
        self._skipped = 0

    def skipped(self, now: float) -> int | None:
        """None to say nothing now; otherwise how often that has been the answer since the last line."""
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self._skipped += 1
            return None
        skipped, self._skipped = self._skipped, 0
        return skipped


def _mode_header(cdb: bytes) -> bytes:
    """The answer to MODE SENSE of a write-protected device without mode pages (SPC-4 7.5.5)."""
    if cdb[0] == scsi.MODE_SENSE_6:
        return bytes((3, 0, _WRITE_PROTECT, 0))[: cdb[4]]
    return bytes((0, 6, 0, _WRITE_PROTECT, 0, 0, 0, 0))[: int.from_bytes(cdb[7:9], "big")]


_LIMITING = frozenset((Quirk.MAX_SECTORS_64, Quirk.MAX_SECTORS_240))
_GUARDING = _LIMITING | frozenset(
    (
        Quirk.NO_READ_DISC_INFO,
        Quirk.NO_READ_CAPACITY_16,
        Quirk.NO_REPORT_OPCODES,
        Quirk.NO_REPORT_LUNS,
        Quirk.NO_SAME,
        Quirk.NO_ATA_1X,
        Quirk.NOT_LOCKABLE,
        Quirk.BAD_SENSE,
    )
)
