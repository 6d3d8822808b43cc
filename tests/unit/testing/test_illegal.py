"""The raw level of the driver: being illegal on purpose, and seeing exactly which events come."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from usbvfiod_core.testing.driver import DriverError, Event, Pipe, ProtocolError, Trb, UsbDevice
from usbvfiod_core.testing.driver import trb as make
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.xhci import spec

CH, IOC, ISP = spec.TRB_CH, spec.TRB_IOC, spec.TRB_ISP
GET_DEVICE = SetupPacket(0x80, 6, 0x100, 0, 8)


@pytest.fixture
def fake() -> FakeDevice:
    fake = FakeDevice()
    fake.auto_out.add(BULK_OUT)
    return fake


@pytest.fixture
def device(usb_guest: Guest, fake: FakeDevice) -> UsbDevice:
    return usb_guest.plug(fake)


@pytest.fixture
def buffer(device: UsbDevice) -> int:
    return device.driver.ram.allocate(4096, align=4096)


def push(pipe: Pipe, *trbs: Trb) -> list[int]:
    """Put TRBs on the ring behind the driver's back, and ring the doorbell."""
    addresses = [pipe.ring.push(each) for each in trbs]
    pipe.doorbell()
    return addresses


def events(guest: Guest, count: int) -> list[Event]:
    """Exactly so many events."""
    found = [guest.driver.next_event() for _ in range(count)]
    guest.driver.no_event()
    return found


def not_moved(trb: Trb) -> int:
    """The residue of a TRB that is refused: all of its buffer."""
    return trb.status & spec.TRB_LENGTH_MASK if trb.type in (spec.TRB_NORMAL, spec.TRB_DATA_STAGE) else 0


def brief(found: Sequence[Event]) -> list[tuple[int, int, int]]:
    return [(event.pointer, event.completion_code, event.length) for event in found]


def test_every_trb_with_ioc_has_its_event(usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int) -> None:
    fake.answers(BULK_IN, bytes(300))
    first, _, last = push(
        device.pipe(BULK_IN),
        make.normal(buffer, 100, CH | IOC),
        make.normal(buffer + 100, 100, CH),
        make.normal(buffer + 200, 100, IOC),
    )
    assert brief(events(usb_guest, 2)) == [(first, spec.CC_SUCCESS, 0), (last, spec.CC_SUCCESS, 0)]


def test_a_short_packet_is_reported_where_it_happened(
    usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int
) -> None:
    fake.answers(BULK_IN, bytes(150))
    _, second, _ = push(
        device.pipe(BULK_IN),
        make.normal(buffer, 100, CH | ISP),
        make.normal(buffer + 100, 100, CH | ISP),
        make.normal(buffer + 200, 100, IOC | ISP),
    )
    assert brief(events(usb_guest, 1)) == [(second, spec.CC_SHORT_PACKET, 50)]


def test_event_data_counts_from_the_one_before(
    usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int
) -> None:
    fake.answers(BULK_IN, bytes(250))
    _, _, third, _ = push(
        device.pipe(BULK_IN),
        make.normal(buffer, 100, CH | ISP),
        make.event_data(0x1111, CH | IOC),
        make.normal(buffer + 100, 200, CH | ISP),
        make.event_data(0x2222),
    )
    found = events(usb_guest, 3)
    assert brief(found) == [
        (0x1111, spec.CC_SUCCESS, 100),
        (third, spec.CC_SHORT_PACKET, 50),
        (0x2222, spec.CC_SHORT_PACKET, 150),
    ]
    assert [event.is_event_data for event in found] == [True, False, True]


def test_a_chain_that_does_not_end_waits(usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int) -> None:
    fake.answers(BULK_IN, bytes(200))
    pipe = device.pipe(BULK_IN)
    push(pipe, make.normal(buffer, 100, CH))
    usb_guest.driver.no_event()
    (last,) = push(pipe, make.normal(buffer, 100, IOC))
    assert brief(events(usb_guest, 1)) == [(last, spec.CC_SUCCESS, 0)]


def test_no_ops(usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int) -> None:
    fake.answers(BULK_IN, bytes(50))
    first, second, _, last = push(
        device.pipe(BULK_IN), make.no_op(IOC), make.normal(buffer, 50, IOC), make.no_op(), make.no_op(IOC)
    )
    assert [pointer for pointer, _, _ in brief(events(usb_guest, 3))] == [first, second, last]


