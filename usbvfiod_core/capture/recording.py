"""A recording as a whole: its devices, and what was transferred with each, submission and completion together.

`read_recording` takes files of usbmon (dumpcap, tcpdump), of `usbvfiod capture` and of the Rust program, whose failed
transfers end with a record of the kind FAILED.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from ..errors import CaptureError
from ..usb.requests import SetupPacket
from ..usb.transfer import TransferStatus, TransferType
from .bulk import gathered, let_go, uncollected
from .pcapng import Interface, Reader
from .usbmon import COMPLETE, FAILED, LINK_TYPES, STATUS, SUBMIT, Record, parse

MAX_BYTES = 256 << 20
"""Of a file: all of it is kept in memory."""
MAX_RECORDS = 500_000
"""A record takes half a KiB, and 8 us to read."""
MAX_DEVICES = 256
"""Whose records are told apart."""
MAX_OPEN = 65_536
"""Transfers that have begun and not ended. A dict that grows beyond takes 10 ms to do so."""
_RUN = 2048
"""Records that are sorted in one go, while no other thread has a turn."""
_STREAM = re.compile(r"stream ([0-9]{1,5})")
"""The comment that `usbvfiod capture` gives a packet of a bulk stream."""


@dataclass(slots=True)
class Exchange:
    """One transfer as it was recorded. One half may be missing: what began before the recording, or ended after it."""

    place: int
    """Its submission's number among all records of the file; its completion's, without one."""
    submitted: Record | None = None
    completed: Record | None = None
    completed_place: int = -1

    @property
    def first(self) -> Record:
        """The half that is there."""
        record = self.submitted or self.completed
        assert record is not None
        return record

    @property
    def setup(self) -> SetupPacket | None:
        """Of a control transfer whose submission was recorded."""
        return self.submitted.request if self.submitted is not None else None

    @property
    def status(self) -> TransferStatus | None:
        """How it ended; None if that was not recorded."""
        if self.completed is None:
            return None
        return STATUS.get(self.completed.status, TransferStatus.ERROR)

    @property
    def asked(self) -> int | None:
        """Bytes that the driver asked for or gave."""
        return self.submitted.length if self.submitted is not None else None

    @property
    def moved(self) -> int:
        """Bytes that were moved."""
        return self.completed.length if self.completed is not None else 0

    @property
    def data(self) -> bytes | memoryview:
        """The data that were captured: what was sent (OUT), or what was answered (IN)."""
        carrier = self.completed if self.first.is_in else self.submitted
        return carrier.data if carrier is not None else b""

    @property
    def missing(self) -> int:
        """Bytes of a bulk or interrupt transfer that were asked for (OUT) or moved (IN), and are not there."""
        if self.first.type not in (TransferType.BULK, TransferType.INTERRUPT):
            return 0
        return max((self.moved if self.first.is_in else self.asked or 0) - len(self.data), 0)

    @property
    def is_cut(self) -> bool:
        """Whether data were moved that were not captured, or not all."""
        carrier = self.completed if self.first.is_in else self.submitted
        if carrier is None or (carrier.is_in and self.status is not TransferStatus.COMPLETED):
            return False
        if carrier.type is TransferType.ISOCHRONOUS:
            return any(
                packet.offset + packet.length > len(carrier.data)
                for packet in carrier.packets
                if packet.length and not (carrier.is_in and packet.status)
            )
        return len(carrier.data) < carrier.length

    @property
    def seconds(self) -> float | None:
        """How long the device took."""
        if self.submitted is None or self.completed is None:
            return None
        return (self.completed.time - self.submitted.time) / 1e9


@dataclass(slots=True)
class Traffic:
    """All that was recorded of one device."""

    interface: Interface
    bus: int
    device: int
    exchanges: list[Exchange] = field(default_factory=lambda: gathered(()))
    """In the order in which they were submitted."""
    ended: list[Exchange] = field(default_factory=lambda: gathered(()))
    """Those that ended, in the order in which they did."""
    unmatched: int = 0
    """Completions whose submission is not there though others of the endpoint were before: records are missing."""

    @property
    def where(self) -> str:
        """As Wireshark names it, without the endpoint: `3.60`."""
        return f"{self.bus}.{self.device}"

    def let_go(self) -> None:
        """Forget all of it, in a thread: nobody waits until that is done."""
        let_go(self.ended, self.exchanges)


@dataclass(slots=True)
class Recording:
    """What is in a file."""

    devices: list[Traffic] = field(default_factory=list)
    application: str = ""
    """What wrote it."""
    remarks: list[str] = field(default_factory=list)
    """What is wrong with the file as a whole, for people."""
    dropped: int = 0
    """Packets that the program which wrote it has lost."""
    records: int = 0

    def let_go(self) -> None:
        """Forget the traffic of all devices, in a thread: nobody waits until that is done."""
        for each in self.devices:
            each.let_go()


_Records = deque[tuple[Interface, Record]]


def read_recording(file: BinaryIO) -> Recording:
    """Everything in a file. Raises CaptureError for one that is no recording of USB, or that is too large; OSError."""
    records: _Records = uncollected(deque())
    try:
        return _read(file, records)
    finally:
        let_go(records)


def _read(file: BinaryIO, records: _Records) -> Recording:
    """`records` are those that nobody has taken away yet."""
    reader = Reader(file, most=MAX_BYTES)
    recording = Recording()
    others: dict[int, int] = {}
    broken, in_front, last, backwards = 0, 0, 0, 0
    for packet in reader:
        if len(records) >= MAX_RECORDS:
            raise CaptureError(f"it has more than {MAX_RECORDS} records; record less, or cut it with editcap")
        in_front += packet.dropped
        link_type = packet.interface.link_type
        if link_type not in LINK_TYPES:
            others[link_type] = others.get(link_type, 0) + 1
            continue
        try:
            record = uncollected(parse(packet.data, link_type, packet.order, packet.time))
        except CaptureError:
            broken += 1
            continue
        if packet.comment and (stream := _STREAM.fullmatch(packet.comment)):
            record.stream = int(stream[1])
        backwards += record.time < last
        last = max(last, record.time)
        records.append(uncollected((packet.interface, record)))
    if not records:
        raise CaptureError(_nothing(others, broken))
    if backwards:
        _sort(records)
        recording.remarks.append(f"{backwards} records are not in the order of their times; they have been sorted")
    recording.application, recording.records = reader.application, len(records)
    recording.dropped = max(in_front, sum(each.dropped or 0 for each in reader.interfaces))
    if recording.dropped:
        recording.remarks.append(f"{recording.dropped} packets were lost while it was recorded")
    if broken:
        recording.remarks.append(f"{broken} packets do not hold a whole record, and are left out")
    if others:
        recording.remarks.append(f"{sum(others.values())} packets are not of USB, and are left out")
    if reader.cut:
        recording.remarks.append(reader.cut)
    recording.devices = _devices(records)
    return recording


def _nothing(others: dict[int, int], broken: int) -> str:
    if broken:
        return f"none of its {broken} packets is a whole record of USB"
    if others:
        types = ", ".join(map(str, sorted(others)))
        return f"its packets are of link type {types}; USB as Linux records it is {LINK_TYPES[0]} or {LINK_TYPES[1]}"
    return "there is no packet in it"


def _time(pair: tuple[Interface, Record]) -> int:
    return pair[1].time


def _taken(records: _Records) -> Iterator[tuple[Interface, Record]]:
    """One after the other, each taken away: to let go of all of them at once takes long."""
    while records:
        yield records.popleft()


def _sort(records: _Records) -> None:
    """Put them into the order of their times. The guest that is served meanwhile has a turn now and then."""
    runs: list[list[tuple[Interface, Record]]] = []
    rest = _taken(records)
    while run := sorted(islice(rest, _RUN), key=_time):
        runs.append(uncollected(run))
    records.extend(heapq.merge(*runs, key=_time))
    while runs:
        runs.pop()


def _devices(records: _Records) -> list[Traffic]:
    """The traffic of each device; takes the records away."""
    found: dict[int, Traffic] = {}
    try:
        _pair(records, found)
    except BaseException:
        for each in found.values():
            each.let_go()
        raise
    return sorted(found.values(), key=lambda each: (each.bus, each.device))


def _pair(records: _Records, found: dict[int, Traffic]) -> None:
    """Put submissions and completions together. Keys of dicts are numbers, at which no collector looks."""
    interfaces: dict[int, int] = {}
    open_ones: dict[int, int] = {}
    """By transfer: the number among the device's exchanges."""
    seen: dict[int, None] = {}
    for place, (interface, record) in enumerate(_taken(records)):
        number = interfaces.setdefault(id(interface), len(interfaces))
        key = (number << 16 | record.bus) << 8 | record.device
        traffic = found.get(key)
        if traffic is None:
            if len(found) == MAX_DEVICES:
                raise CaptureError(f"it has records of more than {MAX_DEVICES} devices")
            traffic = found[key] = Traffic(interface, record.bus, record.device)
        # Drivers use an id again as soon as its transfer is back, and the Rust program's are not even one's alone.
        transfer = key << 64 | record.id
        endpoint = key << 8 | (record.endpoint & 0x7F if record.type is TransferType.CONTROL else record.endpoint)
        exchanges = traffic.exchanges
        if record.kind == SUBMIT:
            seen[endpoint] = None
            if len(open_ones) >= MAX_OPEN:
                raise CaptureError(f"it has more than {MAX_OPEN} transfers that do not end")
            open_ones[transfer] = len(exchanges)
            exchanges.append(uncollected(Exchange(place, record)))
        elif record.kind in (COMPLETE, FAILED):
            index = open_ones.pop(transfer, None)
            if index is None or exchanges[index].first.endpoint & 0x7F != record.endpoint & 0x7F:
                traffic.unmatched += endpoint in seen
                index = len(exchanges)
                exchanges.append(uncollected(Exchange(place)))
            known = exchanges[index]
            known.completed, known.completed_place = record, place
            traffic.ended.append(known)
    let_go(open_ones, seen)
