"""TDs that the driver writes in parts, each when the Event Data of the last has come (4.11.7); macOS does so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, CHAIN, IOC, Event, Rig, Speed, make, of_type, spec
from usbvfiod_core.usb.descriptors import Endpoint
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

PART = 4096
PARTS = 6


class Writer:
    """Writes one TD in parts to a bulk endpoint of the rig, from or into a buffer of its own."""

    def __init__(self, rig: Rig, address: int, part: int = PART) -> None:
        self.rig = rig
        self.pipe = rig.usb.pipe(address)
        self.part = part
        self.buffer = rig.ram.allocate(part * PARTS, align=4096)
        self.parts = 0

    def push(self, *, last: bool = False, event_data: bool = True, doorbell: bool = True) -> list[Event]:
        """Two TRBs of data and their Event Data, whose parameter is the part's number; the events that come of it."""
        ring, at, half = self.pipe.ring, self.buffer + self.parts * self.part, self.part // 2
        self.parts += 1
        ring.push(make.normal(at, half, CHAIN))
        ring.push(make.normal(at + half, self.part - half, CHAIN if event_data or not last else IOC))
        if event_data:
            ring.push(make.event_data(self.parts, IOC | (0 if last else CHAIN)))
        if doorbell:
            self.pipe.doorbell()
        return self.rig.events()

    def data(self, size: int) -> bytes:
        return self.rig.ram.read(self.buffer, size)


def told(events: list[Event]) -> list[tuple[int, int, int]]:
    """(part, completion code, bytes) of Event Data events; there must be no others."""
    assert all(event.is_event_data for event in events)
    return [(event.parameter, event.completion_code, event.length) for event in events]


def text(size: int) -> bytes:
    return bytes((place * 7 + place // 251) & 0xFF for place in range(size))


@pytest.fixture
def reader(rig: Rig) -> Writer:
    return Writer(rig, BULK_IN)


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH, Speed.SUPER])
def test_each_part_is_executed_when_it_is_there(make_rig: Callable[..., Rig], speed: Speed) -> None:
    rig = make_rig(speed)
    writer, data = Writer(rig, BULK_IN), text(PART * PARTS)
    for number in range(PARTS):
        rig.device.answers(BULK_IN, data[number * PART : (number + 1) * PART])
        assert told(writer.push(last=number == PARTS - 1)) == [(number + 1, spec.CC_SUCCESS, PART)]
    assert writer.data(PART * PARTS) == data
    assert [each.length for each in rig.device.submitted] == [PART] * PARTS
    rig.works()


def test_parts_of_out_data(rig: Rig) -> None:
    writer, data = Writer(rig, BULK_OUT), text(PART * PARTS)
    rig.ram.write(writer.buffer, data)
    rig.device.auto_out.add(BULK_OUT)
    for number in range(PARTS):
        assert told(writer.push(last=number == PARTS - 1)) == [(number + 1, spec.CC_SUCCESS, PART)]
    assert b"".join(rig.device.received[BULK_OUT]) == data


def test_parts_that_are_all_there_are_one_transfer(rig: Rig, reader: Writer) -> None:
    for number in range(3):
        reader.push(last=number == 2, doorbell=False)
    rig.device.answers(BULK_IN, text(3 * PART))
    reader.pipe.doorbell()
    assert told(rig.events()) == [(number, spec.CC_SUCCESS, PART) for number in (1, 2, 3)]
    assert len(rig.device.submitted) == 1


def test_what_follows_a_part_waits_for_it(rig: Rig, reader: Writer) -> None:
    """It may be short; a packet of the next transfer must not land in this one."""
    assert reader.push() == []
    assert reader.push(last=True) == []
    assert rig.device.in_flight == 1
    rig.device.answers(BULK_IN, text(PART), text(PART))
    rig.bus.run()
    assert told(rig.events()) == [(1, spec.CC_SUCCESS, PART), (2, spec.CC_SUCCESS, PART)]


@pytest.mark.parametrize("written", [False, True])
def test_after_a_short_packet_the_rest_is_skipped(rig: Rig, reader: Writer, written: bool) -> None:
    if not written:
        rig.device.answers(BULK_IN, text(PART - 1000))
        assert told(reader.push()) == [(1, spec.CC_SHORT_PACKET, PART - 1000)]
        assert told(reader.push()) == [(2, spec.CC_SHORT_PACKET, 0)]
        assert told(reader.push(last=True)) == [(3, spec.CC_SHORT_PACKET, 0)]
    else:
        reader.push()
        reader.push(last=True)
        rig.device.answers(BULK_IN, text(PART - 1000))
        rig.bus.run()
        assert told(rig.events()) == [(1, spec.CC_SHORT_PACKET, PART - 1000), (2, spec.CC_SHORT_PACKET, 0)]
    assert len(rig.device.submitted) == 1
    rig.works()


