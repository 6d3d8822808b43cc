"""Endpoints and interfaces that are not as they should be: what Linux makes of them (usb_parse_endpoint of Linux 6.12),
and what a guest does."""

from __future__ import annotations

import pytest

from usbvfiod_core.host.taken_endpoints import as_taken, longest_packet, serves
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.usb.descriptors import Companion, Configuration, Endpoint, Interface
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferType

LOW, FULL, HIGH, SUPER = Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER
CONTROL, ISOCHRONOUS, BULK, INTERRUPT = (
    TransferType.CONTROL,
    TransferType.ISOCHRONOUS,
    TransferType.BULK,
    TransferType.INTERRUPT,
)


@pytest.mark.parametrize(
    ("speed", "type", "interval", "taken"),
    [
        *((speed, INTERRUPT, interval, interval) for speed in (LOW, FULL) for interval in (1, 16, 17, 255)),
        *((speed, INTERRUPT, 0, 10) for speed in (LOW, FULL)),
        *((speed, INTERRUPT, interval, interval) for speed in (HIGH, SUPER) for interval in (1, 4, 16)),
        *((speed, INTERRUPT, 0, 7) for speed in (HIGH, SUPER)),
        *((speed, INTERRUPT, 32, 9) for speed in (HIGH, SUPER)),
        *((speed, INTERRUPT, 255, 11) for speed in (HIGH, SUPER)),
        *((speed, ISOCHRONOUS, interval, interval) for speed in (FULL, HIGH, SUPER) for interval in (1, 16)),
        *((HIGH, ISOCHRONOUS, interval, 7) for interval in (0, 17, 255)),
        *((speed, ISOCHRONOUS, interval, 4) for speed in (FULL, SUPER) for interval in (0, 17, 255)),
        *((speed, BULK, interval, interval) for speed in (FULL, HIGH, SUPER) for interval in (0, 255)),
    ],
)
def test_intervals_that_no_speed_has(speed: Speed, type: TransferType, interval: int, taken: int) -> None:
    assert as_taken(Endpoint(0x81, type, 8, interval), speed).interval == taken


@pytest.mark.parametrize(
    ("speed", "type", "size", "taken", "transactions"),
    [
        (FULL, BULK, 64, 64, 1),
        (FULL, BULK, 60, 60, 1),
        (FULL, BULK, 1024, 64, 1),
        (FULL, INTERRUPT, 1024, 64, 1),
        (FULL, ISOCHRONOUS, 1023, 1023, 1),
        (FULL, ISOCHRONOUS, 1024, 1023, 1),
        (LOW, INTERRUPT, 64, 8, 1),
        (HIGH, BULK, 1024, 512, 1),
        (HIGH, BULK, 0x2040, 512, 1),
        (HIGH, BULK, 0x0A00, 512, 1),
        (HIGH, INTERRUPT, 0x1400, 1024, 3),
        (HIGH, ISOCHRONOUS, 0x1C00, 1024, 4),
        (HIGH, ISOCHRONOUS, 0xF400, 1024, 3),
        (HIGH, ISOCHRONOUS, 0, 0, 1),
        (SUPER, BULK, 2047, 1024, 1),
        (SUPER, CONTROL, 1024, 512, 1),
        (Speed.SUPER_PLUS, BULK, 1024, 1024, 1),
    ],
)
def test_packet_sizes_that_no_speed_has(
    speed: Speed, type: TransferType, size: int, taken: int, transactions: int
) -> None:
    endpoint = as_taken(Endpoint(0x81, type, size, 1), speed)
    assert (endpoint.packet_size, endpoint.transactions) == (taken, transactions)


@pytest.mark.parametrize(
    ("speed", "size", "companion", "longest"),
    [
        (FULL, 1023, None, 1023),
        (FULL, 1024, None, 1023),
        (HIGH, 1024, None, 1024),
        (HIGH, 0x1400, None, 3072),
        (HIGH, 0, None, 0),
        (SUPER, 1024, None, 0),
        (SUPER, 1024, Companion(), 1024),
        (SUPER, 1024, Companion(15, 2), 1024 * 16 * 3),
        (SUPER, 1024, Companion(255, 3), 1024 * 16 * 3),
        (SUPER, 192, Companion(0, 0, 192), 192),
        (Speed.SUPER_PLUS, 1024, Companion(15, 0x82), 0),
    ],
)
def test_how_much_room_linux_allows_an_isochronous_packet(
    speed: Speed, size: int, companion: Companion | None, longest: int
) -> None:
    """As usb_submit_urb of Linux 6.12 counts it."""
    assert longest_packet(as_taken(Endpoint(0x81, ISOCHRONOUS, size, 1, companion), speed), speed) == longest


def test_a_bulk_endpoint_at_low_speed_is_an_interrupt_endpoint() -> None:
    """Serial adapters of a few lines of firmware have such endpoints, which USB 2.0 5.8.3 forbids."""
    endpoint = as_taken(Endpoint(0x81, BULK, 64, 0, tail=b"xx", extra=b"\2\x25"), LOW)
    assert endpoint == Endpoint(0x81, INTERRUPT, 8, 1, tail=b"xx", extra=b"\2\x25")
    assert serves(INTERRUPT, BULK)
    assert serves(BULK, INTERRUPT)
    assert not serves(BULK, ISOCHRONOUS)
    assert not serves(ISOCHRONOUS, INTERRUPT)


# -- settings ----------------------------------------------------------------------------------------------------------


def setting(number: int, alternate: int, *addresses: int) -> Interface:
    return Interface(
        number, 0xFF, endpoints=tuple(Endpoint(each, BULK, 512) for each in addresses), alternate=alternate
    )


LACKING = Configuration((setting(2, 3, 0x83), setting(2, 1, 0x84), setting(0, 1), setting(0, 0, 0x81), setting(5, 0)))


def test_an_interface_without_a_setting_0_begins_in_its_first() -> None:
    assert LACKING.first_settings == {2: 3, 0: 0, 5: 0}
    assert Configuration(()).first_settings == {}
    found = {address: LACKING.find(address, {}) is not None for address in (0x81, 0x83, 0x84)}
    assert found == {0x81: True, 0x83: True, 0x84: False}
    found = {address: LACKING.find(address, {2: 1, 0: 1}) is not None for address in (0x81, 0x83, 0x84)}
    assert found == {0x81: False, 0x83: False, 0x84: True}


def test_a_guest_uses_an_interface_without_a_setting_0() -> None:
    guest = Guest()
    fake = FakeDevice(HIGH, configurations=[LACKING])
    device = guest.plug(fake)
    assert sorted(device.pipes) == [0x81, 0x83]
    assert sorted(fake.endpoints) == [0x81, 0x83]
    fake.answers(0x83, b"first")
    assert device.bulk_in(0x83, 512) == b"first"
    device.set_interface(2, 1)
    fake.answers(0x84, b"other")
    assert device.bulk_in(0x84, 512) == b"other"
    device.set_interface(2, 3)
    assert sorted(fake.endpoints) == [0x81, 0x83]
    guest.close()
