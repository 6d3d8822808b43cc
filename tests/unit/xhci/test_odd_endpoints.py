"""Endpoints that no specification allows, as devices have them: any type, at any speed, with any numbers.

A driver writes into an endpoint context what it makes of the device's descriptors. It must get its endpoint, because
without one it gives up the whole device; what cannot be transferred there fails by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import FakeDevice, Rig, Speed, spec
from usbvfiod_core.testing.driver import DriverError, Td, endpoint_dwords
from usbvfiod_core.usb.descriptors import Companion, Configuration, Endpoint, Interface
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

Make = Callable[..., Rig]

ISOCHRONOUS, BULK, INTERRUPT = TransferType.ISOCHRONOUS, TransferType.BULK, TransferType.INTERRUPT
IN, OUT = 0x83, 0x03
SPEEDS = [Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER]

#: (type, raw wMaxPacketSize, bInterval, companion) as real devices have them, beside what the specification wants.
SETTINGS = [
    *((type, 0, 1) for type in (ISOCHRONOUS, BULK, INTERRUPT)),
    (ISOCHRONOUS, 0x1800, 0),  # three empty packets, and no interval
    (BULK, 8, 0),  # below 512 at high speed, 1024 at SuperSpeed
    (BULK, 512, 255),  # at full speed
    (BULK, 1023, 0),
    (BULK, 2047, 0),
    (INTERRUPT, 64, 0),  # more than 8 at low speed
    (INTERRUPT, 1025, 255),
    (INTERRUPT, 0x1C00, 16),  # four packets of 1024
    (ISOCHRONOUS, 1, 17),
    (ISOCHRONOUS, 0x1FFF, 255),
]


def odd(speed: Speed, type: TransferType, size: int, interval: int, companion: Companion | None = None) -> FakeDevice:
    """A device whose interface 0 has a pair of such endpoints in setting 0, and an ordinary pair in setting 1."""
    if companion is None and speed.is_usb3:
        companion = Companion()
    pair = tuple(Endpoint(address, type, size, interval, companion) for address in (IN, OUT))
    plain = tuple(Endpoint(address, INTERRUPT, 8, 4, Companion() if speed.is_usb3 else None) for address in (IN, OUT))
    settings = (Interface(0, 0xE0, endpoints=pair), Interface(0, 0xE0, endpoints=plain, alternate=1))
    return FakeDevice(speed, configurations=[Configuration(settings)])


def submit(rig: Rig, address: int, length: int) -> Td:
    return rig.usb.submit_out(address, bytes(length)) if address == OUT else rig.usb.submit_in(address, length)


@pytest.mark.parametrize("speed", SPEEDS, ids=lambda speed: speed.name)
@pytest.mark.parametrize(("type", "size", "interval"), SETTINGS, ids=str)
def test_the_device_is_configured_and_its_transfers_end(
    make_rig: Make, speed: Speed, type: TransferType, size: int, interval: int
) -> None:
    rig = make_rig(device=odd(speed, type, size, interval))
    for address, length in itertools.product((IN, OUT), (0, 1, 700)):
        td = submit(rig, address, length)
        rig.device.answers(address, TransferStatus.COMPLETED)
        rig.handle()
        assert (td.completion_code, td.actual) == (spec.CC_SUCCESS, length)
    for _ in range(2):
        rig.usb.set_interface(0, 1)
        rig.usb.set_interface(0, 0)
    assert {each.state for each in rig.controller.statistics() if each.address in (IN, OUT)} == {"Running"}


@pytest.mark.parametrize("length", [0, 1, 4096])
@pytest.mark.parametrize("address", [IN, OUT])
@pytest.mark.parametrize("type", [ISOCHRONOUS, BULK, INTERRUPT], ids=lambda type: type.name)
def test_a_transfer_on_an_endpoint_of_size_0_fails_by_itself(
    make_rig: Make, type: TransferType, address: int, length: int
) -> None:
    """Linux refuses an URB there, so that the device's side is an error at once."""
    rig = make_rig(device=odd(Speed.FULL, type, 0, 1))
    td = submit(rig, address, length)
    rig.device.answers(address, TransferStatus.ERROR)
    rig.handle()
    assert td.completion_code == spec.CC_TRANSACTION_ERROR
    assert rig.usb.pipe(address).state == (spec.EP_RUNNING if type is ISOCHRONOUS else spec.EP_HALTED)
    counted = next(each for each in rig.controller.statistics() if each.address == address)
    assert (counted.transfers, counted.bytes, counted.errors["Transaction Error"]) == (0, 0, 1)
    rig.usb.set_interface(0, 1)
    assert rig.usb.get_descriptor(1, 0, 18)
    td = submit(rig, address, 8)
    rig.device.answers(address, TransferStatus.COMPLETED)
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS, "the other setting works"


