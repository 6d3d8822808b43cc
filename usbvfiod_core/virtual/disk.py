"""A SCSI direct-access disk on an image (SPC-4, SBC-3): what each command asks for and how it is refused.

The disk moves no data and knows no USB. `execute` looks at a command descriptor block and says, as a `Command`, what
shall be moved between the driver and the image; the transport does that and reports what failed. A transport may have
several commands at work; it keeps those in order whose blocks overlap, and takes `sense` as soon as one has failed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import Final

from . import inquiry, operations, scsi
from .command import COMPARE, FAILED, GOOD, READ, RECEIVE, SEND, WRITE, Command
from .image import Image
from .inquiry import Identity
from .mode import ModePages
from .scsi import Sense

_CDB_6: Final = Struct(">BBHBB")
_CDB_10: Final = Struct(">BBIBHB")
_CDB_12: Final = Struct(">BBIIBB")
_CDB_16: Final = Struct(">BBQIBB")

_PROTECT: Final = 0xE0  # RDPROTECT, WRPROTECT, VRPROTECT: there is no protection information
_FUA: Final = 0x08
_NDOB: Final = 0x01
_PARAMETER_LIMIT: Final = 4096
_Handler = Callable[[bytes], Command]


class Disk:
    """Logical unit 0. `sense` is what the last command left for REQUEST SENSE."""

    def __init__(self, image: Image, *, serial: str, removable: bool = True) -> None:
        self.image = image
        self.block_size = image.block_size
        self.blocks = image.size // image.block_size
        self.identity = Identity(serial, removable, image.block_size, thin=not image.readonly)
        self.mode = ModePages(self.blocks, self.block_size, write_protected=image.readonly)
        self.sense = scsi.NO_SENSE
        self._pages = self.identity.pages()
        self.loaded_changed: Callable[[bool], object] = lambda loaded: None
        """Called when the driver has ejected the medium, with False, and when it is there again, with True."""
        self.storage_failed: Callable[[OSError], object] = lambda error: None
        """Called when a flush has failed, and with it all that come (`Image.sync`)."""
        self._storage_has_failed = False
        self.loaded = True
        """Whether the medium is there, which a driver may eject."""
        self.removal_prevented = False
        self.attention: Sense | None = None
        """A unit attention that the next command is told of."""
        self._exceptional = False  # not loaded, or a unit attention is pending
        self._handlers: dict[int, _Handler] = {}
        self._actions: dict[tuple[int, int], _Handler] = {}
        for row in operations.OPERATIONS:
            if row.action is None:
                self._handlers[row.code] = getattr(self, row.name)
            else:
                self._actions[row.code, row.action] = getattr(self, row.name)

    def go_on(self, sense: Sense, attention: Sense | None, *, loaded: bool, removal_prevented: bool) -> None:
        """Of a new disk: it has come to this in another process."""
        self.sense = scsi.NO_SENSE if sense == scsi.NO_SENSE else sense
        self.attention = attention
        self.loaded, self.removal_prevented = loaded, removal_prevented
        self._exceptional = not loaded or attention is not None
        self._storage_has_failed = self.image.failure is not None

    def execute(self, cdb: bytes, lun: int = 0) -> Command:
        """Begin the command in `cdb` (16 bytes, zeros behind a shorter one). Nothing has been moved when it returns."""
        code = cdb[0]
        if self._exceptional or lun:
            refusal = self._refusal(cdb, lun)
            if refusal is not None:
                return refusal
        handler = self._handlers.get(code)
        if handler is None:
            handler = self._actions.get((code, cdb[1] & 0x1F))
            if handler is None:
                return self.fail(scsi.INVALID_COMMAND_OPERATION_CODE)
        if code != scsi.REQUEST_SENSE:
            self.sense = scsi.NO_SENSE
        return handler(cdb)

    def fail(self, sense: Sense) -> Command:
        """End a command with CHECK CONDITION."""
        self.sense = sense
        return FAILED

    def image_failed(self, error: BaseException, *, writing: bool, offset: int = 0) -> None:
        """The image could not be read or written at `offset`: CHECK CONDITION, as sense says."""
        code = error.errno if isinstance(error, OSError) else None
        failure = self.image.failure
        if failure is not None and not self._storage_has_failed:
            self._storage_has_failed = True
            self.storage_failed(failure)
        if writing and code in (errno.ENOSPC, errno.EDQUOT):
            self.sense = scsi.SPACE_ALLOCATION_FAILED
        elif writing and code in (errno.EROFS, errno.EPERM, errno.EACCES):
            self.sense = scsi.WRITE_PROTECTED
        else:
            sense = scsi.WRITE_ERROR if writing else scsi.UNRECOVERED_READ_ERROR
            self.sense = sense._replace(information=offset // self.block_size)

    def miscompared(self) -> None:
        """The driver's data was not what the image holds."""
        self.sense = scsi.MISCOMPARE_DURING_VERIFY

    def take_sense(self) -> Sense:
        """Why the last command failed, for a transport that hands it over with the status; it is not kept then."""
        sense, self.sense = self.sense, scsi.NO_SENSE
        return sense

    def logical_unit_reset(self, attention: Sense) -> None:
        """A reset by task management (SAM-5 6.3.3): the mode pages are as at first, and the next command is told."""
        self.reset()
        self.mode.write_cache = True
        self.attention = attention
        self._exceptional = True

    def reset(self) -> None:
        """The port was reset: sense, unit attention and the prevention of removal are gone (SPC-4 6.14)."""
        self.sense = scsi.NO_SENSE
        self.attention = None
        self.removal_prevented = False
        self._exceptional = not self.loaded

    def power_on(self) -> None:
        """As when the disk was plugged in: the medium is there, whatever a driver has done with it."""
        self.mode.write_cache = True
        self._load(True)
        self.reset()

    def _load(self, loaded: bool) -> None:
        if loaded is not self.loaded:
            self.loaded = loaded
            self.loaded_changed(loaded)

    # -- refusals that hold for most commands (SPC-4 5.3.3, 5.8, 5.14) -------------------------------------------------

    def _refusal(self, cdb: bytes, lun: int) -> Command | None:
        code = cdb[0]
        if lun:
            if code == scsi.INQUIRY:
                return self._send(inquiry.no_logical_unit(), int.from_bytes(cdb[3:5], "big"))
            return self.fail(scsi.LOGICAL_UNIT_NOT_SUPPORTED)
        if code in (scsi.INQUIRY, scsi.REPORT_LUNS, scsi.REQUEST_SENSE):
            return None
        if self.attention is not None:
            sense, self.attention = self.attention, None
            self._exceptional = not self.loaded
            return self.fail(sense)
        return self.fail(scsi.MEDIUM_NOT_PRESENT) if code in operations.NEEDS_MEDIUM else None

    def _send(self, data: bytes, allocation: int) -> Command:
        data = data[:allocation]
        return Command(SEND, length=len(data), data=data) if data else GOOD

    # -- reading and writing (SBC-3 5.8 to 5.11, 5.22, 5.27, 5.32 to 5.35) ---------------------------------------------

    def read(self, cdb: bytes) -> Command:
        flags, block, count = _extent(cdb)
        return self._range(READ, block, count, flags & _PROTECT)

    def write(self, cdb: bytes) -> Command:
        flags, block, count = _extent(cdb)
        return self._write(flags, block, count)

    def write_and_verify(self, cdb: bytes) -> Command:
        flags, block, count = _extent(cdb)
        return self._write(flags & _PROTECT | _FUA, block, count)

    def verify(self, cdb: bytes) -> Command:
        flags, block, count = _extent(cdb)
        compare = flags >> 1 & 3  # BYTCHK
        if compare > 1:
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        command = self._range(COMPARE, block, count, flags & _PROTECT)
        return command if compare or command.failed else GOOD

    def _range(self, kind: int, block: int, count: int, protect: int) -> Command:
        if protect:
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        if block + count > self.blocks:
            return self.fail(scsi.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE._replace(information=block))
        if not count:
            return GOOD
        size = self.block_size
        command = Command(kind, length=count * size)
        command.offset = block * size
        return command

    def _write(self, flags: int, block: int, count: int) -> Command:
        if self.image.readonly:
            return self.fail(scsi.WRITE_PROTECTED)
        command = self._range(WRITE, block, count, flags & _PROTECT)
        if command.kind == WRITE and (flags & _FUA or not self.mode.write_cache):
            command.work = self.image.sync
        return command

    # -- the rest of the medium: capacity, cache, provisioning, removal ------------------------------------------------

    def test_unit_ready(self, cdb: bytes) -> Command:
        return GOOD

    def read_capacity_10(self, cdb: bytes) -> Command:
        last = min(self.blocks - 1, 0xFFFFFFFF)
        return self._send(last.to_bytes(4, "big") + self.block_size.to_bytes(4, "big"), 8)

    def read_capacity_16(self, cdb: bytes) -> Command:
        physical = (max(1, inquiry.PHYSICAL_BLOCK // self.block_size)).bit_length() - 1
        data = (self.blocks - 1).to_bytes(8, "big") + self.block_size.to_bytes(4, "big")
        data += bytes((0, physical, 0xC0 if self.identity.thin else 0, 0)) + bytes(16)  # LBPME, LBPRZ
        return self._send(data, int.from_bytes(cdb[10:14], "big"))

    def read_format_capacities(self, cdb: bytes) -> Command:
        kind = 2 if self.loaded else 3  # formatted; no medium
        capacity = min(self.blocks, 0xFFFFFFFF).to_bytes(4, "big") + bytes((kind,)) + self.block_size.to_bytes(3, "big")
        return self._send(bytes((0, 0, 0, len(capacity))) + capacity, int.from_bytes(cdb[7:9], "big"))

    def synchronize_cache(self, cdb: bytes) -> Command:
        _, block, count = _extent(cdb)
        if block + count > self.blocks:
            return self.fail(scsi.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE._replace(information=block))
        return self._after(self.image.sync)

    def _after(self, work: Callable[[], object], *, done: Callable[[], object] | None = None) -> Command:
        command = Command()
        command.work = work
        command.done = done
        return command

    def _filling(self, fill: Callable[[], object]) -> Command:
        """A command that changes blocks without a data phase of them; without the write cache it ends when they are
        stored."""
        cached = self.mode.write_cache

        def work() -> None:
            fill()
            if not cached:
                self.image.sync()

        command = self._after(work)
        command.fills = True
        return command

    def unmap(self, cdb: bytes) -> Command:
        if self.image.readonly:
            return self.fail(scsi.WRITE_PROTECTED)
        if cdb[1] & 1:  # ANCHOR
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        return self._receive(int.from_bytes(cdb[7:9], "big"), self._unmap_received)

    def _receive(self, length: int, received: Callable[[bytes], Command]) -> Command:
        if length > _PARAMETER_LIMIT:
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        if not length:
            return GOOD
        command = Command(RECEIVE, length=length)
        command.received = received
        command.fills = True
        return command

    def _unmap_received(self, data: bytes) -> Command:
        if len(data) < 8:
            return self.fail(scsi.PARAMETER_LIST_LENGTH_ERROR)
        listed = data[8 : 8 + int.from_bytes(data[2:4], "big")]
        ranges = []
        for start in range(0, len(listed) - 15, 16):
            block = int.from_bytes(listed[start : start + 8], "big")
            count = int.from_bytes(listed[start + 8 : start + 12], "big")
            if block + count > self.blocks:
                return self.fail(scsi.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE._replace(information=block))
            if count > inquiry.MAX_UNMAP_BYTES // self.block_size:
                return self.fail(scsi.INVALID_FIELD_IN_PARAMETER_LIST)
            ranges.append((block * self.block_size, count * self.block_size))
        if len(ranges) > inquiry.MAX_UNMAP_DESCRIPTORS:
            return self.fail(scsi.INVALID_FIELD_IN_PARAMETER_LIST)
        zeros = bytes(self.block_size)

        def work() -> None:
            for offset, length in ranges:
                if length:
                    self.image.fill(zeros, offset, length)

        return self._filling(work) if ranges else GOOD

    def write_same(self, cdb: bytes) -> Command:
        flags, block, count = _extent(cdb)
        if cdb[0] == scsi.WRITE_SAME_10:
            flags &= ~_NDOB
        if self.image.readonly:
            return self.fail(scsi.WRITE_PROTECTED)
        size = self.block_size
        # WRPROTECT, ANCHOR, PBDATA and LBDATA are not offered; zero blocks would mean up to the end (WSNZ).
        if flags & 0xF6 or not count or count > inquiry.MAX_WRITE_SAME_BYTES // size:
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        if block + count > self.blocks:
            return self.fail(scsi.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE._replace(information=block))

        def received(data: bytes) -> Command:
            return self._filling(lambda: self.image.fill(data, block * size, count * size))

        if flags & _NDOB:  # zeros without a data phase
            return received(bytes(size))
        return self._receive(size, received)

    def start_stop_unit(self, cdb: bytes) -> Command:
        if cdb[4] & 0xF0 or not cdb[4] & 2:
            return self._after(self.image.sync)  # a power condition, or start and stop of what does not turn
        if not self.identity.removable:
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        load = bool(cdb[4] & 1)
        if not load and self.removal_prevented:
            return self.fail(scsi.MEDIUM_REMOVAL_PREVENTED)

        def done() -> None:
            if load and not self.loaded:
                self.attention = scsi.MEDIUM_MAY_HAVE_CHANGED
            self._load(load)
            self._exceptional = not load or self.attention is not None

        # What cannot be stored is not ejected as if it were.
        return self._after(self.image.sync, done=done)

    def prevent_allow_medium_removal(self, cdb: bytes) -> Command:
        if not self.identity.removable:
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        self.removal_prevented = bool(cdb[4] & 1)
        return GOOD

    # -- what the disk is ----------------------------------------------------------------------------------------------

    def request_sense(self, cdb: bytes) -> Command:
        sense, self.sense = self.sense, scsi.NO_SENSE
        if sense is scsi.NO_SENSE and self._exceptional:
            sense, self.attention = self.attention or scsi.MEDIUM_NOT_PRESENT, None
            self._exceptional = not self.loaded
        return self._send(sense.descriptor() if cdb[1] & 1 else sense.fixed(), cdb[4])

    def inquiry(self, cdb: bytes) -> Command:
        allocation = int.from_bytes(cdb[3:5], "big")
        if not cdb[1] & 1:
            return self.fail(scsi.INVALID_FIELD_IN_CDB) if cdb[2] else self._send(self.identity.standard(), allocation)
        page = self._pages.get(cdb[2])
        return self.fail(scsi.INVALID_FIELD_IN_CDB) if page is None else self._send(page, allocation)

    def report_luns(self, cdb: bytes) -> Command:
        select = cdb[2]
        if select > 2:
            return self.fail(scsi.INVALID_FIELD_IN_CDB)
        luns = b"" if select == 1 else bytes(8)  # 1: well-known logical units only
        data = len(luns).to_bytes(4, "big") + bytes(4) + luns
        return self._send(data, int.from_bytes(cdb[6:10], "big"))

    def report_supported_operation_codes(self, cdb: bytes) -> Command:
        return self._answer(operations.report(cdb), int.from_bytes(cdb[6:10], "big"))

    def mode_sense_6(self, cdb: bytes) -> Command:
        return self._answer(self.mode.sense(cdb, ten=False), cdb[4])

    def mode_sense_10(self, cdb: bytes) -> Command:
        return self._answer(self.mode.sense(cdb, ten=True), int.from_bytes(cdb[7:9], "big"))

    def _answer(self, answer: bytes | Sense, allocation: int) -> Command:
        return self.fail(answer) if isinstance(answer, Sense) else self._send(answer, allocation)

    def mode_select_6(self, cdb: bytes) -> Command:
        return self._mode_select(cdb, cdb[4], ten=False)

    def mode_select_10(self, cdb: bytes) -> Command:
        return self._mode_select(cdb, int.from_bytes(cdb[7:9], "big"), ten=True)

    def _mode_select(self, cdb: bytes, length: int, *, ten: bool) -> Command:
        if not cdb[1] & 0x10 or cdb[1] & 1:  # PF: pages as the standard has them; SP: to be saved
            return self.fail(scsi.INVALID_FIELD_IN_CDB)

        def received(data: bytes) -> Command:
            refusal = self.mode.select(data, ten=ten)
            return self.fail(refusal) if refusal else self._after(self.image.sync)

        return self._receive(length, received)


def _extent(cdb: bytes) -> tuple[int, int, int]:
    """Byte 1 of a CDB that is about a range of blocks, the first of them, and their number: where these are depends on
    its length, which the three highest bits of the operation code say (SPC-4 4.2.5.1)."""
    group = cdb[0] >> 5
    if group == 0:
        _, high, low, count, _ = _CDB_6.unpack_from(cdb)
        return 0, (high & 0x1F) << 16 | low, count or 256
    if group == 4:
        _, flags, block, count, _, _ = _CDB_16.unpack_from(cdb)
    elif group == 5:
        _, flags, block, count, _, _ = _CDB_12.unpack_from(cdb)
    else:
        _, flags, block, _, count, _ = _CDB_10.unpack_from(cdb)
    return flags, block, count
