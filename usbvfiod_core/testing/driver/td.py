"""Transfer descriptors: what a driver queues, and what becomes of it (4.11.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

from ...memory import PAGE_SIZE
from ...usb.requests import SetupPacket
from ...xhci import spec
from ..memory import GuestRam
from . import trb as make
from .controller import ControllerSide
from .errors import DriverError, ProtocolError
from .trb import Event, Trb

TRB_BUFFER = 1 << 16
"""A TRB's buffer does not cross a multiple of this (table 6-21)."""

_HALTING = frozenset((spec.CC_BABBLE, spec.CC_TRANSACTION_ERROR, spec.CC_STALL, spec.CC_SPLIT_TRANSACTION))
_GOOD = frozenset((spec.CC_SUCCESS, spec.CC_SHORT_PACKET))


class TdOptions(TypedDict, total=False):
    """How a TD is made of TRBs; every submitting method takes these as keyword arguments.

    split        lengths of the first TRBs of the data (0 is allowed); what is left is split at multiples of 64 KiB
    scatter      each TRB's data lies in an allocation of its own, at the end of a page
    buffer       address of a buffer of the caller's; it is neither copied nor freed
    immediate    up to eight bytes of OUT data go into the TRB itself (IDT)
    event_data   an Event Data TRB ends the TD and gives the event, instead of the last data TRB
    ioc          ask for an event at the end (default True)
    isp          ask for an event on a short packet (default: True for IN)
    bei          the event at the end does not interrupt (default False)
    ioc_each     ask for an event for every TRB
    interrupter  Interrupter Target of every TRB (default 0)
    doorbell     ring the doorbell (default True); False leaves that to `Pipe.doorbell`
    """

    split: Sequence[int]
    scatter: bool
    buffer: int
    immediate: bool
    event_data: bool
    ioc: bool
    isp: bool
    bei: bool
    ioc_each: bool
    interrupter: int
    doorbell: bool


class TdPipe(Protocol):
    """What a TD needs of the pipe that it is queued on."""

    halts: bool
    address: int
    slot_id: int

    @property
    def driver(self) -> ControllerSide: ...

    def recover(self) -> None: ...


