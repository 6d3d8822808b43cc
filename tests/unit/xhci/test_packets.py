"""TDs whose TRBs cut packets anywhere, at any packet size, beside a model that moves one packet after the other.

What the model says is in the specification: the packets of a TD are full but for the last (4.10.3, USB 2.0 5.7.3,
5.8.3), a short one ends it, and events follow 4.10.1 and 4.11.5.2. A TD that the driver has not written whole is
executed up to the last Event Data TRB at which a packet ends (4.11.7).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.unit.xhci.kit import CHAIN, IOC, ISP, Event, FakeDevice, Pipe, Rig, Speed, Trb, make, of_type, spec
from tests.unit.xhci.succession import hand_over, quiet
from usbvfiod_core.testing.driver import IsochronousPipe
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

IN, OUT = 0x81, 0x02
BULK, INTERRUPT, ISOCHRONOUS = TransferType.BULK, TransferType.INTERRUPT, TransferType.ISOCHRONOUS
EVENT_DATA = -1
UNTIMELY = (
    spec.CC_STOPPED,
    spec.CC_STOPPED_LENGTH_INVALID,
    spec.CC_STOPPED_SHORT_PACKET,
    spec.CC_RING_OVERRUN,
    spec.CC_RING_UNDERRUN,
)
"""Codes of events that say where a ring stands and nothing of a TD."""

Told = tuple[int, int, int]
"""(place of the TRB, completion code, residue or bytes) of an event."""


@dataclass
class OneTd:
    """`pieces` are TRBs: (bytes, or EVENT_DATA; flags). An IN device sends `given` bytes for it at most."""

    pieces: list[tuple[int, int]]
    given: int | None

    @property
    def length(self) -> int:
        return sum(max(size, 0) for size, _ in self.pieces)

    @property
    def moved(self) -> int:
        return self.length if self.given is None else min(self.given, self.length)


@dataclass
class Case:
    packet_size: int
    is_in: bool
    tds: list[OneTd]
    doorbells: set[int]
    """After how many TRBs the driver rings, beside the end."""
    stops: set[int]
    """At which doorbells it stops the endpoint afterwards, and starts it again."""
    heirs: set[int]
    """At which doorbells another controller goes on afterwards."""
    grants: list[int]
    """How many packets the bus has time for between one stop and the next."""


class PacketDevice(FakeDevice):
    """A device on a bus that moves one packet after the other, as long as it has time for (`time`)."""

    def __init__(self, kind: TransferType) -> None:
        endpoints = (Endpoint(IN, kind, 64, 1), Endpoint(OUT, kind, 64, 1))
        interface = Interface(0, 0xFF, endpoints=endpoints)
        super().__init__(Speed.HIGH, configurations=[Configuration((interface,))])
        self.begin(64)

    def begin(self, packet_size: int) -> None:
        self.packet_size = packet_size
        self.to_send: deque[bytes] = deque()
        self.taken: list[bytes] = []
        self.time = 1 << 30
        self._queue: deque[Transfer] = deque()

    def submit(self, transfer: Transfer) -> None:
        if transfer.endpoint in (IN, OUT):
            transfer.actual = 0
            self._queue.append(transfer)
            self.go_on()
        else:
            super().submit(transfer)

    def cancel(self, transfer: Transfer) -> None:
        if transfer in self._queue:
            self._queue.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED, transfer.actual)
        else:
            super().cancel(transfer)

    def go_on(self) -> None:
        while self._queue and self.time > 0:
            transfer = self._queue[0]
            if transfer.is_in and not self.to_send:
                return
            self.time -= 1
            size = self._receive(transfer) if transfer.is_in else self._send(transfer)
            if size < self.packet_size or transfer.actual == transfer.length:
                self._queue.popleft()
                babbled = transfer.actual > transfer.length
                transfer.complete(TransferStatus.BABBLE if babbled else TransferStatus.COMPLETED, transfer.actual)

    def _receive(self, transfer: Transfer) -> int:
        packet = self.to_send.popleft()
        room = bytearray(b"".join(transfer.windows))
        room[transfer.actual : transfer.actual + len(packet)] = packet
        transfer.write(bytes(room[: transfer.length]))
        transfer.actual += len(packet)
        return len(packet)

    def _send(self, transfer: Transfer) -> int:
        packet = transfer.read()[transfer.actual : transfer.actual + self.packet_size]
        self.taken.append(packet)
        transfer.actual += len(packet)
        return len(packet)


# -- the model -------------------------------------------------------------------------------------------------------


def packets(data: bytes, packet_size: int, *, ends: bool) -> list[bytes]:
    """The packets of so many bytes; `ends`: the last one must be short, though there was room for more."""
    found = [data[at : at + packet_size] for at in range(0, len(data), packet_size)]
    return [*found, b""] if not data or (ends and len(data) % packet_size == 0) else found


def events_of(td: OneTd, first: int, written: int, packet_size: int, *, in_parts: bool) -> list[Told]:
    """What the driver is told when `written` of its TRBs are there, the first being number `first` of all."""
    if written < len(td.pieces):
        written = _executable(td, written, packet_size) if in_parts else 0
    told: list[Told] = []
    left, counted = td.moved, 0
    short = said = False
    for place, (size, flags) in enumerate(td.pieces[:written], first):
        if size == EVENT_DATA:
            if flags & IOC:
                told.append((place, spec.CC_SHORT_PACKET if short else spec.CC_SUCCESS, counted))
            counted = 0
            continue
        here = min(left, size)
        left -= here
        counted += here
        ends_here = here < size and not short
        short |= ends_here
        if not said and (flags & IOC or (ends_here and flags & ISP)):
            told.append((place, spec.CC_SHORT_PACKET if short else spec.CC_SUCCESS, size - here))
            said = short
    return told


def _executable(td: OneTd, written: int, packet_size: int) -> int:
    """How many of the TRBs are executed before the others are written."""
    total = end = 0
    for index, (size, _) in enumerate(td.pieces[:written]):
        if size != EVENT_DATA:
            total += size
        elif (total and total % packet_size == 0) or td.moved < sum(max(size, 0) for size, _ in td.pieces[:end]):
            end = index + 1
    return end


# -- random cases ----------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn, *, isochronous: bool) -> Case:
    packet_size = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 49, 60, 64, 65, 511, 512, 1000, 1023, 1024]))
    is_in = draw(st.booleans())
    sizes = st.one_of(
        st.sampled_from([0, 1, packet_size - 1, packet_size, packet_size + 1, 2 * packet_size]),
        st.integers(0, 3 * packet_size),
    )
    tds, count = [], 0
    for _ in range(draw(st.integers(1, 3))):
        drawn: list[tuple[int, int]] = []
        left = packet_size if isochronous else 1 << 16
        with_event_data = draw(st.booleans())
        for _ in range(draw(st.integers(1, 6))):
            if drawn and with_event_data and draw(st.booleans()):
                drawn.append((EVENT_DATA, IOC))
                continue
            size = min(draw(sizes), left)
            left -= size
            flags = draw(st.sampled_from([0, ISP] if with_event_data else [0, ISP, IOC, IOC | ISP]))
            drawn.append((size, flags if is_in else flags & IOC))
        size, flags = drawn[-1]
        drawn[-1] = size, flags if with_event_data and size != EVENT_DATA else flags | IOC
        if with_event_data and size != EVENT_DATA:
            drawn.append((EVENT_DATA, IOC))
        length = sum(max(size, 0) for size, _ in drawn)
        given = draw(st.none() | st.integers(0, length)) if is_in else None
        tds.append(OneTd(drawn, given))
        count += len(drawn)
    places = st.sets(st.integers(1, count))
    return Case(
        packet_size, is_in, tds, draw(places), draw(places), draw(places), draw(st.lists(st.integers(0, 4), max_size=4))
    )


# -- the controller beside it ----------------------------------------------------------------------------------------


def text(size: int, seed: int) -> bytes:
    return bytes((seed * 37 + place * 7 + place // 251) & 0xFF for place in range(size))


class Beside:
    """A case on the controller, with the driver's memory and ring."""

    def __init__(self, rig: Rig, kind: TransferType, case: Case) -> None:
        assert isinstance(rig.device, PacketDevice)
        self.rig, self.case, self.kind, self.device = rig, case, kind, rig.device
        self.device.begin(case.packet_size)
        address = IN if case.is_in else OUT
        rig.usb.configure_endpoints(add=[Endpoint(address, kind, case.packet_size, 1)], drop=[address])
        self.pipe: Pipe = rig.usb.pipe(address)
        rig.events()
        self.buffers: list[int] = []
        self.addresses: list[int] = []
        self.told: list[Told] = []
        self.data = [text(td.length, number) for number, td in enumerate(case.tds)]

    def trbs(self) -> list[Trb]:
        """All of them; the data lies in order."""
        made: list[Trb] = []
        for td, data in zip(self.case.tds, self.data, strict=True):
            at = self.rig.ram.allocate(max(td.length, 1))
            self.buffers.append(at)
            if self.case.is_in:
                packet_size = self.case.packet_size
                self.device.to_send += packets(data[: td.moved], packet_size, ends=td.moved < td.length)
            else:
                self.rig.ram.write(at, data)
            for index, (size, flags) in enumerate(td.pieces):
                flags |= CHAIN if index < len(td.pieces) - 1 else 0
                if size == EVENT_DATA:
                    made.append(make.event_data(len(made), flags))
                    continue
                trb = make.normal(at, size, flags)
                at += size
                if index == 0 and isinstance(self.pipe, IsochronousPipe):
                    trb = self.pipe.isoch(trb, td.length)
                made.append(trb)
        return made

    def push(self, trb: Trb) -> None:
        self.addresses.append(self.pipe.ring.position[0])
        self.pipe.ring.push(trb)

    def ring(self) -> None:
        self.pipe.doorbell()
        self.listen()

    def stop(self) -> None:
        self.rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=self.pipe.dci)
        commands = self.rig.driver.commands
        commands.ring.retire(len(commands.queue))
        commands.queue.clear()
        self.listen()

    def listen(self) -> None:
        for event in of_type(self.rig.events(), spec.TRB_TRANSFER_EVENT):
            if event.completion_code not in UNTIMELY:
                self.told.append((self._place(event), event.completion_code, event.length))

    def _place(self, event: Event) -> int:
        return event.parameter if event.is_event_data else self.addresses.index(event.pointer)

    def expected(self, written: int) -> list[Told]:
        """What the model says when so many TRBs are written."""
        told, first = [], 0
        for td in self.case.tds:
            here = max(min(written - first, len(td.pieces)), 0)
            in_parts = self.kind is not ISOCHRONOUS
            told += events_of(td, first, here, self.case.packet_size, in_parts=in_parts)
            first += len(td.pieces)
        return told

    def check_data(self) -> None:
        """What lies in memory, or what the device has been sent, packet by packet."""
        packet_size = self.case.packet_size
        if self.case.is_in:
            for td, at, data in zip(self.case.tds, self.buffers, self.data, strict=True):
                assert self.rig.ram.read(at, td.length) == data[: td.moved] + bytes(td.length - td.moved)
            assert not self.device.to_send
        else:
            assert self.device.taken == [each for data in self.data for each in packets(data, packet_size, ends=False)]
        assert self.pipe.state == spec.EP_RUNNING

    def free(self) -> None:
        for at in self.buffers:
            self.rig.ram.free(at)
        self.rig.events()


