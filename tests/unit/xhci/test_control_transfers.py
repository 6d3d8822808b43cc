"""Control transfers: three stages, their events, stalls (3.2.9, 4.11.2.2)."""

from __future__ import annotations

import pytest

from tests.unit.xhci.kit import Rig, codes, make, spec
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus

CONTEXT_SIZES = (32, 64)

VENDOR_IN, VENDOR_OUT = 0xC0, 0x40


def test_a_stalled_request_and_the_next_one(rig: Rig) -> None:
    for setup in (SetupPacket(VENDOR_IN, 1, 0, 0, 16), SetupPacket(VENDOR_OUT, 2, 0, 0, 0)):
        td = rig.usb.control.submit_control(setup).wait()
        assert td.completion_code == spec.CC_STALL
        assert rig.usb.control.state == spec.EP_HALTED
        stage = 1  # the Data Stage TRB, or without one the Status Stage TRB
        assert td.events[-1].pointer == td.addresses[stage]
        rig.usb.control.recover()
        assert rig.usb.get_descriptor(1, 0, 18)


def test_every_stage_with_ioc(rig: Rig) -> None:
    td = rig.usb.control.submit_control(SetupPacket(0x80, 6, 0x100, 0, 18), ioc_each=True).wait()
    assert codes(td.events) == [spec.CC_SUCCESS] * 3
    assert [event.pointer for event in td.events] == td.addresses


def test_a_short_data_stage(rig: Rig) -> None:
    td = rig.usb.control.submit_control(SetupPacket(0x80, 6, 0x100, 0, 255)).wait()
    assert codes(td.events) == [spec.CC_SHORT_PACKET, spec.CC_SUCCESS]
    assert [event.length for event in td.events] == [255 - 18, 0]
    assert len(td.data) == 18


def test_control_out_with_data(rig: Rig) -> None:
    rig.device.answers_request(VENDOR_OUT, 5, TransferStatus.COMPLETED)
    for options in ({}, {"split": [3]}, {"event_data": True}):
        rig.usb.control_out(VENDOR_OUT, 5, 0, 0, b"data stage", **options)
    rig.usb.control_out(VENDOR_OUT, 5, 0, 0, b"8 bytes!", immediate=True)
    assert rig.device.received[0] == [b"data stage"] * 3 + [b"8 bytes!"]


def test_one_control_transfer_at_a_time(rig: Rig) -> None:
    rig.device.answers_request(VENDOR_IN, 1, lambda transfer: None)
    tds = [rig.usb.control.submit_control(SetupPacket(VENDOR_IN, 1, 0, 0, 4)) for _ in range(2)]
    assert rig.device.in_flight == 1
    rig.device.finish(rig.device.held[0][0], b"1st.")
    rig.device.answers_request(VENDOR_IN, 1, b"2nd.")
    assert tds[0].result() == b"1st."
    rig.device.finish(rig.device.held[0][0], b"2nd.") if rig.device.held[0] else None
    assert tds[1].result() == b"2nd."


def test_a_setup_stage_that_waits_for_its_status_stage(rig: Rig) -> None:
    ring = rig.usb.control.ring
    ring.push(make.setup_stage(SetupPacket(0, 9, 1, 0, 0)))
    rig.usb.control.doorbell()
    assert rig.device.submitted == []
    ring.push(make.status_stage(is_in=True))
    rig.usb.control.doorbell()
    assert codes(rig.events()) == [spec.CC_SUCCESS]


@pytest.mark.parametrize("speed", [Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER])
def test_less_room_than_the_request_says(speed: Speed) -> None:
    """What follows a whole packet is not read; a packet that does not fit is a Babble, at the Data Stage TRB."""
    guest, device = Guest(), FakeDevice(speed)
    usb = guest.plug(device)
    packet = usb.control.max_packet_size
    data = bytes(index & 0xFF for index in range(1200))
    device.answers_request(VENDOR_IN, 1, data)
    setup = SetupPacket(VENDOR_IN, 1, 0, 0, len(data))
    assert usb.control.submit_control(setup).result() == data
    for room in (packet, 2 * packet):
        for options in ({}, {"split": [5]}, {"event_data": True}):
            td = usb.control.submit_control(setup, room=room, **options).wait()
            assert (td.completion_code, td.data) == (spec.CC_SUCCESS, data[:room])
    for room in (1, packet - 1, packet + 1):
        td = usb.control.submit_control(setup, room=room).wait()
        assert td.completion_code == spec.CC_BABBLE
        assert td.events[-1].pointer == td.addresses[1]
        assert usb.control.state == spec.EP_HALTED
        usb.control.recover()
    assert usb.control.submit_control(setup).result() == data
    guest.close()


@pytest.mark.parametrize(
    ("speed", "code"), [(Speed.FULL, spec.CC_BABBLE), (Speed.HIGH, spec.CC_BABBLE), (Speed.SUPER, spec.CC_SUCCESS)]
)
def test_no_data_stage_for_a_request_that_has_an_answer(speed: Speed, code: int) -> None:
    """A USB 2 device sends its data where the status stage expects none."""
    guest = Guest()
    usb = guest.plug(FakeDevice(speed))
    td = usb.control.submit_control(SetupPacket(0x80, 6, 0x0100, 0, 18), room=0).wait()
    assert td.completion_code == code
    assert td.events[-1].pointer == td.addresses[1]
    if code != spec.CC_SUCCESS:
        usb.control.recover()
    assert usb.get_descriptor(1, 0, 18)
    guest.close()


@pytest.mark.parametrize("length", [0, 1, 64, 99])
def test_less_data_than_the_request_says(rig: Rig, length: int) -> None:
    rig.device.answers_request(VENDOR_OUT, 5, TransferStatus.COMPLETED)
    setup = SetupPacket(VENDOR_OUT, 5, 0, 0, 100)
    td = rig.usb.control.submit_control(setup, bytes(length), room=length).wait()
    assert codes(td.events) == [spec.CC_SUCCESS]
    assert rig.device.submitted[-1].setup == setup
    assert rig.device.submitted[-1].length == length
    assert len(rig.usb.get_descriptor(1, 0, 18)) == 18