@pytest.mark.parametrize(
    "bad",
    [
        make.trb(60),
        make.trb(spec.TRB_SETUP_STAGE, 0, 8, spec.TRB_IDT | IOC),
        make.trb(spec.TRB_STATUS_STAGE, 0, 0, IOC),
        make.immediate(b"abc", IOC),
    ],
    ids=str,
)
def test_a_trb_that_does_not_belong_there_stops_the_endpoint(
    usb_guest: Guest, fake: FakeDevice, device: UsbDevice, bad: Trb
) -> None:
    pipe = device.pipe(BULK_IN)
    (address,) = push(pipe, bad)
    assert brief(events(usb_guest, 1)) == [(address, spec.CC_TRB_ERROR, not_moved(bad))]
    assert pipe.state == spec.EP_ERROR
    pipe.set_dequeue(pipe.ring.position)
    assert pipe.state == spec.EP_STOPPED
    fake.answers(BULK_IN, b"fine again")
    assert device.bulk_in(BULK_IN, 64) == b"fine again"


def test_a_link_to_itself_stops_the_endpoint_only(usb_guest: Guest, fake: FakeDevice, device: UsbDevice) -> None:
    pipe = device.pipe(BULK_IN)
    (address,) = push(pipe, make.link(pipe.ring.enqueue))
    assert brief(events(usb_guest, 1)) == [(address, spec.CC_TRB_ERROR, 0)]
    device.bulk_out(BULK_OUT, b"the other endpoint works")


def test_a_ring_without_end_does_not_stop_the_others(usb_guest: Guest, fake: FakeDevice, device: UsbDevice) -> None:
    pipe = device.pipe(BULK_IN)
    ring = device.driver.ram.allocate(4096, align=4096)
    for number in range(200):
        pipe.ring.write(ring + 16 * number, make.trb(spec.TRB_NO_OP, control=1))
    pipe.ring.write(ring + 3200, make.trb(spec.TRB_LINK, ring, control=1))
    push(pipe, make.link(ring))
    device.bulk_out(BULK_OUT, b"still here")
    assert fake.received[BULK_OUT] == [b"still here"]
    assert pipe.stop()


def test_a_link_with_ioc_has_an_event(usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int) -> None:
    pipe = device.pipe(BULK_IN)
    (address,) = push(pipe, make.link(buffer, IOC))
    assert brief(events(usb_guest, 1)) == [(address, spec.CC_SUCCESS, 0)]


@pytest.mark.parametrize(
    "trbs",
    [
        [make.status_stage(is_in=True)],
        [make.trb(spec.TRB_SETUP_STAGE, 0, 7, spec.TRB_IDT)],
        [make.trb(spec.TRB_SETUP_STAGE, 0, 8)],
        [make.setup_stage(GET_DEVICE), make.setup_stage(GET_DEVICE)],
        [make.setup_stage(GET_DEVICE), make.data_stage(0x0010_0000, 8, is_in=False)],
    ],
    ids=["status first", "setup of 7 bytes", "setup without IDT", "two setups", "data against the direction"],
)
def test_stages_that_make_no_control_transfer(usb_guest: Guest, device: UsbDevice, trbs: list[Trb]) -> None:
    pipe = device.control
    addresses = push(pipe, *trbs)
    assert brief(events(usb_guest, 1)) == [(addresses[-1], spec.CC_TRB_ERROR, not_moved(trbs[-1]))]
    pipe.set_dequeue(pipe.ring.position)
    assert len(device.get_descriptor(1, 0, 18)) == 18


def test_a_control_transfer_may_be_written_stage_by_stage(usb_guest: Guest, device: UsbDevice, buffer: int) -> None:
    pipe = device.control
    (setup,) = push(pipe, make.setup_stage(GET_DEVICE, IOC))
    (data,) = push(pipe, make.data_stage(buffer, 64, is_in=True, flags=IOC | ISP))
    (status,) = push(pipe, make.status_stage(is_in=False))
    assert brief(events(usb_guest, 3)) == [
        (setup, spec.CC_SUCCESS, 0),
        (data, spec.CC_SHORT_PACKET, 56),
        (status, spec.CC_SUCCESS, 0),
    ]


def test_a_stale_cycle_bit_hides_a_trb(usb_guest: Guest, device: UsbDevice, buffer: int) -> None:
    pipe = device.pipe(BULK_IN)
    pipe.ring.push(make.normal(buffer, 10, IOC), cycle=pipe.ring.cycle ^ 1)
    pipe.doorbell()
    usb_guest.driver.no_event()


def test_events_that_nobody_waits_for_are_reported(
    usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int
) -> None:
    fake.answers(BULK_IN, b"x")
    push(device.pipe(BULK_IN), make.normal(buffer, 10, IOC))
    with pytest.raises(ProtocolError, match=r"in no TD of the endpoint: completion code 13 .Short Packet"):
        usb_guest.driver.handle_events()