class Td:
    """One TD on a transfer ring, or the two or three of a control transfer (4.11.2.2).

    done             an event has ended it, or it was taken off the ring
    completion_code  of its last event; 0 while it is queued, and for a TD that was taken off the ring
    actual           bytes moved. Exact when its TRBs ask for ISP; else counted up to the TRB of the event
    events           its events, in order
    data             IN: the bytes that came, after completion (own buffers only)
    addresses        of its TRBs; `start` and `end` are (pointer, cycle state) before and behind it
    """

    __slots__ = (
        "_event_data",
        "_last_event",
        "_owned",
        "_pieces",
        "_short",
        "actual",
        "addresses",
        "completion_code",
        "data",
        "done",
        "end",
        "events",
        "is_control",
        "is_in",
        "lengths",
        "pipe",
        "start",
        "trbs",
    )

    def __init__(self, pipe: TdPipe, trbs: Sequence[Trb], *, is_in: bool) -> None:
        self.pipe = pipe
        self.trbs = trbs
        self.is_in = is_in
        self.lengths = [_data_length(trb) for trb in trbs]
        self.is_control = trbs[0].type == spec.TRB_SETUP_STAGE
        self.addresses: list[int] = []
        self.start = self.end = (0, 0)
        self.done = False
        self.completion_code = 0
        self.actual = 0
        self.events: list[Event] = []
        self.data = b""
        self._short = False
        self._pieces: list[tuple[int, int]] = []
        self._owned: list[int] = []
        self._event_data: dict[int, int] = {}
        self._last_event = -1
        for index, trb in enumerate(trbs):
            if trb.control & spec.TRB_IOC:
                self._last_event = index
            if trb.type == spec.TRB_EVENT_DATA:
                self._event_data[trb.parameter] = index

    @property
    def wants_event(self) -> bool:
        """Whether it tells of its success; if not, it is done when a later TD is."""
        return self._last_event >= 0

    @property
    def interrupter(self) -> int:
        """Interrupter Target of its last TRB; events of TDs with different ones come in no particular order."""
        return self.trbs[-1].status >> spec.TRB_INTERRUPTER_SHIFT

    @property
    def is_good(self) -> bool:
        """Whether it ended with Success or Short Packet."""
        return self.completion_code in _GOOD

    @property
    def has_halted(self) -> bool:
        """Whether it ended with an error that halts the endpoint (4.10.2)."""
        return self.completion_code in _HALTING and self.pipe.halts

    def wait(self, timeout: float | None = None) -> Td:
        """Wait until it is done; returns itself, whatever the outcome. Raises DriverTimeoutError."""
        driver = self.pipe.driver
        if not self.done:
            driver.handle_events()
        if not self.done:
            what = f"endpoint {self.pipe.address:#04x} of slot {self.pipe.slot_id}: a transfer is not done"
            driver.wait_until(lambda: self.done, what, timeout)
        return self

    def result(self, timeout: float | None = None) -> bytes:
        """Wait, and return the data of an IN transfer. Raises DriverError naming the completion code for a failure."""
        self.wait(timeout)
        if self.completion_code not in _GOOD:
            what = "was taken off the ring" if not self.completion_code else "failed"
            raise DriverError(
                f"the transfer on endpoint {self.pipe.address:#04x} of slot {self.pipe.slot_id} {what} "
                f"after {self.actual} of {sum(self.lengths)} bytes",
                self.completion_code,
                self.trbs[0],
            )
        return self.data

    # -- for Pipe --------------------------------------------------------------------------------------------------

    def index_of(self, event: Event) -> int:
        """Which of its TRBs the event is about, -1: none."""
        if event.is_event_data:
            return self._event_data.get(event.parameter, -1)
        try:
            return self.addresses.index(event.parameter)
        except ValueError:
            return -1

    def record(self, event: Event, index: int) -> None:
        """Take an event for the TRB at `index`, after checking that it can be true (6.4.2.1)."""
        code = event.completion_code
        self.events.append(event)
        self.completion_code = code
        if event.is_event_data:
            self.actual = self._event_data_actual(event, index)
        else:
            length, residue = self.lengths[index], event.length
            if residue > length:
                raise ProtocolError(f"the residue {residue} is more than the TRB's length {length}", code, event)
            if code == spec.CC_SUCCESS and residue:
                raise ProtocolError(f"Success with a residue of {residue}", code, event)
            if code == spec.CC_SHORT_PACKET:
                if not self.is_in:
                    raise ProtocolError("Short Packet for an OUT transfer", code, event)
                if not residue and length:
                    raise ProtocolError("Short Packet without a residue", code, event)
            if not (self.is_control and self._short):
                self.actual = sum(self.lengths[:index]) + length - residue
        if code == spec.CC_SHORT_PACKET:
            self._short = True
            later_event_data = any(place > index for place in self._event_data.values())
            self.done = index >= self._last_event or not (self.is_control or later_event_data)
        elif code == spec.CC_SUCCESS:
            self.done = index >= self._last_event
        else:
            self.done = True
        if self.done and self.is_control and self._short and code == spec.CC_SUCCESS:
            self.completion_code = spec.CC_SHORT_PACKET

    def stopped(self, event: Event, index: int) -> None:
        """Take a Stopped event: how far the TD had come when its endpoint was stopped (4.6.9)."""
        self.events.append(event)
        if event.completion_code == spec.CC_STOPPED_LENGTH_INVALID:
            return
        if event.completion_code == spec.CC_STOPPED_SHORT_PACKET:
            self.actual = event.length  # the EDTLA
            return
        if event.length > self.lengths[index]:
            raise ProtocolError(f"Stopped with a residue of {event.length}", event.completion_code, event)
        self.actual = sum(self.lengths[:index]) + self.lengths[index] - event.length

    def finish(self, code: int) -> None:
        """End it and fetch the data. `code` 0 says that it was taken off the ring."""
        self.done = True
        self.completion_code = code
        if self._owned and self.is_in:
            ram = self.pipe.driver.ram
            self.data = b"".join(bytes(ram.window(start, length)) for start, length in self._pieces if length)
            self.data = self.data[: self.actual]
        if not self.has_halted:
            self.release()

    def release(self) -> None:
        """Free the buffers; one that has halted the endpoint keeps them meanwhile, for it may be tried again."""
        for start in self._owned:
            self.pipe.driver.ram.free(start)
        self._owned = []

    def own(self, pieces: list[tuple[int, int]], owned: list[int]) -> None:
        """Say where the data is, and which allocations end with it."""
        self._pieces, self._owned = pieces, owned

    def forget_progress(self) -> None:
        """The endpoint executes it again from its start."""
        self.done = self._short = False
        self.completion_code = self.actual = 0

    def _event_data_actual(self, event: Event, index: int) -> int:
        """Each event's length counts from the Event Data TRB before it (4.11.5.2)."""
        total = sum(earlier.length for earlier in self.events if earlier.is_event_data)
        asked = sum(self.lengths[:index])
        if total > asked:
            raise ProtocolError(f"Event Data says {total} of {asked} bytes", event.completion_code, event)
        if event.completion_code == spec.CC_SUCCESS and total < asked:
            raise ProtocolError(f"Event Data says Success and {total} of {asked} bytes", spec.CC_SUCCESS, event)
        return total


