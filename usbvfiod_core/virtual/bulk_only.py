"""USB Mass Storage Class, Bulk-Only Transport 1.0: commands, data and status over two bulk endpoints.

The protocol is one command at a time: a command block wrapper (CBW), a data phase of exactly as many bytes as it says,
a command status wrapper (CSW). `_expects` is the endpoint on which the next step happens and `_step` what is done with
the next transfer there; transfers on the other endpoint wait. A data phase may come as one transfer or as many.

Where driver and device disagree about the data phase (the thirteen cases of section 6.7), the driver gets the data
phase it announced, zeros to fill up or the rest thrown away, and the CSW tells it what was meant: a residue, or a
phase error. Firmware that cannot clear a halt (SeaBIOS) survives that. With `stalls` the endpoint is halted instead
where section 6.7 allows it, as many sticks do, which exercises a driver more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct

from ..usb.device import Loop
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferStatus, behind
from .command import GOOD, READ, RECEIVE, SEND, WRITE
from .device import VirtualDevice
from .disk import Disk
from .disk_state import begin_again, command_state
from .endpoint import VirtualEndpoint
from .image import head
from .transport_state import STEPS, BulkOnlyState, Step

INTERFACE_CLASS = (0x08, 0x06, 0x50)  # mass storage, SCSI transparent, bulk-only (4.3)
CBW_SIGNATURE = 0x43425355
CSW_SIGNATURE = 0x53425355
CBW_LENGTH = 31
CSW_LENGTH = 13

# bmRequestType and bRequest (section 3)
BULK_ONLY_RESET = (0x21, 0xFF)
GET_MAX_LUN = (0xA1, 0xFE)

# bCSWStatus (table 5.3)
COMMAND_PASSED = 0
COMMAND_FAILED = 1
PHASE_ERROR = 2

BLOCKING_WRITE = 256 * 1024
"""Writes of this many bytes and more go through a thread; smaller ones reach the page cache before it would start."""
BLOCKING_READ = 4 << 20
"""Reads of more bytes go through a thread even if they need no waiting: copying them would hold the loop for long."""

_CBW = Struct("<IIIBBB16s")
_CSW = Struct("<IIIB")
_COMPLETED = TransferStatus.COMPLETED


class BulkOnly(VirtualDevice):
    """A bulk-only device with one logical unit. A subclass has an interface with the endpoints IN and OUT."""

    IN = 0x81
    OUT = 0x02

    def __init__(self, speed: Speed, disk: Disk, loop: Loop, *, stalls: bool = False) -> None:
        super().__init__(speed)
        self.disk = disk
        self.stalls = stalls
        self._loop = loop
        self._in: VirtualEndpoint | None = None
        self._out: VirtualEndpoint | None = None
        self._expects: VirtualEndpoint | None = None
        self._step: Callable[[Transfer], object] = self._command
        self._held = False  # another transport's threads still use the image
        self._working = False  # a thread works for a command; whatever happens, nothing begins before it is done
        self._epoch = 0  # changes when the command that a thread works for is forgotten
        self._wedged = False  # halted until reset recovery (5.3.4)
        self._settling: list[Callable[[], object]] = []
        # the command at hand
        self._doing = GOOD
        self._cdb, self._lun = bytes(16), 0
        self._tag = 0
        self._left = 0  # bytes of the driver's data phase still to come
        self._wanted = 0  # how many of them the command takes or gives
        self._residue = 0
        self._result = COMMAND_PASSED
        self._place = 0  # offset in the image or in the data to send
        self._parameters = bytearray()

    # -- VirtualDevice -----------------------------------------------------------------------------------------------

    def process(self, endpoint: VirtualEndpoint) -> None:
        while True:
            expects = self._expects
            if expects is None or not expects.queue:
                return
            self._step(expects.queue.popleft())

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self._in = self.endpoints.get(self.IN)
        self._out = self.endpoints.get(self.OUT)
        self._wedged = False
        self._forget()
        if not endpoints:
            self.disk.reset()

    def clear_halt(self, endpoint: VirtualEndpoint) -> None:
        if not self._wedged:
            endpoint.halted = False

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        request = (setup.request_type, setup.request)
        if setup.value or setup.index not in self.alternates:
            return None
        if request == GET_MAX_LUN and setup.length == 1:
            return b"\0"
        if request == BULK_ONLY_RESET and not setup.length:
            self._wedged = False  # the endpoints stay halted until they are cleared (3.1)
            self._forget()
            return b""
        return None

    def closed(self) -> None:
        self._forget()
        self._in = self._out = self._expects = None
        if not self._working:
            self.given_back()

    def given_back(self) -> None:
        """The device is closed and no thread uses the image any more."""

    def suspend_transport(self) -> None:
        """The interface has an alternate setting that is not bulk-only: forget the command at hand."""
        self._in = self._out = None
        self._wedged = False
        self._forget()

    def thread_back(self) -> None:
        """A thread has come back that worked for a command which is forgotten."""

    @property
    def is_working(self) -> bool:
        """Whether a thread works for a bulk-only command, forgotten or not."""
        return self._working

    def hold(self, held: bool) -> None:
        """Begin nothing while another transport's threads still use the image."""
        self._held = held
        if not held and not self._working and self._expects is None and self._out is not None:
            self._expects = self._out
            self.serve(self._out)

    # -- the command -------------------------------------------------------------------------------------------------

    def _command(self, transfer: Transfer) -> None:
        windows = transfer.windows
        cbw = windows[0] if len(windows) == 1 else transfer.read()
        if len(cbw) != CBW_LENGTH:
            self._refuse(transfer)
            return
        signature, self._tag, announced, flags, lun, size, cdb = _CBW.unpack(cbw)
        self._cdb, self._lun = cdb, lun
        if signature != CBW_SIGNATURE or flags & 0x7F or lun > 15 or not 1 <= size <= 16:
            self._refuse(transfer)
            return
        doing = self._doing = self.disk.execute(cdb, lun)
        length, kind = doing.length, doing.kind
        self._left = self._residue = announced
        self._place = doing.offset
        self._result = COMMAND_FAILED if doing.failed else COMMAND_PASSED
        given = kind in (SEND, READ)
        # In the way the table in 6.7 puts it: what the host expects against what the device intends.
        if length > announced or (length and given != (flags >= 0x80)):
            self._result = PHASE_ERROR  # cases 2, 3, 7, 8, 10, 13
            length = announced if given and flags >= 0x80 else 0
        self._wanted = length
        if not announced:
            self._finish()
        elif self.stalls and not length:
            self._finish()
            transfer.complete(_COMPLETED, CBW_LENGTH)
            self._halt(self._in if flags >= 0x80 else self._out)
            return
        elif flags >= 0x80:
            self._expects, self._step = self._in, self._data_in
        else:
            self._parameters.clear()
            self._expects, self._step = self._out, self._data_out
        transfer.complete(_COMPLETED, CBW_LENGTH)

    def _refuse(self, transfer: Transfer) -> None:
        """This is no valid and meaningful CBW: both endpoints halt until reset recovery (6.6.1)."""
        self._wedged = True
        transfer.complete(_COMPLETED, transfer.length)
        for endpoint in (self._out, self._in):
            if endpoint is not None:
                endpoint.halt()

    # -- data to the driver ------------------------------------------------------------------------------------------

    def _data_in(self, transfer: Transfer) -> None:
        length = transfer.length
        count = min(length, self._wanted)
        doing = self._doing
        if doing.kind == READ and count:
            windows = transfer.windows if count == length else head(transfer.windows, count)
            try:
                now = count <= BLOCKING_READ and self.disk.image.read_now(windows, self._place, count)
            except OSError as error:
                self._sent(transfer, count, error)
                return
            if not now:
                call = partial(self.disk.image.read, windows, self._place, count)
                self._in_thread(call, partial(self._sent, transfer, count), transfer, count)
                return
        elif count:
            transfer.write(doing.data[self._place : self._place + count])
        self._sent(transfer, count, None)

    def _sent(self, transfer: Transfer, count: int, error: object) -> None:
        """`count` bytes are in the windows, or `error` is why not; what is missing of the transfer is filled up."""
        if isinstance(error, BaseException):
            self.disk.image_failed(error, writing=False, offset=self._place)
            self._result = COMMAND_FAILED
            self._wanted = count = 0
        self._wanted -= count
        self._place += count
        self._residue -= count
        total = min(transfer.length, self._left)
        self._left -= total
        ended = self.stalls and not self._wanted and (self._left > 0 or total > count)
        if not ended and total > count:
            for window in head(behind(transfer.windows, count), total - count):
                window[:] = bytes(len(window))
        if ended or not self._left:
            self._finish()
        else:
            self._expects, self._step = self._in, self._data_in
        if not ended:
            transfer.complete(_COMPLETED, total)
            return
        if count:
            transfer.complete(_COMPLETED, count)
        else:
            transfer.complete(TransferStatus.STALL)
        self._halt(self._in)

    # -- data from the driver ----------------------------------------------------------------------------------------

    def _data_out(self, transfer: Transfer) -> None:
        length = transfer.length
        count = min(length, self._wanted)
        kind = self._doing.kind
        if not count:
            self._taken(transfer, 0, None)
            return
        windows = transfer.windows if count == length else head(transfer.windows, count)
        if kind == RECEIVE:
            for window in windows:
                self._parameters += window
            self._taken(transfer, count, None)
        elif kind == WRITE and count < BLOCKING_WRITE:
            try:
                self.disk.image.write(windows, self._place, count)
            except OSError as error:
                self._taken(transfer, count, error)
            else:
                self._taken(transfer, count, None)
        else:
            image = self.disk.image
            call = partial(image.write if kind == WRITE else image.compare, windows, self._place, count)
            self._in_thread(call, partial(self._taken, transfer, count), transfer, count)

    def _taken(self, transfer: Transfer, count: int, result: object) -> None:
        """`count` bytes have been used; `result` is None, an exception, or whether a comparison was equal."""
        if isinstance(result, BaseException):
            writing = self._doing.kind == WRITE
            self.disk.image_failed(result, writing=writing, offset=self._place)
            self._result = COMMAND_FAILED
            self._wanted = count = 0
        elif result is False:
            self.disk.miscompared()
            self._result = COMMAND_FAILED
            self._wanted = count
        self._wanted -= count
        self._place += count
        self._residue -= count
        total = min(transfer.length, self._left)
        self._left -= total
        stall = self.stalls and self._left > 0 and not self._wanted
        if stall or not self._left:
            self._finish()
        else:
            self._expects, self._step = self._out, self._data_out
        transfer.complete(_COMPLETED, transfer.length)
        if stall:
            self._halt(self._out)

    # -- status ------------------------------------------------------------------------------------------------------

    def _halt(self, endpoint: VirtualEndpoint | None) -> None:
        if endpoint is not None:
            endpoint.halt()

    def _finish(self) -> None:
        """The data phase is over: do what is left of the command, then have its status ready."""
        doing = self._doing
        self._left = self._wanted = 0
        if self._result == COMMAND_PASSED:
            if doing.received is not None:
                doing = doing.received(bytes(self._parameters))
                if doing.failed:
                    self._result = COMMAND_FAILED
            if doing.work is not None:
                self._in_thread(doing.work, partial(self._worked, doing.done))
                return
        self._expects, self._step = self._in, self._status

    def _worked(self, done: Callable[[], object] | None, result: object) -> None:
        if isinstance(result, BaseException):
            self.disk.image_failed(result, writing=True, offset=self._place)
            self._result = COMMAND_FAILED
        elif done is not None:
            done()
        self._expects, self._step = self._in, self._status

    def _status(self, transfer: Transfer) -> None:
        csw = _CSW.pack(CSW_SIGNATURE, self._tag, self._residue, self._result)
        window = transfer.windows[0] if transfer.windows else memoryview(b"")
        self._expects, self._step = self._out, self._command
        if len(window) >= CSW_LENGTH:
            window[:CSW_LENGTH] = csw
            transfer.complete(_COMPLETED, CSW_LENGTH)
        else:
            count = transfer.write(csw)
            transfer.complete(_COMPLETED if count == CSW_LENGTH else TransferStatus.BABBLE, count)

    # -- going on in another process ---------------------------------------------------------------------------------

    def when_settled(self, done: Callable[[], object]) -> None:
        if self.is_busy:
            self._settling.append(done)
        else:
            done()

    @property
    def is_busy(self) -> bool:
        """Whether any thread works for the device."""
        return self._working

    def settled(self) -> None:
        """A thread has come back: tell those who wait, if no other works for the device."""
        if self._settling and not self.is_busy:
            settling, self._settling = self._settling, []
            for done in settling:
                self.when_settled(done)

    @property
    def _steps(self) -> tuple[Callable[[Transfer], object], ...]:
        """As in `STEPS`."""
        return self._command, self._data_in, self._data_out, self._status

    def transport_state(self) -> BulkOnlyState:
        """The command at hand, which no thread works for."""
        step = STEPS[self._steps.index(self._step)]
        begun = step in (Step.DATA_IN, Step.DATA_OUT)
        return BulkOnlyState(
            step,
            self._wedged,
            self._tag,
            self._left,
            self._wanted,
            self._residue,
            self._result,
            self._place,
            bytes(self._parameters),
            command_state(self._doing, self._cdb, self._lun) if begun else None,
        )

    def take_transport_state(self, state: BulkOnlyState) -> None:
        """Go on with the command of another process. The endpoints are there, the disk is new."""
        if state.command is not None:
            self._doing = begin_again(self.disk, state.command)
            self._cdb, self._lun = state.command.cdb.ljust(16, b"\0"), state.command.lun
        self._wedged = state.wedged
        self._tag, self._left, self._wanted, self._residue = state.tag, state.left, state.wanted, state.residue
        self._result, self._place = state.result, state.place
        self._parameters[:] = state.parameters
        self._step = self._steps[STEPS.index(state.step)]
        self._expects = self._in if state.step in (Step.DATA_IN, Step.STATUS) else self._out

    # -- what blocks -------------------------------------------------------------------------------------------------

    def _in_thread(
        self,
        call: Callable[[], object],
        then: Callable[[object], object],
        transfer: Transfer | None = None,
        count: int = 0,
    ) -> None:
        """Run `call` in a thread and go on with `then(result)`. `transfer`, whose windows it uses, is completed only
        afterwards, also if the command has been forgotten meanwhile."""
        self._expects = None
        self._working = True
        epoch = self._epoch

        def done(result: object) -> None:
            self._working = False
            if epoch == self._epoch:
                then(result)
            else:
                self._expects, self._step = (None if self._held else self._out), self._command
                if transfer is not None:
                    failed = isinstance(result, BaseException)
                    transfer.complete(TransferStatus.ERROR if failed else _COMPLETED, 0 if failed else count)
                self.thread_back()
                if self._closed:
                    self.given_back()
            if self._out is not None:
                self.serve(self._out)
            self.settled()

        self._loop.run_blocking(call, done)

    def _forget(self) -> None:
        """Drop the command at hand and wait for the next; if a thread still works for it, wait for that first."""
        self._epoch += 1
        self._doing = GOOD
        self._left = self._wanted = 0
        self._expects, self._step = (None if self._working or self._held else self._out), self._command
