"""Transfer Descriptors: from the TRBs of a ring to one transfer, and from its result to events (3.2.8, 4.10, 4.11).

A TD is collected when the driver has written all of it, or a part that it wants to hear of: macOS writes a TD of 1 MiB
in pieces, and the next one when the Event Data TRB of the last has told it that there is room (4.11.7). Its buffers
become windows of guest memory; nothing is copied. When it has ended, `report` says which events it owes.
"""

from __future__ import annotations

from operator import index as as_int
from typing import Final

from ..errors import GuestMemoryError, UnsharedMemoryError
from ..memory import GuestMemory
from ..usb.requests import SetupPacket
from ..usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType, known
from . import spec
from .ring import ConsumerRing, Trb

TRB_LIMIT: Final = 4096
"""TRBs in one TD; more is no driver but a guest that wants to keep us busy."""

STEP: Final = 272
"""TRBs of a TD that are read without a break: 1 MiB in pages, and some more. `LongTd` reads those that have more."""

_TYPE: Final = spec.TRB_TYPE_MASK
_NORMAL: Final = spec.TRB_NORMAL << spec.TRB_TYPE_SHIFT
_ISOCH: Final = spec.TRB_ISOCH << spec.TRB_TYPE_SHIFT
_SETUP: Final = spec.TRB_SETUP_STAGE << spec.TRB_TYPE_SHIFT
_DATA: Final = spec.TRB_DATA_STAGE << spec.TRB_TYPE_SHIFT
_STATUS: Final = spec.TRB_STATUS_STAGE << spec.TRB_TYPE_SHIFT
_EVENT_DATA: Final = spec.TRB_EVENT_DATA << spec.TRB_TYPE_SHIFT
_NO_OP: Final = spec.TRB_NO_OP << spec.TRB_TYPE_SHIFT
_CH: Final = spec.TRB_CH
_IOC: Final = spec.TRB_IOC
_IDT: Final = spec.TRB_IDT
_LENGTH: Final = spec.TRB_LENGTH_MASK
_PACKET_SIZE: Final = 6
"""Offset of Max Packet Size in an endpoint context (6.2.3)."""
_COMPLETED: Final = TransferStatus.COMPLETED
_TAKEN_BACK: Final = (TransferStatus.CANCELLED, TransferStatus.DISCONNECTED, None)


class TdFault(Exception):
    """A TRB that does not belong where it is: the endpoint stops with a TRB Error at `trb` (4.10.2.5)."""

    def __init__(self, trb: Trb, reason: str) -> None:
        super().__init__(f"{reason}: {trb!r}")
        self.trb = trb