# -- building ------------------------------------------------------------------------------------------------------


class DataBuffer:
    """Where the `length` bytes of one TD lie: pieces, one for each TRB, and the allocations to free afterwards."""

    def __init__(self, ram: GuestRam, data: bytes | None, length: int, options: TdOptions) -> None:
        self.length = length
        buffer = options.get("buffer")
        self.pieces: list[tuple[int, int]] = []
        self.owned: list[int] = []
        split = options.get("split", ())
        if buffer is None and options.get("scatter"):
            for part in _parts(split, length, PAGE_SIZE):
                small = part <= PAGE_SIZE
                start = ram.allocate(max(part, 1), page_end=small, boundary=0 if small else TRB_BUFFER)
                self.owned.append(start)
                self.pieces.append((start, part))
        else:
            if buffer is None:
                buffer = ram.allocate(max(length, 1), align=64)
                self.owned.append(buffer)
            self.pieces = cut(buffer, length, split)
        if data is not None:
            done = 0
            for start, part in self.pieces:
                ram.write(start, data[done : done + part])
                done += part


def cut(address: int, length: int, split: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Pieces (address, length) of a contiguous buffer for TRBs: first as `split` says, then at multiples of 64 KiB.

    At least one piece, of length 0 for a transfer without data.
    """
    pieces = []
    done = 0
    for part in _parts(split, length, length):
        start, left = address + done, part
        while True:
            room = TRB_BUFFER - start % TRB_BUFFER
            piece = min(left, room)
            pieces.append((start, piece))
            start += piece
            left -= piece
            if not left:
                break
        done += part
    return pieces


def _parts(split: Sequence[int], length: int, limit: int) -> list[int]:
    """The lengths of `split`, and what is left of `length` in parts of at most `limit` bytes."""
    parts = [*split]
    rest = length - sum(parts)
    if rest < 0 or any(part < 0 for part in parts):
        raise DriverError(f"the split {parts} does not fit the {length} bytes of the TD")
    while rest > limit:
        parts.append(limit)
        rest -= limit
    if rest or not parts:
        parts.append(rest)
    return parts


def data_td(
    pieces: Sequence[tuple[int, int]],
    data: bytes | None,
    *,
    is_in: bool,
    max_packet_size: int,
    tag: int,
    options: TdOptions,
) -> list[Trb]:
    """The TRBs of a bulk or interrupt TD; `tag` is the parameter of an Event Data TRB."""
    if options.get("immediate"):
        if is_in or data is None or len(data) > spec.IMMEDIATE_DATA_MAX:
            raise DriverError("immediate data is up to eight bytes of OUT data")
        return [make.immediate(data, _end_flags(options), interrupter=options.get("interrupter", 0))]
    trbs = _chain(pieces, options, is_in=is_in, max_packet_size=max_packet_size)
    return _close(trbs, options, tag)


def control_td(
    setup: SetupPacket,
    pieces: Sequence[tuple[int, int]],
    data: bytes | None,
    length: int,
    *,
    max_packet_size: int,
    tag: int,
    options: TdOptions,
) -> list[Trb]:
    """The TRBs of a control transfer: Setup Stage, Data Stage if it has any length, Status Stage (4.11.2.2)."""
    interrupter = options.get("interrupter", 0)
    each = spec.TRB_IOC if options.get("ioc_each") else 0
    trbs = [make.setup_stage(setup, each, interrupter=interrupter)]
    if length:
        if options.get("immediate") and data is not None:
            first = make.immediate(data, each, interrupter=interrupter)
            chain = [first]
        else:
            chain = _chain(pieces, options, is_in=setup.is_in, max_packet_size=max_packet_size)
        # The first TRB of the stage is a Data Stage TRB; Normal and Event Data TRBs follow it.
        parameter, status, control = chain[0]
        control = control & ~spec.TRB_TYPE_MASK | spec.TRB_DATA_STAGE << spec.TRB_TYPE_SHIFT
        chain[0] = Trb(parameter, status, control | (spec.TRB_DIR if setup.is_in else 0))
        if options.get("event_data"):
            chain = _close(chain, options, tag)
        trbs += chain
    status_in = not (length and setup.is_in)
    trbs.append(make.status_stage(is_in=status_in, flags=_end_flags(options), interrupter=interrupter))
    return trbs


def _chain(pieces: Sequence[tuple[int, int]], options: TdOptions, *, is_in: bool, max_packet_size: int) -> list[Trb]:
    flags = spec.TRB_ISP if options.get("isp", is_in) else 0
    if options.get("ioc_each"):
        flags |= spec.TRB_IOC
    interrupter = options.get("interrupter", 0)
    left = sum(length for _, length in pieces)
    trbs = []
    for number, (address, length) in enumerate(pieces, 1):
        left -= length
        last = number == len(pieces)
        td_size = 0 if last else min(-(-left // max(max_packet_size, 1)), 31)  # 4.11.2.4
        trbs.append(
            make.normal(address, length, flags | (0 if last else spec.TRB_CH), interrupter=interrupter, td_size=td_size)
        )
    return trbs


def _close(trbs: list[Trb], options: TdOptions, tag: int) -> list[Trb]:
    """Ask for the event at the end of the TD: in its last TRB, or by an Event Data TRB behind that."""
    parameter, status, control = trbs[-1]
    if options.get("event_data"):
        trbs[-1] = Trb(parameter, status, control | spec.TRB_CH)
        trbs.append(make.event_data(tag, _end_flags(options), interrupter=options.get("interrupter", 0)))
    else:
        trbs[-1] = Trb(parameter, status, control | _end_flags(options))
    return trbs


def _end_flags(options: TdOptions) -> int:
    flags = spec.TRB_IOC if options.get("ioc", True) else 0
    return flags | (spec.TRB_BEI if options.get("bei") else 0)


def _data_length(trb: Trb) -> int:
    if trb.type in (spec.TRB_NORMAL, spec.TRB_DATA_STAGE, spec.TRB_ISOCH):
        return trb.status & spec.TRB_LENGTH_MASK
    return 0
