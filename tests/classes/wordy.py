"""A device of many words: descriptors as long as there are any, and strings that are wrong.

Cameras have configurations of 10 KiB, some docks BOS descriptors of more than one packet's worth of capabilities, UPSs
and pen tablets report descriptors of kilobytes. A driver asks for 8 or 9 bytes first, or for what it has room for, and
then for the length that it was told, or that and 64 more, as Windows does.
"""

from __future__ import annotations

from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import Answer, FakeDevice
from usbvfiod_core.usb import descriptors, requests
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus

LONGEST = 0xFFFF
"""The largest wLength."""
REPORT = (bytes(range(251)) * 17)[:4096]
"""The longest report descriptor that Linux takes."""


def _filled(length: int) -> bytes:
    """Class-specific descriptors of so many bytes."""
    data = b""
    while length:
        size = length if length <= 255 else 253
        data += bytes((size, 0x24)) + bytes(each & 0xFF for each in range(size - 2))
        length -= size
    return data


def _configuration(value: int, length: int) -> bytes:
    """A HID interface, and one of another class with all the words."""
    hid = Interface(0, 3, endpoints=(Endpoint(0x81, 3, 64, 4),), extra=descriptors.hid_descriptor(len(REPORT)))
    head = len(Configuration((hid, Interface(1, 0x0E))).pack())
    return Configuration((hid, Interface(1, 0x0E, extra=_filled(length - head))), value).pack()


_CAPABILITY = bytes((200, descriptors.DEVICE_CAPABILITY, 0x05)) + bytes(197)
DESCRIPTORS: dict[tuple[int, int], bytes] = {
    (0x80, descriptors.DEVICE << 8): DeviceDescriptor(0x0210, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100, 1, 2, 3, 2).pack(),
    (0x80, descriptors.CONFIGURATION << 8): _configuration(1, 10_000),
    (0x80, descriptors.CONFIGURATION << 8 | 1): _configuration(2, 65_000),
    (0x80, descriptors.BOS << 8): descriptors.bos_descriptor(descriptors.usb2_extension(), *[_CAPABILITY] * 20),
    (0x80, descriptors.STRING << 8): descriptors.language_descriptor(descriptors.LANGUAGE_ENGLISH_US),
    (0x80, descriptors.STRING << 8 | 1): descriptors.string_descriptor("M" * 126),
    (0x80, descriptors.STRING << 8 | 2): descriptors.string_descriptor("P" * 126)[:253],
    (0x80, descriptors.STRING << 8 | 3): bytes((255, descriptors.STRING)) + b"S\0" * 4,
    (0x80, descriptors.STRING << 8 | 4): bytes((4, descriptors.STRING)) + b"T\0" * 40,
    (0x80, descriptors.STRING << 8 | 5): bytes((2, descriptors.STRING)),
    (0x80, descriptors.STRING << 8 | 6): b"",
    (0x81, descriptors.HID_REPORT << 8): REPORT,
}
"""By bmRequestType and wValue; string 2 is cut off in the middle of a character, 3 and 4 say a wrong length."""
CONFIGURATIONS = [data for (_, value), data in DESCRIPTORS.items() if value >> 8 == descriptors.CONFIGURATION]


def answered(setup: SetupPacket) -> bytes | None:
    """What the device sends; None for a stall."""
    data = DESCRIPTORS.get((setup.request_type, setup.value)) if setup.request == requests.GET_DESCRIPTOR else None
    return None if data is None else data[: setup.length]


def wordy() -> FakeDevice:
    """The device, for whoever wants a `Device`."""
    made = FakeDevice(Speed.HIGH, configurations=[Configuration.unpack(each) for each in CONFIGURATIONS])

    def answer(transfer: Transfer) -> Answer:
        assert transfer.setup is not None
        data = answered(transfer.setup)
        return TransferStatus.STALL if data is None else data

    for request_type in (0x80, 0x81):
        made.answers_request(request_type, requests.GET_DESCRIPTOR, answer)
    return made


def questions() -> list[tuple[SetupPacket, bytes]]:
    """What drivers ask, with the right answers."""
    asked = []
    for (request_type, value), data in DESCRIPTORS.items():
        for length in sorted({9, 255, max(len(data), 1), len(data) + 64, LONGEST}):
            setup = SetupPacket(request_type, requests.GET_DESCRIPTOR, value, 0, length)
            asked.append((setup, data[:length]))
    return asked


def check(bench: DeviceBench) -> None:
    """Ask a device behind anything all of it."""
    for setup, right in questions():
        transfer = bench.control(setup)
        bench.wait(transfer)
        assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, right), setup
