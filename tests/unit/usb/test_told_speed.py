"""The speed of a device of another machine that tells it wrongly or not at all."""

from __future__ import annotations

import pytest

from usbvfiod_core.usb.descriptors import DeviceDescriptor, Endpoint
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.told_speed import believable

LOW, FULL, HIGH, SUPER, SUPER_PLUS = Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER, Speed.SUPER_PLUS
BULK_512, BULK_64, HID = Endpoint(0x81, 2, 512), Endpoint(0x81, 2, 64), Endpoint(0x81, 3, 8, 10)
LONG_REPORTS, SOUND, CAMERA = Endpoint(0x81, 3, 512, 4), Endpoint(0x81, 1, 192, 1), Endpoint(0x81, 1, 0x1400, 1)


@pytest.mark.parametrize(
    ("told", "size", "endpoints", "speed"),
    [
        # What is possible is believed.
        (LOW, 8, [HID], LOW),
        (LOW, 8, [BULK_64], LOW),  # forbidden, and there are some
        (FULL, 8, [BULK_64], FULL),
        (FULL, 64, [BULK_512], FULL),
        (HIGH, 64, [HID], HIGH),
        (SUPER, 9, [BULK_512], SUPER),
        (SUPER_PLUS, 9, [], SUPER_PLUS),
        # At high speed endpoint 0 has 64 bytes, and bulk endpoints 512.
        (HIGH, 8, [HID], FULL),
        (HIGH, 64, [HID, BULK_64], FULL),
        (HIGH, 64, [BULK_64, CAMERA], HIGH),
        (HIGH, 64, [BULK_64, LONG_REPORTS], HIGH),
        (HIGH, 64, [SOUND], HIGH),
        (HIGH, 64, [Endpoint(0x81, 2, 1000), Endpoint(2, 2, 0)], HIGH),
        (HIGH, 64, [Endpoint(0x81, 2, 0)], HIGH),
        # Endpoint 0 of low speed has 8 bytes.
        (LOW, 64, [BULK_512], HIGH),
        (LOW, 64, [BULK_64], FULL),
        (LOW, 64, [LONG_REPORTS], HIGH),
        (LOW, 64, [SOUND, CAMERA], HIGH),
        (LOW, 64, [HID], HIGH),
        (LOW, 16, [HID], FULL),
        # That of SuperSpeed has 512, written as 9, and no other has that.
        (HIGH, 9, [BULK_512], SUPER),
        (None, 9, [], SUPER),
        (SUPER, 64, [BULK_512], HIGH),
        (SUPER, 64, [BULK_64], FULL),
        (None, 64, [BULK_512], HIGH),
        (None, 64, [BULK_64], FULL),
        (None, 8, [HID], FULL),
        (None, 64, [], HIGH),
    ],
)
def test_what_descriptors_allow(told: Speed | None, size: int, endpoints: list[Endpoint], speed: Speed) -> None:
    device = DeviceDescriptor(0x0200, 0, 0, 0, size, 0x1209, 1, 1)
    assert believable(told, device, endpoints) is speed
