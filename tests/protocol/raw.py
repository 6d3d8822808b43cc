"""A client that knows nothing but how to send bytes and descriptors, and how many bytes it wants back."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from usbvfiod_core.pci import vfio
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.vfio_user import wire

HELLO_DATA = b'{"capabilities":{"max_msg_fds":16}}\0'


def message(command: int, payload: bytes = b"", *, message_id: int = 1, flags: int = 0) -> bytes:
    """A whole message, with the size that it has."""
    return wire.HEADER.pack(message_id, command, wire.HEADER_SIZE + len(payload), flags, 0) + payload


def hello() -> bytes:
    """The shortest sensible VERSION."""
    return message(wire.VERSION, wire.VERSION_FIELDS.pack(0, 0) + HELLO_DATA)


def region_read(region: int, offset: int, count: int, *, message_id: int = 1, flags: int = 0) -> bytes:
    payload = wire.REGION_ACCESS.pack(offset, region, count)
    return message(wire.REGION_READ, payload, message_id=message_id, flags=flags)


def region_write(region: int, offset: int, data: bytes, *, message_id: int = 1, flags: int = 0) -> bytes:
    payload = wire.REGION_ACCESS.pack(offset, region, len(data)) + data
    return message(wire.REGION_WRITE, payload, message_id=message_id, flags=flags)


def dma_map(address: int, size: int, *, offset: int = 0, flags: int = 3, argsz: int = 32) -> bytes:
    return message(wire.DMA_MAP, wire.DMA_MAP_FIELDS.pack(argsz, flags, offset, address, size))


def dma_unmap(address: int, size: int, *, flags: int = 0, argsz: int = 24) -> bytes:
    return message(wire.DMA_UNMAP, wire.DMA_UNMAP_FIELDS.pack(argsz, flags, address, size))


def set_irqs(flags: int, start: int, count: int, *, index: int = vfio.MSIX_IRQ, data: bytes = b"") -> bytes:
    payload = wire.SET_IRQS_FIELDS.pack(wire.SET_IRQS_FIELDS.size + len(data), flags, index, start, count) + data
    return message(wire.DEVICE_SET_IRQS, payload)


@dataclass(frozen=True)
class Reply:
    message_id: int
    command: int
    errno: int
    payload: bytes


class RawClient:
    """A connection. Whatever does not come within PATIENCE is a failure of the test."""

    def __init__(self, path: str, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(path)  # waits while the backlog is full
            self.socket.settimeout(PATIENCE)
            if greet:
                self.ask(hello())
        except BaseException:
            self.socket.close()
            raise

    @classmethod
    def of(cls, sock: socket.socket) -> RawClient:
        client = cls.__new__(cls)
        client.socket = sock
        sock.settimeout(PATIENCE)
        return client

    def send(self, data: bytes, fds: Iterable[int] = ()) -> None:
        control = array.array("i", fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, control.tobytes())] if control else []
        sent = self.socket.sendmsg([data], ancillary)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes, as a client reads that counts on the length of a reply."""
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            assert part, f"the connection ended after {len(data)} of {count} bytes: {data!r}"
            data += part
        return data

    def reply(self) -> Reply:
        message_id, command, size, flags, errno = wire.HEADER.unpack(self.receive(wire.HEADER_SIZE))
        assert flags in (wire.TYPE_REPLY, wire.TYPE_REPLY | wire.ERROR)
        assert (errno != 0) == bool(flags & wire.ERROR)
        if errno:
            assert size == wire.HEADER_SIZE
        return Reply(message_id, command, errno, self.receive(size - wire.HEADER_SIZE))

    def ask(self, data: bytes, fds: Iterable[int] = ()) -> Reply:
        """Send one message and take the reply, which must belong to it."""
        self.send(data, fds)
        reply = self.reply()
        assert (reply.message_id, reply.command) == struct.unpack_from("<HH", data)
        return reply

    def errno(self, data: bytes, fds: Iterable[int] = ()) -> int:
        """The errno with which a message is refused, 0 if it is not."""
        return self.ask(data, fds).errno

    def read(self, region: int, offset: int, count: int) -> bytes:
        reply = self.ask(region_read(region, offset, count))
        assert reply.errno == 0
        assert reply.payload[:16] == wire.REGION_ACCESS.pack(offset, region, count)
        assert len(reply.payload) == 16 + count
        return reply.payload[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        reply = self.ask(region_write(region, offset, data))
        assert reply == Reply(1, wire.REGION_WRITE, 0, wire.REGION_ACCESS.pack(offset, region, len(data)))

    def be_master(self) -> None:
        """Let the function write to memory, and so send messages."""
        self.write(vfio.CONFIG_REGION, 0x04, b"\x06\0")

    def alive(self) -> bool:
        """Whether the server still answers, in order, with nothing left over from before."""
        self.send(region_read(vfio.CONFIG_REGION, 0, 4, message_id=0xBEEF))
        return self.reply() == Reply(
            0xBEEF, wire.REGION_READ, 0, wire.REGION_ACCESS.pack(0, 7, 4) + bytes.fromhex("361b0d00")
        )

    def ended(self) -> bool:
        """Whether the server has closed the connection, after whatever it said last."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_fds() -> int:
    """Descriptors of this process, which is the server's too."""
    return len(os.listdir("/proc/self/fd"))