COUNTS = pytest.mark.parametrize("count", [15, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])


@COUNTS
@pytest.mark.parametrize("kind", [BULK, INTERRUPT, ISOCHRONOUS], ids=lambda kind: kind.name.lower())
def test_whatever_a_driver_writes_and_when(kind: TransferType, count: int) -> None:
    """Rung for after any TRB, each time it is told exactly what can have happened by then."""
    rig = Rig(device=PacketDevice(kind), ring_trbs=256)

    @settings(max_examples=count, deadline=None, derandomize=True)
    @examples(case=cases(isochronous=kind is ISOCHRONOUS))
    def run(case: Case) -> None:
        beside = Beside(rig, kind, case)
        trbs = beside.trbs()
        for written, trb in enumerate(trbs, 1):
            beside.push(trb)
            if written in case.doorbells or written == len(trbs):
                beside.ring()
                assert beside.told == beside.expected(written)
        beside.check_data()
        beside.free()

    run()
    rig.close()


@COUNTS
@pytest.mark.parametrize("kind", [BULK, INTERRUPT], ids=lambda kind: kind.name.lower())
def test_stopped_after_any_packet(kind: TransferType, count: int) -> None:
    """Whenever the endpoint is stopped, or another controller goes on, no packet is lost, moved twice or cut in two,
    and the events are the same."""
    rig = Rig(device=PacketDevice(kind), ring_trbs=256)

    @settings(max_examples=count, deadline=None, derandomize=True)
    @examples(case=cases(isochronous=False))
    def run(case: Case) -> None:
        beside = Beside(rig, kind, case)
        trbs, grants = beside.trbs(), iter(case.grants)
        for written, trb in enumerate(trbs, 1):
            beside.push(trb)
            if written in case.doorbells:
                beside.device.time = next(grants, 1 << 30)
                beside.ring()
                if written in case.heirs:
                    quiet(rig.bus)
                    hand_over(rig.bus)
                if written in case.stops:
                    beside.stop()
        for time in (*grants, 1 << 30):
            beside.device.time = time
            beside.ring()
            if time < 1 << 30:
                beside.stop()
        beside.device.go_on()
        rig.bus.run()
        beside.listen()
        assert beside.told == beside.expected(len(trbs))
        beside.check_data()
        beside.free()

    run()
    rig.close()