def test_doorbells_of_what_is_not_there(usb_guest: Guest, device: UsbDevice) -> None:
    for slot_id in (0, 1, 2, 64):
        for target in (2, 5, 31, 32, 255):
            usb_guest.driver.ring_doorbell(slot_id, target)
    usb_guest.driver.no_event()
    assert device.get_string(2) == "Fake device"


def test_without_bus_mastering_the_controller_stops(usb_guest: Guest, device: UsbDevice) -> None:
    usb_guest.bus.controller.bus_master = False
    td = device.submit_in(BULK_IN, 64)
    start = usb_guest.bus.clock()
    with pytest.raises(DriverError, match=r"a transfer is not done, the controller has stopped; USBSTS .*HSE"):
        td.wait(5)
    assert usb_guest.bus.clock() - start < 1
    usb_guest.bus.controller.bus_master = True
    usb_guest.driver.start()
    assert usb_guest.driver.enumerate().get_string(2) == "Fake device"


@pytest.mark.parametrize("segments", [(16,), (16, 16)])
def test_a_full_event_ring_loses_nothing(segments: tuple[int, ...], fake: FakeDevice) -> None:
    guest = Guest(event_segments=segments, ring_trbs=256)
    device = guest.plug(fake)
    tds = [device.submit_out(BULK_OUT, bytes([number])) for number in range(100)]
    queued = guest.driver.commands.submit(make.command(spec.TRB_NO_OP_COMMAND))
    guest.driver.wait_until(lambda: queued.done and all(td.done for td in tds), "events are lost")
    assert all(td.is_good for td in tds)
    full = guest.driver.other_events
    assert full
    assert {(event.type, event.completion_code) for event in full} == {
        (spec.TRB_HOST_CONTROLLER, spec.CC_EVENT_RING_FULL)
    }
    guest.close()


@pytest.mark.parametrize("switch", ["INTE", "IE"])
def test_interrupts_that_are_off_come_when_they_are_on(
    usb_guest: Guest, fake: FakeDevice, device: UsbDevice, switch: str
) -> None:
    driver, bus = usb_guest.driver, usb_guest.bus
    iman = driver.interrupter_offset(0) + spec.IMAN
    if switch == "INTE":
        driver.write_operational(spec.USBCMD, spec.USBCMD_RS)
    else:
        bus.write(iman, 0)
    before = bus.signals[0]
    fake.answers(BULK_IN, b"x")
    td = device.submit_in(BULK_IN, 10)
    assert bus.signals[0] == before
    if switch == "INTE":
        driver.write_operational(spec.USBCMD, spec.USBCMD_RS | spec.USBCMD_INTE)
    else:
        bus.write(iman, spec.IMAN_IE)
    assert bus.signals[0] == before + 1
    assert td.result() == b"x"


def test_one_interrupt_until_the_handler_is_done(usb_guest: Guest, fake: FakeDevice, device: UsbDevice) -> None:
    before = usb_guest.bus.signals[0]
    tds = [device.submit_in(BULK_IN, 10) for _ in range(5)]
    fake.answers(BULK_IN, *[b"x"] * 5)
    usb_guest.bus.run()
    assert usb_guest.bus.signals[0] == before + 1
    usb_guest.driver.handle_events()
    assert all(td.done for td in tds)
    assert usb_guest.bus.signals[0] == before + 1


def test_a_bad_trb_behind_good_ones_is_reported_after_them(
    usb_guest: Guest, fake: FakeDevice, device: UsbDevice, buffer: int
) -> None:
    pipe = device.pipe(BULK_IN)
    good, bad = push(pipe, make.normal(buffer, 64, IOC), make.trb(60))
    usb_guest.driver.no_event()
    fake.answers(BULK_IN, b"good")
    assert brief(events(usb_guest, 2)) == [(good, spec.CC_SHORT_PACKET, 60), (bad, spec.CC_TRB_ERROR, 0)]
    assert pipe.state == spec.EP_ERROR
    assert device.context.dequeue(pipe.dci)[0] == bad


def test_a_buffer_that_is_not_memory(usb_guest: Guest, fake: FakeDevice, device: UsbDevice) -> None:
    pipe = device.pipe(BULK_IN)
    (address,) = push(pipe, make.normal(0xDEAD_0000_0000, 100, IOC))
    assert brief(events(usb_guest, 1)) == [(address, spec.CC_TRB_ERROR, 100)]
    assert fake.in_flight == 0
    device.bulk_out(BULK_OUT, b"the other endpoint works")
