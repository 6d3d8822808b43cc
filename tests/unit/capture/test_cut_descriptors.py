"""Descriptors that are as long as they can be, and recordings that have not all of them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.capture.enumeration import Enumeration
from usbvfiod_core.capture.recorded_device import RecordedDevice
from usbvfiod_core.capture.recorder import SNAP_LENGTH
from usbvfiod_core.capture.recording import read_recording
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100)
HEADER = 64
LONGEST = 65_535


def configuration(size: int, value: int = 1) -> bytes:
    """One of so many bytes, most of them of a class."""
    left, extra = size - 9 - 9 - 7, b""
    while left:
        part = min(left, 255 if left != 256 else 254)
        extra += bytes((part, 0x24)) + bytes(part - 2)
        left -= part
    made = Configuration((Interface(0, 0xFF, endpoints=(Endpoint(0x81, 2, 512),), extra=extra),), value).pack()
    assert len(made) == size
    return made


def recorded(configurations: Sequence[bytes], snap_length: int) -> RecordedDevice:
    """A device with these, whose recording has so many bytes of each packet."""
    talk = Conversation()
    talk.descriptor(1, DEVICE.pack()[:17] + bytes([len(configurations)]))
    for index, data in enumerate(configurations):
        talk.descriptor(2, data, index, length=9)
        talk.descriptor(2, data, index, length=int.from_bytes(data[2:4], "little"))
    [traffic] = read_recording(io.BytesIO(talk.file(snap_length=snap_length))).devices
    return RecordedDevice(traffic)


def test_the_longest_descriptor_is_replayed() -> None:
    data = configuration(LONGEST)
    device = recorded([data], 262_144)
    assert (device.configurations, device.problems) == ([data], [])


def test_a_capture_has_the_longest_descriptor_whole() -> None:
    assert recorded([configuration(LONGEST)], SNAP_LENGTH).problems == []


@pytest.mark.parametrize("captured", [9, 18, 8192, 61_440, LONGEST - HEADER, LONGEST - 1])
def test_a_descriptor_that_was_cut_is_told_with_what_is_enough(captured: int) -> None:
    """61,440 bytes are what Linux's usbmon keeps of one transfer unless it is given more memory."""
    device = recorded([configuration(LONGEST)], HEADER + max(captured, 18))
    assert device.configurations == []
    assert device.problems == [
        "no whole configuration descriptor was recorded, because of a snap length that is too short (262144 is "
        f"enough): {max(captured, 18)} of 65535 bytes"
    ]


def test_one_of_several_was_cut() -> None:
    short, long = configuration(60), configuration(1000, 2)
    device = recorded([short, long], HEADER + 100)
    assert (device.configurations, device.problems) == ([short], [])
    assert (
        "1 of its 2 configurations were not recorded whole, because of a snap length that is too short (262144 is "
        "enough): 100 of 1000 bytes of number 1" in device.remarks
    )


def test_the_device_descriptor_was_cut() -> None:
    device = recorded([configuration(60)], HEADER + 17)
    assert device.problems == [
        "its device descriptor was cut, because of a snap length that is too short (262144 is enough): 17 of 18 bytes"
    ]


def test_a_device_that_has_less_than_it_says() -> None:
    """Linux takes what comes."""
    data = bytearray(configuration(60))
    data[2:4] = (100).to_bytes(2, "little")
    device = recorded([bytes(data)], 262_144)
    assert (device.configurations, device.problems) == ([bytes(data)], [])


def test_a_capture_repeats_the_longest_descriptor() -> None:
    heard = Enumeration(Speed.HIGH)
    asked = [(0x0100, DEVICE.pack()), (0x0200, configuration(LONGEST)[:9]), (0x0200, configuration(LONGEST))]
    for value, data in asked:
        room = bytearray(len(data))
        setup = SetupPacket(0x80, 6, value, 0, len(data))
        transfer = Transfer(0, TransferType.CONTROL, [memoryview(room)], len(data), lambda _: None, setup=setup)

        def answer(transfer: Transfer, data: bytes = data) -> None:
            transfer.complete(TransferStatus.COMPLETED, transfer.write(data))

        heard.route(answer)(transfer)
    assert [data for _, data in heard.requests] == [data for _, data in asked]
