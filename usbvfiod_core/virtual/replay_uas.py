"""The commands of a recording of USB Attached SCSI (UAS-3).

Several commands are under way at a time, so whose data a transfer has must be known: by its stream, whose number is the
command's tag, as files of `usbvfiod capture` have it; without streams by the READ READY or WRITE READY IU before it.
Files of usbmon do not name streams; there the data are those of the only command that is under way. If there are
several, all of them are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ..capture.recording import Exchange, Traffic
from ..usb import descriptors
from ..usb.descriptors import Interface
from ..usb.transfer import TransferStatus
from . import information_units as iu
from .bulk_only import COMMAND_FAILED, COMMAND_PASSED
from .replay_commands import Command, started

_HEADER = iu.HEADER.size
_STATUS, _SENSE_LENGTH, _SENSE = 6, 14, 16
"""Where a SENSE IU has them (UAS-3 6.2.3)."""
_LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
"""Of a command block, by the group of its operation code (SPC-4 4.2.5.1); a UAS driver always sends 16 bytes."""


def uas_commands(interface: Interface, traffic: Traffic) -> Iterator[Command]:
    """The commands that ended, in that order. `interface` is the setting that has the pipes."""
    return _Pipes(interface).follow(traffic)


class _Pipes:
    def __init__(self, interface: Interface) -> None:
        self._usage = {endpoint.address: _usage(endpoint) for endpoint in interface.endpoints}
        self._open: dict[int, Command] = {}
        """By tag."""
        self._unknown: set[int] = set()
        """Tags of commands that may have had data which cannot be told apart."""
        self._turns: dict[int, deque[int]] = {iu.DATA_IN_PIPE: deque(), iu.DATA_OUT_PIPE: deque()}
        """Whose data a pipe moves next, as READY IUs have said."""

    def follow(self, traffic: Traffic) -> Iterator[Command]:
        for exchange in traffic.ended:
            usage = self._usage.get(exchange.first.endpoint)
            if usage == iu.COMMAND_PIPE:
                self._begin(exchange)
            elif usage == iu.STATUS_PIPE:
                ended = self._end(bytes(exchange.data))
                if ended is not None:
                    yield ended
            elif usage in self._turns and exchange.submitted is not None:
                self._move(exchange, usage)

    def _begin(self, exchange: Exchange) -> None:
        unit = bytes(exchange.data)
        if len(unit) < iu.COMMAND_IU.size or unit[0] != iu.COMMAND or exchange.status is not TransferStatus.COMPLETED:
            return
        _, tag, _, _, lun, block = iu.COMMAND_IU.unpack_from(unit)
        self._unknown.discard(tag)
        self._open[tag] = started((lun[1], block[: _LENGTHS.get(block[0] >> 5, 16)]), 0, is_in=True)

    def _move(self, exchange: Exchange, usage: int) -> None:
        if exchange.status not in (TransferStatus.COMPLETED, TransferStatus.STALL, TransferStatus.CANCELLED):
            return
        turns = self._turns[usage]
        if exchange.first.stream:
            tag = exchange.first.stream
        elif turns:
            tag = turns.popleft()
        elif len(self._open) == 1:
            (tag,) = self._open
        else:
            self._unknown.update(self._open)
            return
        command = self._open.get(tag)
        if command is not None:
            command.is_in = usage == iu.DATA_IN_PIPE
            command.announced += exchange.asked or 0
            command.take(exchange)

    def _end(self, unit: bytes) -> Command | None:
        if len(unit) < _HEADER:
            return None
        kind, tag = iu.HEADER.unpack_from(unit)
        if kind in (iu.READ_READY, iu.WRITE_READY):
            self._turns[iu.DATA_IN_PIPE if kind == iu.READ_READY else iu.DATA_OUT_PIPE].append(tag)
            return None
        command = self._open.pop(tag, None)
        for turns in self._turns.values():
            if tag in turns:  # it had no data after all
                turns.remove(tag)
        known = tag not in self._unknown
        self._unknown.discard(tag)
        if command is None or not known or kind != iu.SENSE or len(unit) <= _STATUS:
            return None
        if unit[_STATUS] not in (iu.GOOD, iu.CHECK_CONDITION):  # the driver sends it again
            return None
        command.ended = True
        command.status = COMMAND_PASSED if unit[_STATUS] == iu.GOOD else COMMAND_FAILED
        command.sense = unit[_SENSE : _SENSE + int.from_bytes(unit[_SENSE_LENGTH:_SENSE], "big")]
        return command


def _usage(endpoint: descriptors.Endpoint) -> int:
    """What the pipe usage descriptor behind an endpoint says; 0 without one."""
    found = (part[2] for kind, part in descriptors.walk(endpoint.extra) if kind == iu.PIPE_USAGE and len(part) > 2)
    return next(found, 0)