class Td:
    """The TRBs of one TD (for a control endpoint: of its three stages) and the transfer made of them.

    `cycle` is the cycle bit at its first TRB. `unread` says that there are more TRBs than it has yet, `partial` that
    the driver has not written the rest of the TD yet, `skipped` that it is such a rest, and that a short packet has
    ended the data before it. `done` bytes were moved before an earlier stop and are not moved again. `event_data` says
    that there is an Event Data TRB in it. `setup` and `windows` are what the transfer needs; `transfer` is None for a
    TD without one (No Op), and `packet` is that of an isochronous transfer. `status` and `moved` are what the device
    had said of the transfer when it ended; what it does to it later changes nothing. `unreachable` says that its buffer
    is memory that the client does not share: then it fails, as a transfer to a device that does not answer.
    """

    __slots__ = (
        "cycle",
        "done",
        "ended",
        "event_data",
        "is_in",
        "length",
        "links",
        "moved",
        "packet",
        "partial",
        "setup",
        "skipped",
        "status",
        "submitted",
        "transfer",
        "trbs",
        "units",
        "unreachable",
        "unread",
        "windows",
    )

    units: int
    """What it takes of the allowance; set by the ring."""
    submitted: int
    """When it was fetched (time.monotonic_ns); set by the engine."""

    def __init__(self, trbs: list[Trb], cycle: int, is_in: bool) -> None:
        self.trbs = trbs
        self.cycle = cycle
        self.is_in = is_in
        self.length = 0
        self.done = 0
        self.event_data = False
        self.setup: SetupPacket | None = None
        self.windows: list[memoryview] | None = None
        self.transfer: Transfer | None = None
        self.packet: IsochronousPacket | None = None
        self.status: TransferStatus | None = None
        self.moved = 0
        self.ended = False
        self.partial = False
        self.skipped = False
        self.unread = False
        self.links: list[Trb] = []
        self.unreachable: UnsharedMemoryError | None = None

    @property
    def actual(self) -> int:
        """Bytes moved since the start of the TD."""
        return self.done + self.moved

    @property
    def short(self) -> bool:
        """Whether its transfer has moved less than was asked for."""
        return self.done + self.moved < self.length

    @property
    def failed(self) -> bool:
        """Whether its transfer has not ended well. OUT is never short: a device that took less has failed."""
        return self.transfer is not None and (self.status is not _COMPLETED or (not self.is_in and self.short))

    @property
    def babbled(self) -> bool:
        """Whether the device has sent more than there was room for."""
        return self.status is TransferStatus.BABBLE

    @property
    def taken_back(self) -> bool:
        """Whether its transfer did not end by itself: it was cancelled, given up on, or its device is gone."""
        return self.transfer is not None and self.status in _TAKEN_BACK

    @property
    def whole(self) -> bool:
        """Whether its transfer was cancelled when it had moved every byte."""
        if self.status is not TransferStatus.CANCELLED or self.setup is not None:
            return False
        return self.moved > 0 and not self.short

    def end(self, transfer: Transfer) -> None:
        """Its transfer has ended, or is waited for no more, with `Transfer.status` and `Transfer.actual`, which may be
        anything. Raises TypeError if no bytes were counted, but something else; it has failed then."""
        self.ended = True
        wanted, moved, status = self.length - self.done, transfer.actual, transfer.status
        self.status = status if status is _COMPLETED or status is None else known(status)
        if moved == wanted:
            self.moved = wanted
            return
        try:
            moved = as_int(moved)
        except TypeError:
            self.status = TransferStatus.ERROR
            raise
        if 0 <= moved < wanted:
            self.moved = moved
        else:
            self.status, self.moved = TransferStatus.BABBLE, wanted

    def skip(self, done: int) -> None:
        """Leave out the first `done` bytes, which were moved before the endpoint was stopped in mid-TD (4.6.9)."""
        self.done = done
        rest = []
        for window in self.windows or ():
            if done < len(window):
                rest.append(window[done:])
            done = max(done - len(window), 0)
        self.windows = rest


def collect(
    ring: ConsumerRing, memory: GuestMemory, type: TransferType, context: int, *, is_in: bool, begun: bool = False
) -> Td | None:
    """Take the next whole TD off the ring; None, and the ring as it was, if the driver has not written one yet.

    For a bulk or interrupt endpoint, whose context lies at `context`, the part of a TD up to an Event Data TRB will do
    (`Td.partial`) if it is of whole packets, or if `context` is 0. One without data will do only if another part has
    `begun` the TD: if that has none at all, it is an empty packet. For a control endpoint it is a Setup Stage, an
    optional Data Stage and a Status Stage (3.2.9), or a No Op. Of a long TD it is the first STEP TRBs, not mapped yet,
    and the ring stands behind them (`Td.unread`).
    Raises TdFault, RingLoopError, GuestMemoryError; the ring then stands at the TD's first TRB.
    """
    first = ring.read()
    if first is None:
        return None
    address, cycle = first.address, ring.cycle
    links = ring.link_ioc.copy() if ring.link_ioc else []
    td = Td([first], cycle, is_in)
    complete = False
    try:
        if type is TransferType.CONTROL and first.control & _TYPE != _NO_OP:
            complete = _collect_control(td, ring, memory)
        elif collect_chain(td, ring, memory, type, context, begun, STEP):
            if not td.unread:
                map_buffers(td, td.trbs, memory, type)
            complete = True
    finally:
        if not complete:
            ring.put_back(address, cycle, links)
    if not complete:
        return None
    if td.unread:
        td.links = links
    elif ring.link_ioc:
        td.links = ring.link_ioc.copy()
        ring.link_ioc.clear()
    return td


