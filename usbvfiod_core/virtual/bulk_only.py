"""USB Mass Storage Class, Bulk-Only Transport 1.0: commands, data and status over two bulk endpoints.

The protocol is one command at a time: a command block wrapper (CBW), a data phase of exactly as many bytes as it says,
a command status wrapper (CSW). `_expects` is the endpoint on which the next step happens and `_step` which one it is;
transfers on the other endpoint wait. A data phase may come as one transfer or as many.

Where driver and device disagree about the data phase (the thirteen cases of section 6.7), the driver gets the data
phase it announced, zeros to fill up or the rest thrown away, and the CSW tells it what was meant: a residue, or a
phase error. Firmware that cannot clear a halt (SeaBIOS) survives that. With `stalls` the endpoint is halted instead
where section 6.7 allows it, as many sticks do, which exercises a driver more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from struct import Struct
from typing import Final

from ..usb.device import Loop
from ..usb.requests import SetupPacket
from ..usb.transfer import Transfer, TransferStatus, behind
from .command import GOOD, READ, RECEIVE, SEND, WRITE
from .disk import Disk
from .disk_state import begin_again, command_state
from .endpoint import VirtualEndpoint
from .image import head
from .transport_state import STEPS, BulkOnlyState, Step

INTERFACE_CLASS = (0x08, 0x06, 0x50)  # mass storage, SCSI transparent, bulk-only (4.3)
DATA_IN: Final = 0x81
DATA_OUT: Final = 0x02
"""Addresses of the endpoints."""
CBW_SIGNATURE: Final = 0x43425355
CSW_SIGNATURE: Final = 0x53425355
CBW_LENGTH: Final = 31
CSW_LENGTH: Final = 13

# bmRequestType and bRequest (section 3)
BULK_ONLY_RESET = (0x21, 0xFF)
GET_MAX_LUN = (0xA1, 0xFE)

# bCSWStatus (table 5.3)
COMMAND_PASSED: Final = 0
COMMAND_FAILED: Final = 1
PHASE_ERROR: Final = 2

BLOCKING_WRITE: Final = 256 * 1024
"""Writes of this many bytes and more go through a thread; smaller ones reach the page cache before it would start."""
BLOCKING_READ: Final = 4 << 20
"""Reads of more bytes go through a thread even if they need no waiting: copying them would hold the loop for long."""

_CBW: Final = Struct("<IIIBBB16s")
_Cbw = tuple[int, int, int, int, int, int, bytes]
_CSW: Final = Struct("<IIIB")
_COMPLETED: Final = TransferStatus.COMPLETED
# Places in STEPS
_COMMAND: Final = 0
_DATA_IN: Final = 1
_DATA_OUT: Final = 2
_STATUS: Final = 3


class BulkOnly:
    """The endpoints of one logical unit while the interface has its bulk-only alternate setting.

    `process` is called for an endpoint with new transfers, `serve` has it called soon; `back` when a thread is back.
    """

    def __init__(
        self,
        disk: Disk,
        loop: Loop,
        serve: Callable[[VirtualEndpoint], None],
        back: Callable[[], None],
        *,
        stalls: bool = False,
    ) -> None:
        self.disk = disk
        self.stalls = stalls
        self.working = False
        """A thread uses the image, for the command at hand or a forgotten one; nothing begins before it is back."""
        self.wedged = False
        """Halted until reset recovery (5.3.4)."""
        self._loop = loop
        self._serve = serve
        self._back = back
        self._in: VirtualEndpoint | None = None
        self._out: VirtualEndpoint | None = None
        self._expects: VirtualEndpoint | None = None
        self._step = _COMMAND
        self._held = False  # another transport's threads still use the image
        self._epoch = 0  # changes when the command that a thread works for is forgotten
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

    def start(self, endpoints: Mapping[int, VirtualEndpoint], *, held: bool = False) -> None:
        """The alternate setting was chosen, with these endpoints; the command from before is forgotten.

        `held`: nothing may begin before `release`, because threads of the other transport still use the image.
        """
        self._in, self._out = endpoints.get(DATA_IN), endpoints.get(DATA_OUT)
        self._held = held
        self.wedged = False
        self._forget()

    def release(self) -> None:
        """The image is free: what was held by `start` may begin."""
        self._held = False
        if not self.working and self._expects is None and self._out is not None:
            self._expects = self._out
            self._serve(self._out)

    def stop(self) -> None:
        """Another alternate setting, or the end: forget the command. A thread finishes what it is doing."""
        self.start({})

    def process(self, endpoint: VirtualEndpoint) -> None:
        """Take what is queued where the next step happens."""
        while True:
            expects = self._expects
            if expects is None or not expects.queue:
                return
            transfer, step = expects.queue.popleft(), self._step
            if step == _COMMAND:
                self._command(transfer)
            elif step == _DATA_IN:
                self._data_in(transfer)
            elif step == _DATA_OUT:
                self._data_out(transfer)
            else:
                self._status(transfer)

    def control_request(self, setup: SetupPacket) -> bytes | None:
        """Answer a request of the class to the interface (section 3), as `VirtualDevice.control_request`."""
        request = (setup.request_type, setup.request)
        if setup.value:
            return None
        if request == GET_MAX_LUN and setup.length == 1:
            return b"\0"
        if request == BULK_ONLY_RESET and not setup.length:
            self.wedged = False  # the endpoints stay halted until they are cleared (3.1)
            self._forget()
            return b""
        return None

    # -- the command -------------------------------------------------------------------------------------------------

    def _command(self, transfer: Transfer) -> None:
        windows = transfer.windows
        cbw = windows[0] if len(windows) == 1 else transfer.read()
        if len(cbw) != CBW_LENGTH:
            self._refuse(transfer)
            return
        fields: _Cbw = _CBW.unpack(cbw)
        signature, self._tag, announced, flags, lun, size, cdb = fields
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
            self._expects, self._step = self._in, _DATA_IN
        else:
            self._parameters.clear()
            self._expects, self._step = self._out, _DATA_OUT
        transfer.complete(_COMPLETED, CBW_LENGTH)

    def _refuse(self, transfer: Transfer) -> None:
        """This is no valid and meaningful CBW: both endpoints halt until reset recovery (6.6.1)."""
        self.wedged = True
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
            self._expects, self._step = self._in, _DATA_IN
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
            self._expects, self._step = self._out, _DATA_OUT
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
        self._expects, self._step = self._in, _STATUS

    def _worked(self, done: Callable[[], object] | None, result: object) -> None:
        if isinstance(result, BaseException):
            self.disk.image_failed(result, writing=True, offset=self._place)
            self._result = COMMAND_FAILED
        elif done is not None:
            done()
        self._expects, self._step = self._in, _STATUS

    def _status(self, transfer: Transfer) -> None:
        csw = _CSW.pack(CSW_SIGNATURE, self._tag, self._residue, self._result)
        window = transfer.windows[0] if transfer.windows else memoryview(b"")
        self._expects, self._step = self._out, _COMMAND
        if len(window) >= CSW_LENGTH:
            window[:CSW_LENGTH] = csw
            transfer.complete(_COMPLETED, CSW_LENGTH)
        else:
            count = transfer.write(csw)
            transfer.complete(_COMPLETED if count == CSW_LENGTH else TransferStatus.BABBLE, count)

    # -- going on in another process ---------------------------------------------------------------------------------

    def state(self) -> BulkOnlyState:
        """The command at hand, which no thread works for."""
        step = STEPS[self._step]
        begun = step in (Step.DATA_IN, Step.DATA_OUT)
        return BulkOnlyState(
            step,
            self.wedged,
            self._tag,
            self._left,
            self._wanted,
            self._residue,
            self._result,
            self._place,
            bytes(self._parameters),
            command_state(self._doing, self._cdb, self._lun) if begun else None,
        )

    def take_state(self, state: BulkOnlyState) -> None:
        """Go on with the command of another process. The endpoints are there, the disk is new."""
        if state.command is not None:
            self._doing = begin_again(self.disk, state.command)
            self._cdb, self._lun = state.command.cdb.ljust(16, b"\0"), state.command.lun
        self.wedged = state.wedged
        self._tag, self._left, self._wanted, self._residue = state.tag, state.left, state.wanted, state.residue
        self._result, self._place = state.result, state.place
        self._parameters[:] = state.parameters
        self._step = STEPS.index(state.step)
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
        self.working = True
        epoch = self._epoch

        def done(result: object) -> None:
            self.working = False
            if epoch == self._epoch:
                then(result)
            else:
                self._expects, self._step = (None if self._held else self._out), _COMMAND
                if transfer is not None:
                    failed = isinstance(result, BaseException)
                    transfer.complete(TransferStatus.ERROR if failed else _COMPLETED, 0 if failed else count)
            if self._out is not None:
                self._serve(self._out)
            self._back()

        self._loop.run_blocking(call, done)

    def _forget(self) -> None:
        """Drop the command at hand and wait for the next; if a thread still works for it, wait for that first."""
        self._epoch += 1
        self._doing = GOOD
        self._left = self._wanted = 0
        self._expects, self._step = (None if self.working or self._held else self._out), _COMMAND
