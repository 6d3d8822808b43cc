"""Drives of which USB Attached SCSI was recorded: their commands are answered by bulk-only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.capture.recorded_device import RecordedDevice
from usbvfiod_core.capture.recording import read_recording
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.testing.uas import UasClient, UasError
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual import information_units as iu
from usbvfiod_core.virtual.uas_interface import COMMAND, DATA_IN, STATUS, pipes

BLOCK = 512
BULK_ONLY = Interface(0, 8, 6, 0x50, (Endpoint(0x81, 2, 512), Endpoint(0x02, 2, 512)))
UAS = Interface(0, 8, 6, 0x62, pipes(Speed.HIGH), alternate=1)
DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AD, 0x0100)


def read_10(first: int, count: int) -> bytes:
    return pack(">BBIBHB", 0x28, 0, first, 0, count, 0).ljust(16, b"\0")


INQUIRY = bytes([0x12, 0, 0, 0, 36, 0]).ljust(16, b"\0")
READ_CAPACITY = b"\x25".ljust(16, b"\0")
BEYOND = read_10(64, 1)
LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = (0x5, 0x21, 0x00)


@pytest.mark.parametrize("speed", ["super", "high"])
def test_what_was_captured_by_uas_is_answered(tmp_path: Path, usb_replay: Callable[..., UsbDevice], speed: str) -> None:
    """Four commands at a time, over streams and without."""
    image, capture = tmp_path / "drive.img", tmp_path / "drive.pcapng"
    blocks = [bytes([number]) * BLOCK for number in range(64)]
    image.write_bytes(b"".join(blocks))
    device = f"virtual:flash?image={image}&speed={speed}&transport={'auto' if speed == 'super' else 'uas'}"
    server = ServerProcess(tmp_path / "usb.sock", ["--device", device, "--pcap-path", str(capture)])
    try:
        bus = server.connect()
        with GuestDriver(bus) as driver:
            client = UasClient(driver.enumerate())
            assert bool(client.streams) == (speed == "super")
            inquired = client.command(INQUIRY, 36)
            reads = [client.submit(read_10(first, 4), 4 * BLOCK) for first in (0, 8, 16, 24)]
            assert [each.result() for each in reversed(reads)] == [
                b"".join(blocks[first : first + 4]) for first in (24, 16, 8, 0)
            ]
            client.command(READ_CAPACITY, 8)
            with pytest.raises(UasError):
                client.command(BEYOND, BLOCK)
        bus.close()
    finally:
        server.stop()
    disk = MassStorage(usb_replay(capture))
    assert disk.command(INQUIRY[:6], 36) == inquired
    for first in (16, 0, 24, 8):
        assert bytes(disk.read(first, 4)) == b"".join(blocks[first : first + 4])
    assert bytes(disk.read(9, 2)) == b"".join(blocks[9:11])
    with pytest.raises(ScsiError, match="0x3/0x11/0x00"):  # never read
        disk.read(40, 1)
    with pytest.raises(ScsiError) as refused:  # as the drive did
        disk.read(64, 1)
    assert (refused.value.key, refused.value.code, refused.value.qualifier) == LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE


class Recorded(Conversation):
    """As usbmon has it: no record names a stream."""

    def __init__(self, *interfaces: Interface) -> None:
        super().__init__()
        self.enumerate(DEVICE, Configuration(interfaces))

    def begin(self, tag: int, block: bytes) -> None:
        self.write(COMMAND, iu.COMMAND_IU.pack(iu.COMMAND, tag, 0, 0, bytes(8), block))

    def end(self, tag: int) -> None:
        self.read(STATUS, iu.status(tag, iu.GOOD), asked=112)


def test_data_that_cannot_be_told_apart_are_nobody_s(tmp_path: Path, usb_replay: Callable[..., UsbDevice]) -> None:
    talk = Recorded(BULK_ONLY, UAS)
    for block, data in ((READ_CAPACITY, pack(">II", 7, BLOCK)), (read_10(0, 1), b"a" * BLOCK)):
        talk.begin(1, block)
        talk.read(DATA_IN, data)
        talk.end(1)
    for tag, first in ((2, 1), (3, 2)):
        talk.begin(tag, read_10(first, 1))
    for letter in (b"c", b"b"):
        talk.read(DATA_IN, letter * BLOCK)
    for tag in (2, 3):
        talk.end(tag)
    disk = MassStorage(usb_replay(talk.write_to(tmp_path / "drive.pcapng")))
    assert bytes(disk.read(0, 1)) == b"a" * BLOCK
    for first in (1, 2):
        with pytest.raises(ScsiError):
            disk.read(first, 1)


@pytest.mark.parametrize(
    ("interfaces", "remark"),
    [
        ((BULK_ONLY, UAS), "what was recorded by UAS is replayed by bulk-only"),
        ((UAS,), "UAS is not replayed, and the drive has no bulk-only setting"),
        ((BULK_ONLY,), ""),
    ],
)
def test_what_a_recording_of_uas_is_good_for(tmp_path: Path, interfaces: tuple[Interface, ...], remark: str) -> None:
    with Recorded(*interfaces).write_to(tmp_path / "drive.pcapng").open("rb") as file:
        (traffic,) = read_recording(file).devices
    assert [each for each in RecordedDevice(traffic).remarks if "UAS" in each] == [remark] * bool(remark)