def collect_chain(
    td: Td, ring: ConsumerRing, memory: GuestMemory, type: TransferType, context: int, begun: bool, limit: int
) -> bool:
    """Read on in a TD that is no control transfer, until it has `limit` TRBs and is `Td.unread`; False if the driver
    has not written as much."""
    trbs = td.trbs
    td.unread = False
    if trbs[-1].control & _CH:
        if not ring.read_chain(trbs, limit):
            if type is TransferType.ISOCHRONOUS or not _cut(trbs, ring, memory, context, begun):
                return False
            td.partial = True
        elif trbs[-1].control & _CH:
            if limit >= TRB_LIMIT:
                raise TdFault(trbs[-1], f"more than {TRB_LIMIT} TRBs in one TD")
            td.unread = True
    return True


def _collect_stage(trbs: list[Trb], ring: ConsumerRing) -> bool:
    """Append what is chained to the last of `trbs`, in a stage of a control transfer; whether the chain is complete."""
    if not trbs[-1].control & _CH:
        return True
    complete = ring.read_chain(trbs, STEP)
    if complete and trbs[-1].control & _CH:
        raise TdFault(trbs[-1], f"more than {STEP} TRBs in a control transfer")
    return complete


def _cut(trbs: list[Trb], ring: ConsumerRing, memory: GuestMemory, context: int, begun: bool) -> bool:
    """Leave of an incomplete chain what ends with an Event Data TRB and is of whole packets, as much as there is, and
    the ring right behind it; False if there is no such part. A short packet would end the transfer."""
    packet_size, total, end = -1, 0, 0
    for index, trb in enumerate(trbs):
        if trb.control & _TYPE != _EVENT_DATA:
            total += data_length(trb)
            continue
        if packet_size < 0:
            packet_size = int.from_bytes(memory.read(context + _PACKET_SIZE, 2), "little") if context else 1
        may_end = packet_size > 0 and total % packet_size == 0 if total else begun
        if may_end:
            end = index + 1
    if not end:
        return False
    if end < len(trbs):
        following = trbs[end]
        ring.address, ring.cycle = following.address, following.control & 1
        del trbs[end:]
    return True


def map_buffers(td: Td, trbs: list[Trb], memory: GuestMemory, type: TransferType) -> None:
    """Check TRBs of a TD that is no control transfer, all of them or the next ones, and map their buffers; a TD without
    data TRBs moves nothing. The first of those is a Normal TRB, or Isoch, which Normal TRBs may follow (3.2.11).
    """
    leading = _ISOCH if type is TransferType.ISOCHRONOUS else _NORMAL
    first = trbs[0]
    if len(trbs) == 1 and first.control & (_TYPE | _IDT) == leading and td.windows is None:
        length = first.status & _LENGTH
        td.length = length
        try:
            td.windows = memory.windows(first.parameter, length, write=td.is_in) if length else []
        except UnsharedMemoryError as unshared:
            td.windows, td.unreachable = [], unshared
        except GuestMemoryError as error:
            raise TdFault(first, str(error)) from error
        return
    data: list[Trb] = []
    for trb in trbs:
        kind = trb.control & _TYPE
        if kind == (leading if td.windows is None and not data else _NORMAL):
            data.append(trb)
        elif kind == _EVENT_DATA:
            td.event_data = True
        elif kind != _NO_OP:
            raise TdFault(trb, "not a TRB for this endpoint")
    _map_data(td, data, memory)


