"""What a guest's class drivers say to their devices, as much of it as shows that a device of the class works."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from usbvfiod_core.testing.driver import DriverError, Td, UsbDevice
from usbvfiod_core.usb.descriptors import Endpoint, Interface
from usbvfiod_core.usb.transfer import TransferType

CDC_COMMUNICATIONS, CDC_DATA, HID, PRINTER, AUDIO = 0x02, 0x0A, 0x03, 0x07, 0x01


def interfaces(device: UsbDevice, class_code: int) -> list[Interface]:
    """All settings of interfaces of this class in the active configuration."""
    assert device.configuration is not None
    return [interface for interface in device.configuration.interfaces if interface.class_code == class_code]


def endpoint(interface: Interface, kind: TransferType, *, is_in: bool) -> Endpoint:
    """Its endpoint of this kind."""
    return next(e for e in interface.endpoints if e.type == kind and bool(e.address & 0x80) == is_in)


def bulk_pair(interface: Interface) -> tuple[int, int]:
    """The addresses of its bulk endpoints, in and out."""
    ends = (endpoint(interface, TransferType.BULK, is_in=is_in).address for is_in in (True, False))
    return next(ends), next(ends)


def finish(td: Td, device: UsbDevice) -> bytes:
    """Wait for a transfer, or until its device is gone: a guest sees the empty port, and no event for the transfer.

    Raises DriverError in either case of failure.
    """
    device.driver.wait_until(lambda: td.done or not device.port.connected, "a transfer is not done")
    if not td.done:
        raise DriverError(f"the device at port {device.port.port_id} is gone")
    return td.result()


class SerialPort:
    """CDC ACM (CDC 1.2, PSTN 1.2): a port that is opened and closed as a terminal driver does it."""

    READS = 4
    READ_BYTES = 4096

    def __init__(self, device: UsbDevice) -> None:
        self.device = device
        self.control = interfaces(device, CDC_COMMUNICATIONS)[0]
        self.bulk_in, self.bulk_out = bulk_pair(interfaces(device, CDC_DATA)[0])
        self._reads: list[Td] = []

    def open(self) -> None:
        """Set the line to 115200 8N1, raise DTR and RTS, queue the reads."""
        number = self.control.number
        self.device.control_out(0x21, 0x20, 0, number, struct.pack("<IBBB", 115200, 0, 0, 8))
        self.device.control_out(0x21, 0x22, 3, number)
        self._reads = [self._read() for _ in range(self.READS)]

    def close(self) -> bytes:
        """Take the reads back and drop the lines; returns what had come and was not read yet."""
        self.device.pipe(self.bulk_in).flush()
        left = b"".join(td.data for td in self._reads if td.is_good)
        self._reads = []
        self.device.control_out(0x21, 0x22, 0, self.control.number)
        return left

    def read(self, count: int) -> bytes:
        """At least so many bytes, in the order they came."""
        data = b""
        while len(data) < count:
            data += finish(self._reads[0], self.device)
            self._reads = [*self._reads[1:], self._read()]
        return data

    def write(self, data: bytes) -> None:
        """All of it, in pieces."""
        for start in range(0, len(data), 16384):
            finish(self.device.submit_out(self.bulk_out, data[start : start + 16384]), self.device)

    def _read(self) -> Td:
        return self.device.submit_in(self.bulk_in, self.READ_BYTES)


class NetworkAdapter:
    """CDC NCM 1.0 with 16-bit transfer blocks: Ethernet frames in, Ethernet frames out."""

    READ_BYTES = 16384

    def __init__(self, device: UsbDevice) -> None:
        self.device = device
        self.data = next(setting for setting in interfaces(device, CDC_DATA) if setting.endpoints)
        device.set_interface(self.data.number, self.data.alternate)
        self.bulk_in, self.bulk_out = bulk_pair(self.data)
        self._sequence = 0
        self._received: list[bytes] = []
        self._reads = [device.submit_in(self.bulk_in, self.READ_BYTES) for _ in range(4)]

    def send(self, frames: Sequence[bytes]) -> None:
        """Frames in one block: header (table 3-1), the frames, the pointers to them (table 3-3)."""
        body, pairs = b"", b""
        for frame in frames:
            pairs += struct.pack("<HH", 12 + len(body), len(frame))
            body += frame + bytes(-len(frame) % 4)
        table = struct.pack("<4sHH", b"NCM0", 12 + len(pairs), 0) + pairs + bytes(4)
        where = 12 + len(body)
        header = struct.pack("<4sHHHH", b"NCMH", 12, self._sequence & 0xFFFF, where + len(table), where)
        self._sequence += 1
        self.device.bulk_out(self.bulk_out, header + body + table)

    def receive(self) -> bytes:
        """The next frame."""
        while not self._received:
            block = self._reads[0].result()
            self._reads = [*self._reads[1:], self.device.submit_in(self.bulk_in, self.READ_BYTES)]
            self._unpack(block)
        return self._received.pop(0)

    def _unpack(self, block: bytes) -> None:
        signature, _, _, _, pointers = struct.unpack_from("<4sHHHH", block)
        assert signature == b"NCMH"
        while pointers:
            signature, length, following = struct.unpack_from("<4sHH", block, pointers)
            assert signature in (b"NCM0", b"NCM1")
            for entry in range(pointers + 8, pointers + length, 4):
                start, size = struct.unpack_from("<HH", block, entry)
                if start and size:
                    self._received.append(block[start : start + size])
            pointers = following


@dataclass(frozen=True, slots=True)
class MtpAnswer:
    """The response to an operation: its code (0x2001 is OK), parameters, and the data that came before it."""

    code: int
    parameters: tuple[int, ...]
    data: bytes


class MediaTransfer:
    """MTP 1.1 over USB still image containers (PIMA 15740)."""

    def __init__(self, device: UsbDevice) -> None:
        self.device = device
        assert device.configuration is not None
        self.bulk_in, self.bulk_out = bulk_pair(device.configuration.interfaces[0])
        self._transaction = 0

    def operation(self, code: int, *parameters: int) -> MtpAnswer:
        """One operation without data of ours."""
        self._transaction += 1
        size = 12 + 4 * len(parameters)
        command = struct.pack(f"<IHHI{len(parameters)}I", size, 1, code, self._transaction, *parameters)
        self.device.bulk_out(self.bulk_out, command)
        kind, answer, body = self._container()
        data = b""
        if kind == 2:
            data = body
            kind, answer, body = self._container()
        assert kind == 3
        return MtpAnswer(answer, struct.unpack(f"<{len(body) // 4}I", body), data)

    def _container(self) -> tuple[int, int, bytes]:
        data = self.device.bulk_in(self.bulk_in, 1 << 20)
        length, kind, code, _ = struct.unpack_from("<IHHI", data)
        while len(data) < length:
            data += self.device.bulk_in(self.bulk_in, 1 << 20)
        return kind, code, data[12:length]


class CardReader:
    """CCID 1.1: a reader with one slot."""

    POWER_ON, TRANSFER, STATUS = 0x62, 0x6F, 0x65

    def __init__(self, device: UsbDevice) -> None:
        self.device = device
        assert device.configuration is not None
        self.bulk_in, self.bulk_out = bulk_pair(device.configuration.interfaces[0])
        self._sequence = 0

    def message(self, kind: int, data: bytes = b"") -> tuple[int, int, bytes]:
        """One message and its answer: (bStatus, bError, data)."""
        self._sequence = self._sequence + 1 & 0xFF
        header = struct.pack("<BIBB3x", kind, len(data), 0, self._sequence)
        self.device.bulk_out(self.bulk_out, header + data)
        answer = self.device.bulk_in(self.bulk_in, 1024)
        _, length, _, sequence, status, error, _ = struct.unpack_from("<BIBBBBB", answer)
        assert sequence == self._sequence
        return status, error, answer[10 : 10 + length]