@pytest.mark.parametrize("type", [ISOCHRONOUS, BULK, INTERRUPT], ids=lambda type: type.name)
def test_a_transfer_that_waits_on_an_endpoint_of_size_0_is_taken_back(make_rig: Make, type: TransferType) -> None:
    rig = make_rig(device=odd(Speed.HIGH, type, 0, 1))
    for address in (IN, OUT):
        submit(rig, address, 16)
        rig.usb.pipe(address).flush()
    assert rig.device.in_flight == 0
    rig.usb.reset()
    for address in (IN, OUT):
        submit(rig, address, 16)
    rig.bus.unplug(rig.port_id)
    assert rig.device.in_flight == 0
    assert rig.running


@pytest.mark.parametrize(
    "companion",
    [
        Companion(15, 3, 0xFFFF),  # isochronous: four bursts of sixteen
        Companion(16, 0, 0),
        Companion(255, 0xFF, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("type", [ISOCHRONOUS, INTERRUPT], ids=lambda type: type.name)
def test_any_burst(make_rig: Make, type: TransferType, companion: Companion) -> None:
    rig = make_rig(device=odd(Speed.SUPER, type, 1024, 1, companion))
    td = submit(rig, OUT, 8)
    rig.device.answers(OUT, TransferStatus.COMPLETED)
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS


@pytest.mark.parametrize(
    "changes",
    [
        *({"max_packet_size": size} for size in (0, 1, 63, 65, 1025, 2047, 0xFFFF)),
        *({"interval": exponent} for exponent in (0, 15, 16, 255)),
        *({"max_burst": burst} for burst in (3, 15, 16, 255)),
        {"mult": 3},
        {"error_count": 0},
        {"esit_payload": 0xFF_FFFF},
    ],
    ids=str,
)
@pytest.mark.parametrize("dci", [6, 7])
@pytest.mark.parametrize("kind", [spec.EP_TYPE_ISOCH_OUT, spec.EP_TYPE_BULK_OUT, spec.EP_TYPE_INTERRUPT_OUT])
def test_numbers_in_an_endpoint_context(make_rig: Make, kind: int, dci: int, changes: dict[str, int]) -> None:
    """Whatever a driver has made of a descriptor is taken and kept as it was written."""
    rig = make_rig()
    words = endpoint_dwords(
        **{
            "type": kind + 4 * (dci & 1),
            "max_packet_size": 64,
            "dequeue": rig.ram.allocate(256, align=256),
            **changes,
        }
    )
    source = rig.usb.input_context
    source.clear()
    source.copy_slot(rig.usb.context)
    source.add(0)
    source.add(dci)
    source.set_endpoint(dci, *words)
    assert rig.command(spec.TRB_CONFIGURE_ENDPOINT, parameter=source.address) == spec.CC_SUCCESS
    assert rig.usb.context.endpoint(dci) == (words[0] | spec.EP_RUNNING, *words[1:])
    rig.works()


def test_a_pipe_that_is_not_there_is_still_an_error(make_rig: Make) -> None:
    rig = make_rig(device=odd(Speed.FULL, ISOCHRONOUS, 0, 1))
    with pytest.raises(DriverError, match="not configured"):
        rig.usb.pipe(0x81)
