"""What the endpoints of a recording gave, and what of it came before what."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from ..capture.bulk import gathered, let_go, uncollected
from ..capture.recording import Exchange
from ..usb.descriptors import Interface
from ..usb.transfer import TransferStatus, TransferType

_BULK = TransferType.BULK
_COMMUNICATIONS, _COMMUNICATIONS_DATA = 0x02, 0x0A
_COMPLETED = TransferStatus.COMPLETED
_GIVEN_UP = (TransferStatus.CANCELLED, TransferStatus.DISCONNECTED)


@dataclass(slots=True)
class Chunk:
    """What one recorded IN transfer brought."""

    data: bytes | memoryview
    status: TransferStatus
    ends: bool
    """Whether the transfer ends behind it: with a short packet, or because a report is one."""
    needed: int
    """Bytes that had been moved before, of those that it waits for."""
    after: float
    """Seconds after what came before it: the chunk before, the data that were sent, or the question for it."""


def outlets(interface: Interface) -> set[int]:
    """Its bulk OUT endpoints."""
    return {each.address for each in interface.endpoints if each.type is _BULK and not each.is_in}


def function(interface: Interface, interfaces: Iterable[Interface]) -> set[int]:
    """The bulk endpoints of the function that an interface reports on: its own, and where it manages communications
    those of the data interfaces that follow (CDC 1.2 3.3)."""
    found = {each.address for each in interface.endpoints if each.type is _BULK}
    if interface.class_code == _COMMUNICATIONS:
        behind = (each for each in interfaces if each.number > interface.number)
        for each in takewhile(lambda each: each.class_code == _COMMUNICATIONS_DATA, behind):
            found |= {endpoint.address for endpoint in each.endpoints if endpoint.type is _BULK}
    return found


class Stream:
    """The bytes of pieces that follow each other. They are not joined: that would take twice the memory, and long."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces: list[bytes | memoryview] = gathered(())
        self._ends = array("Q")
        end = 0
        for piece in pieces:
            end += len(piece)
            self._pieces.append(piece)
            self._ends.append(end)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def part(self, start: int, count: int) -> bytes:
        """So many bytes from there, as far as there are."""
        found = []
        number = bisect_right(self._ends, start)
        while count > 0 and number < len(self._pieces):
            piece = self._pieces[number]
            offset = start - (self._ends[number] - len(piece))
            found.append(piece[offset : offset + count])
            start, count = start + len(found[-1]), count - len(found[-1])
            number += 1
        return b"".join(found)

    def let_go(self) -> None:
        """Forget them, in a thread."""
        self._ends = array("Q")
        let_go(self._pieces)


def whole(exchange: Exchange) -> bytes | memoryview:
    """A transfer's data; zeros take the place of what was cut."""
    missing = exchange.missing
    return bytes(exchange.data) + bytes(missing) if missing else exchange.data


def refusals(exchanges: Iterable[Exchange]) -> set[int]:
    """After how many sent bytes a transfer was answered by a stall."""
    found: set[int] = uncollected(set())
    sent = 0
    for exchange in exchanges:
        if exchange.status is TransferStatus.STALL:
            found.add(sent)
        else:
            sent += exchange.asked or 0
    return found


class Move(NamedTuple):
    """So many bytes were moved: its place in the recording, and its time in nanoseconds."""

    place: int
    time: int
    bytes: int


def moves(awaited: Container[int], outs: Mapping[int, list[Exchange]], ended: Iterable[Exchange]) -> list[Move]:
    """What was moved by these endpoints, in order: OUT from their submissions on, IN from their ends on."""
    sent = (_sent(exchanges) for address, exchanges in outs.items() if address in awaited and address < 0x80)
    return gathered(heapq.merge(*sent, _received(awaited, ended), key=_place))


def _place(move: Move) -> int:
    return move.place


def _sent(exchanges: Iterable[Exchange]) -> Iterator[Move]:
    for each in exchanges:
        if each.submitted is not None and each.status is not TransferStatus.STALL:
            yield uncollected(Move(each.place, each.submitted.time, each.submitted.length))


def _received(awaited: Container[int], ended: Iterable[Exchange]) -> Iterator[Move]:
    for each in ended:
        record = each.completed
        if record is not None and record.is_in and record.endpoint in awaited:
            yield uncollected(Move(each.completed_place, record.time, len(each.data) + each.missing))


def chunks(
    ended: Sequence[Exchange], moved: Sequence[Move], address: int, packet_size: int, type: TransferType
) -> list[Chunk]:
    """What the IN endpoint gave; `moved` is what its data may have waited for."""
    found: list[Chunk] = gathered(())
    number = needed = 0
    question = last = 0
    for exchange in ended:
        record, status = exchange.completed, exchange.status
        if record is None or status is None or record.endpoint != address:
            continue
        while number < len(moved) and moved[number].place < exchange.completed_place:
            needed += moved[number].bytes
            question = moved[number].time
            number += 1
        data = whole(exchange)
        if status in _GIVEN_UP and not data:
            continue
        if status in _GIVEN_UP:
            status = _COMPLETED
        asked = exchange.submitted.time if exchange.submitted is not None else last or record.time
        short = exchange.asked is None or len(data) < exchange.asked or len(data) % (packet_size or 1) != 0
        before = max(question, last, asked)
        after = max(record.time - before, 0) / 1e9
        found.append(uncollected(Chunk(data, status, type is not _BULK or short, needed, after)))
        last = record.time
    while found and found[-1].status in (TransferStatus.ERROR, TransferStatus.BABBLE):
        found.pop()  # it was unplugged
    return found
