"""What a device and its driver said, written as a test would tell it: records as usbmon has them, and a file of them.

talk = Conversation()
talk.enumerate(device, configuration, {1: "Maker", 2: "Product", 3: "Serial"})
talk.read(0x81, b"report")
talk.file()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from usbvfiod_core.capture.pcapng import Buffer, Writer
from usbvfiod_core.capture.usbmon import (
    BITS_A_SECOND,
    COMPLETE,
    DATA_FOLLOW,
    DATA_IN_LATER,
    DATA_OUT_EARLIER,
    DIRECTION_IN,
    IN_PROGRESS,
    LINK_TYPE,
    SUBMIT,
    Packet,
    Record,
)
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, language_descriptor, string_descriptor
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferType

START = 1_700_000_000_000_000_000
MILLISECOND = 1_000_000


class Conversation:
    """Records of one device; each transfer takes a millisecond, and the next begins one later."""

    def __init__(self, speed: Speed | None = Speed.HIGH, *, bus: int = 3, device: int = 7) -> None:
        self.speed = speed
        self.bus = bus
        self.device = device
        self.records: list[Record] = []
        self.time = START
        self._id = 0xFFFF_8880_0000_0000

    def transfer(
        self,
        endpoint: int,
        type: TransferType,
        *,
        setup: SetupPacket | None = None,
        asked: int | None = None,
        sent: bytes = b"",
        answer: bytes = b"",
        status: int = 0,
        packets: Sequence[Packet] = (),
        interval: int = 0,
    ) -> None:
        """A transfer and its completion."""
        self._id += 0x100
        is_in = endpoint >= 0x80
        length = asked if asked is not None else len(answer) if is_in else len(sent)
        moved = len(answer) if is_in else 0 if status else len(sent)
        self.records.append(
            Record(
                self._id,
                SUBMIT,
                type,
                endpoint,
                self.device,
                self.bus,
                self.time,
                IN_PROGRESS,
                length,
                setup.pack() if setup is not None else None,
                DATA_IN_LATER if is_in else DATA_FOLLOW,
                sent,
                interval,
                flags=DIRECTION_IN if is_in else 0,
                packets=packets,
            )
        )
        self.time += MILLISECOND
        self.records.append(
            Record(
                self._id,
                COMPLETE,
                type,
                endpoint,
                self.device,
                self.bus,
                self.time,
                status,
                moved,
                None,
                DATA_FOLLOW if is_in else DATA_OUT_EARLIER,
                answer,
                interval,
                packets=packets,
            )
        )
        self.time += MILLISECOND

    def request(self, setup: SetupPacket, data: bytes = b"", status: int = 0) -> None:
        """A control transfer; `data` are what was sent or answered."""
        if setup.is_in:
            self.transfer(0x80, TransferType.CONTROL, setup=setup, asked=setup.length, answer=data, status=status)
        else:
            self.transfer(0x00, TransferType.CONTROL, setup=setup, sent=data, status=status)

    def read(self, endpoint: int, data: bytes, *, asked: int | None = None, interval: int = 0, status: int = 0) -> None:
        """An IN transfer; of an interrupt endpoint if there is an interval."""
        type = TransferType.INTERRUPT if interval else TransferType.BULK
        self.transfer(endpoint, type, answer=data, asked=asked, interval=interval, status=status)

    def write(self, endpoint: int, data: bytes, *, interval: int = 0, status: int = 0) -> None:
        """An OUT transfer."""
        self.transfer(
            endpoint,
            TransferType.INTERRUPT if interval else TransferType.BULK,
            sent=data,
            interval=interval,
            status=status,
        )

    def descriptor(self, kind: int, data: bytes, index: int = 0, language: int = 0, length: int | None = None) -> None:
        """A descriptor that was read."""
        asked = len(data) if length is None else length
        self.request(SetupPacket(0x80, 6, kind << 8 | index, language, asked), data[:asked])

    def enumerate(
        self, device: DeviceDescriptor, configuration: Configuration, strings: Mapping[int, str] = {}
    ) -> None:
        """As Linux does it."""
        packed = configuration.pack()
        self.descriptor(1, device.pack())
        self.descriptor(2, packed, length=9)
        self.descriptor(2, packed)
        if strings:
            self.descriptor(3, language_descriptor(0x0409), length=255)
        for index, text in strings.items():
            self.descriptor(3, string_descriptor(text), index, 0x0409, length=255)
        self.request(SetupPacket(0x00, 9, configuration.value, 0, 0))

    def file(self, *, snap_length: int = 1 << 18, records: Sequence[Record] | None = None, dropped: int = 0) -> bytes:
        """A pcapng file of the records."""
        writer, out = Writer(), list[Buffer]()
        out.append(writer.section("a test"))
        bits = BITS_A_SECOND[self.speed] if self.speed is not None else 0
        out.append(writer.interface(LINK_TYPE, snap_length=snap_length, name="usbmon3", speed=bits))
        for record in self.records if records is None else records:
            raw = record.header() + bytes(record.data)
            kept = raw[:snap_length]
            writer.packet(out, 0, record.time, (kept,), len(kept), len(raw), dropped=dropped)
            dropped = 0
        return b"".join(out)

    def write_to(self, path: Path) -> Path:
        """The file; its path."""
        path.write_bytes(self.file())
        return path