def test_the_rest_of_a_short_td_that_ends_without_event_data(rig: Rig, reader: Writer) -> None:
    rig.device.answers(BULK_IN, b"")
    assert told(reader.push()) == [(1, spec.CC_SHORT_PACKET, 0)]
    assert reader.push(event_data=False) == [], "an incomplete rest without Event Data waits"
    assert reader.push(last=True, event_data=False) == [], "IOC of a Normal TRB is silent after a short packet"
    rig.works()


def test_a_part_needs_event_data(rig: Rig, reader: Writer) -> None:
    assert reader.push(event_data=False) == []
    assert rig.device.submitted == []
    rig.device.answers(BULK_IN, text(2 * PART))
    assert told(reader.push()) == [(2, spec.CC_SUCCESS, 2 * PART)]


def test_a_part_is_of_whole_packets(rig: Rig) -> None:
    writer = Writer(rig, BULK_IN, part=PART + 1)
    assert writer.push() == []
    assert rig.device.submitted == []
    rig.device.answers(BULK_IN, text(2 * PART + 2))
    assert told(writer.push(last=True)) == [(1, spec.CC_SUCCESS, PART + 1), (2, spec.CC_SUCCESS, PART + 1)]


@pytest.mark.parametrize("packet_size", [7, 60, 1023])
def test_a_part_is_of_the_packets_of_the_endpoint(rig: Rig, packet_size: int) -> None:
    """An odd size divides no part that is a power of two. Of several Event Data TRBs the last will do that ends with a
    packet."""
    rig.usb.configure_endpoints(add=[Endpoint(BULK_IN, TransferType.BULK, packet_size)], drop=[BULK_IN])
    writer = Writer(rig, BULK_IN, part=PART)
    assert writer.push() == []
    assert rig.device.submitted == []
    whole = 3 * packet_size
    writer.pipe.ring.push(make.normal(writer.buffer + PART, whole - PART % packet_size, CHAIN))
    writer.pipe.ring.push(make.event_data(2, IOC | CHAIN))
    writer.pipe.ring.push(make.normal(writer.buffer + 2 * PART, 1, CHAIN))
    writer.pipe.ring.push(make.event_data(3, IOC | CHAIN))
    rig.device.answers(BULK_IN, text(PART + whole - PART % packet_size))
    writer.pipe.doorbell()
    first, second = told(rig.events())
    assert (first, second) == ((1, spec.CC_SUCCESS, PART), (2, spec.CC_SUCCESS, whole - PART % packet_size))


@pytest.mark.parametrize("address", [BULK_IN, BULK_OUT])
def test_a_rest_without_data_is_no_packet(rig: Rig, address: int) -> None:
    writer = Writer(rig, address)
    rig.device.answers(address, TransferStatus.COMPLETED)
    writer.push()
    writer.pipe.ring.push(make.normal(writer.buffer, 0, CHAIN))
    writer.pipe.ring.push(make.event_data(2, IOC))
    writer.pipe.doorbell()
    assert told(rig.events()) == [(2, spec.CC_SUCCESS, 0)]
    assert [each.length for each in rig.device.submitted] == [PART]


def test_a_td_without_data_is_one_packet_however_it_is_written(rig: Rig) -> None:
    pipe = rig.usb.pipe(BULK_OUT)
    rig.device.auto_out.add(BULK_OUT)
    for trb in (make.normal(0, 0, CHAIN), make.event_data(1, IOC | CHAIN), make.event_data(2, IOC)):
        pipe.ring.push(trb)
        pipe.doorbell()
    assert told(rig.events()) == [(1, spec.CC_SUCCESS, 0), (2, spec.CC_SUCCESS, 0)]
    assert [each.length for each in rig.device.submitted] == [0]


def test_a_rest_that_is_skipped_has_parts_of_any_length(rig: Rig) -> None:
    writer = Writer(rig, BULK_IN)
    rig.device.answers(BULK_IN, text(100))
    writer.push()
    writer.pipe.ring.push(make.normal(writer.buffer, 77, CHAIN))
    writer.pipe.ring.push(make.event_data(2, IOC | CHAIN))
    writer.pipe.doorbell()
    assert told(rig.events()) == [(2, spec.CC_SHORT_PACKET, 0)]