def _map_data(td: Td, data: list[Trb], memory: GuestMemory) -> None:
    """Windows for the data TRBs in order, behind those that there are, neighbours in guest memory joined."""
    if not data:
        return
    ranges: list[tuple[int, int] | memoryview] = []
    start = length = 0
    total = td.length
    for trb in data:
        size = trb.status & _LENGTH
        total += size
        if trb.control & _IDT:
            if td.is_in or size > spec.IMMEDIATE_DATA_MAX:
                raise TdFault(trb, "immediate data that is IN or longer than 8 bytes")
            if length:
                ranges.append((start, length))
                length = 0
            ranges.append(memoryview(trb.parameter.to_bytes(8, "little"))[:size])
        elif size:
            if trb.parameter == start + length and length:
                length += size
            else:
                if length:
                    ranges.append((start, length))
                start, length = trb.parameter, size
    if length:
        ranges.append((start, length))
    if total > spec.TD_LENGTH_MAX:
        raise TdFault(data[0], "a TD of 16 MiB or more")
    td.length = total
    try:
        windows = memory.gather(ranges, write=td.is_in)
    except UnsharedMemoryError as unshared:
        td.unreachable = unshared
    except GuestMemoryError as error:
        raise TdFault(_at(data, error.address), str(error)) from error
    else:
        td.windows = windows if td.windows is None else td.windows + windows
        return
    td.windows = []


def _at(data: list[Trb], address: int) -> Trb:
    """The TRB whose buffer has a byte at this address, or begins with it."""
    for trb in data:
        if not trb.control & _IDT and trb.parameter <= address < trb.parameter + max(trb.status & _LENGTH, 1):
            return trb
    return data[0]


def _collect_control(td: Td, ring: ConsumerRing, memory: GuestMemory) -> bool:
    """The stages of a control transfer (4.11.2.2); whether the driver has written them all."""
    trbs = td.trbs
    setup = trbs[0]
    if setup.control & _TYPE != _SETUP:
        raise TdFault(setup, "a control transfer starts with a Setup Stage TRB")
    if not setup.control & _IDT or setup.status & _LENGTH != 8:
        raise TdFault(setup, "a Setup Stage TRB holds eight bytes of immediate data")
    td.setup = SetupPacket.unpack(setup.parameter.to_bytes(8, "little"))
    td.is_in = td.setup.is_in
    data: list[Trb] = []
    while True:
        trb = ring.read()
        if trb is None:
            return False
        stage = len(trbs)
        trbs.append(trb)
        kind = trb.control & _TYPE
        if kind == _DATA:
            if data or bool(trb.control & spec.TRB_DIR) != td.is_in:
                raise TdFault(trb, "a second Data Stage, or one in the wrong direction")
        elif kind == _EVENT_DATA and trb.control & _CH == 0:
            continue  # Event Data that stands alone between the stages
        elif kind != _STATUS:
            raise TdFault(trb, "not a TRB for this stage of a control transfer")
        if not _collect_stage(trbs, ring):
            return False
        for later in trbs[stage + 1 :]:
            if later.control & _TYPE not in ((_NORMAL, _EVENT_DATA, _NO_OP) if kind == _DATA else (_EVENT_DATA,)):
                raise TdFault(later, "not a TRB for this stage of a control transfer")
        if kind == _STATUS:
            break
        data = [each for each in trbs[stage:] if each.control & _TYPE in (_DATA, _NORMAL)]
    td.windows = []
    _map_data(td, data, memory)
    if td.length > td.setup.length:
        _shorten(td, td.setup.length)
    return True


def _shorten(td: Td, length: int) -> None:
    """Drop buffer space beyond wLength: no device sends or takes more in a data stage."""
    windows, left = [], length
    for window in td.windows or ():
        if left:
            windows.append(window[:left])
            left -= len(windows[-1])
    td.windows = windows
    td.length = length


def data_length(trb: Trb) -> int:
    """Bytes of a TRB's buffer; 0 for one that has none."""
    return trb.status & _LENGTH if trb.control & _TYPE in (_NORMAL, _DATA, _ISOCH) else 0
