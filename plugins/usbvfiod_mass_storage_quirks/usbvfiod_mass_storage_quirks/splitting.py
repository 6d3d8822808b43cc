"""Reads and writes that are longer than a drive can take, made into several shorter ones (quirks g and m).

The whole of the data is gathered here between guest and device, at most MAX_BYTES; a command that moves more is passed
on as it is, but no driver sends such.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbvfiod_core import CannotHandOver, InterceptedTransfer

from . import scsi
from .client import Client, Outcome
from .scsi import NO_SENSE, Sense
from .state import SplittingState
from .wrappers import COMMAND_PASSED, CommandBlockWrapper

if TYPE_CHECKING:
    from .bulk_only import BulkOnly

MAX_BYTES = 16 << 20

_SECTOR = 512
_FIELDS = {
    scsi.READ_10: (2, 6, 7, 9),
    scsi.WRITE_10: (2, 6, 7, 9),
    scsi.READ_12: (2, 6, 6, 10),
    scsi.WRITE_12: (2, 6, 6, 10),
    scsi.READ_16: (2, 10, 10, 14),
    scsi.WRITE_16: (2, 10, 10, 14),
}
"""Where a command has its first block and their number: first byte and the one behind the last, of each."""


class Splitting:
    """Splits the commands of one bulk-only interface into pieces of at most `sectors` of 512 bytes."""

    def __init__(self, transport: BulkOnly, client: Client, sectors: int) -> None:
        self._transport = transport
        self._client = client
        self._sectors = sectors
        self._wrapper: CommandBlockWrapper | None = None
        self._data = bytearray()
        self._block_size = 0

    def takes(self, wrapper: CommandBlockWrapper) -> bool:
        """Whether this command is too long; if so, `begin` is called next."""
        blocks = scsi.blocks_of(wrapper.cdb)
        if wrapper.cdb[0] not in _FIELDS or blocks is None or not blocks[1]:
            return False
        size, rest = divmod(wrapper.length, blocks[1])
        if rest or size < _SECTOR or wrapper.length <= self._sectors * _SECTOR or wrapper.length > MAX_BYTES:
            return False
        self._wrapper = wrapper
        self._block_size = size
        return True

    def begin(self) -> None:
        """The guest's command block wrapper has been taken."""
        self._data.clear()
        if self._wrapper is not None and self._wrapper.is_in:
            self._next(0)

    def collects(self, transfer: InterceptedTransfer) -> bool:
        """Whether a transfer is data of the command; if so, it has been taken."""
        transport = self._transport
        if not transport.out_left:
            return False
        self._data += transfer.read()[: transport.out_left]
        transport.out_left -= min(transfer.length, transport.out_left)
        complete = not transport.out_left
        transfer.answer()
        if complete:
            self._next(0)
        return True

    def saved(self) -> SplittingState | None:
        """The command that is being split, None if none is; nothing of it is with the device."""
        wrapper = self._wrapper
        return None if wrapper is None else SplittingState(wrapper.pack(), self._block_size, bytes(self._data))

    def take(self, state: SplittingState | None) -> None:
        """Go on, as a new one, where another was. Raises CannotHandOver."""
        if state is None:
            return
        wrapper = CommandBlockWrapper.unpack(state.wrapper)
        if wrapper is None or not self.takes(wrapper) or self._block_size != state.block_size:
            raise CannotHandOver("a command is being split that is not too long here")
        self._data[:] = state.data

    def forget(self) -> None:
        """The guest has reset the transport."""
        if self._wrapper is not None:
            self._client.forget()
        self._wrapper = None

    # -- own ---------------------------------------------------------------------------------------------------------

    def _next(self, done: int) -> None:
        """Go on with block number `done` of the command."""
        wrapper = self._wrapper
        if wrapper is None:
            return
        start, end, count_start, count_end = _FIELDS[wrapper.cdb[0]]
        size = self._block_size
        total = wrapper.length // size
        if done == total:
            self._end(None, 0)
            return
        count = min(max(self._sectors * _SECTOR // size, 1), total - done)
        cdb = bytearray(wrapper.cdb[: wrapper.size])
        first = int.from_bytes(cdb[start:end], "big") + done
        cdb[start:end] = first.to_bytes(end - start, "big")
        cdb[count_start:count_end] = count.to_bytes(count_end - count_start, "big")

        def ended(outcome: Outcome) -> None:
            if self._wrapper is not wrapper:
                return
            if wrapper.is_in:
                self._data += outcome.data
            if outcome.status == COMMAND_PASSED and (not wrapper.is_in or len(outcome.data) == count * size):
                self._next(done + count)
            elif outcome.status is None:
                self._end(scsi.TIME_OUT, (total - done) * size)
            else:
                self._end(NO_SENSE, (total - done) * size)

        data = count * size if wrapper.is_in else bytes(self._data[done * size : (done + count) * size])
        self._client.run(wrapper.lun, bytes(cdb), data, ended)

    def _end(self, sense: Sense | None, missing: int) -> None:
        """`sense` is None if all went well, NO_SENSE if the device has it. `missing` bytes were not moved."""
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is None:
            return
        data = bytes(self._data[: wrapper.length - missing]) if wrapper.is_in else b""
        self._data.clear()
        self._transport.answer(sense, data, residue=missing, own=sense is not NO_SENSE)
        self._transport.answered(sense)