def test_what_is_half_written_behind_the_event_data_is_left(rig: Rig, reader: Writer) -> None:
    reader.push(doorbell=False)
    reader.pipe.ring.push(make.normal(reader.buffer + PART, PART, CHAIN))
    rig.device.answers(BULK_IN, text(PART), b"z" * PART)
    reader.pipe.doorbell()
    assert told(rig.events()) == [(1, spec.CC_SUCCESS, PART)]
    reader.pipe.ring.push(make.event_data(2, IOC))
    reader.pipe.doorbell()
    assert told(rig.events()) == [(2, spec.CC_SUCCESS, PART)]
    assert reader.data(2 * PART) == text(PART) + b"z" * PART


def test_parts_across_the_link_of_the_ring(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(ring_trbs=8)
    for _ in range(20):
        writer = Writer(rig, BULK_IN)
        for number in range(3):
            rig.device.answers(BULK_IN, bytes([number]) * PART)
            assert told(writer.push(last=number == 2)) == [(number + 1, spec.CC_SUCCESS, PART)]
            writer.pipe.ring.retire(3)
        assert writer.data(3 * PART) == bytes(PART) + b"\1" * PART + b"\2" * PART


# -- stopped on the way ------------------------------------------------------------------------------------------------


def stop(rig: Rig) -> list[Event]:
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.driver.commands.queue.clear()
    return of_type(rig.events(), spec.TRB_TRANSFER_EVENT)


def test_stopped_between_two_parts(rig: Rig, reader: Writer) -> None:
    rig.device.answers(BULK_IN, text(PART))
    reader.push()
    (event,) = stop(rig)
    assert (event.completion_code, event.pointer) == (spec.CC_STOPPED_LENGTH_INVALID, reader.pipe.ring.enqueue)
    rig.device.answers(BULK_IN, text(PART))
    assert told(reader.push(last=True)) == [(2, spec.CC_SUCCESS, PART)]


def test_stopped_after_a_short_packet(rig: Rig, reader: Writer) -> None:
    """Stopped - Short Packet: the TD is not over, its data is (4.6.9)."""
    rig.device.answers(BULK_IN, text(100))
    reader.push()
    (event,) = stop(rig)
    assert (event.completion_code, event.length) == (spec.CC_STOPPED_SHORT_PACKET, 0)
    assert event.pointer == reader.pipe.ring.enqueue
    assert told(reader.push(last=True)) == [(2, spec.CC_SHORT_PACKET, 0)], "it goes on where it was"
    rig.works()


def test_set_tr_dequeue_forgets_the_td(rig: Rig, reader: Writer) -> None:
    rig.device.answers(BULK_IN, text(100))
    reader.push()
    stop(rig)
    rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_in.dci, *reader.pipe.ring.position)
    rig.works()


@pytest.mark.parametrize("grown", [False, True])
def test_stopped_in_the_middle_of_a_part(rig: Rig, reader: Writer, grown: bool) -> None:
    """What was moved is not moved again, even if there is more of the TD when it goes on."""
    rig.device.cancels = False
    reader.push()
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.device.finish(rig.device.held[BULK_IN][0], (TransferStatus.CANCELLED, text(PART)[:1024]))
    rig.bus.run()
    (event, _) = rig.events()
    assert (event.completion_code, event.length) == (spec.CC_STOPPED, 1024)
    rest = 2 * PART - 1024 if grown else PART - 1024
    rig.device.answers(BULK_IN, text(2 * PART)[1024 : 1024 + rest])
    if grown:
        assert told(reader.push(last=True)) == [(1, spec.CC_SUCCESS, PART), (2, spec.CC_SUCCESS, PART)]
    else:
        reader.pipe.doorbell()
        assert told(rig.events()) == [(1, spec.CC_SUCCESS, PART)]
    assert reader.data(1024 + rest) == text(1024 + rest)


def test_a_part_that_fails_halts_the_endpoint(rig: Rig, reader: Writer) -> None:
    rig.device.answers(BULK_IN, text(PART), TransferStatus.STALL)
    reader.push()
    (event,) = reader.push()
    assert (event.completion_code, event.is_event_data) == (spec.CC_STALL, False)
    assert reader.pipe.state == spec.EP_HALTED
    reader.pipe.recover()
    rig.works()
