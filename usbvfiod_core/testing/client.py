"""A vfio-user client: the VMM's end of the socket, for tests, demonstrations and plugin authors.

`VfioUserClient` speaks the protocol over a real AF_UNIX stream socket. Every wait is bounded by `timeout`. Methods
named after a message send it properly and raise `ReplyError` for a refusal; `message` sends anything, right or wrong,
and returns what comes back, for negative tests.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..vfio_user import wire
from .connection import ClientConnection, Message, ReplyError, ReplyTimeoutError, VfioUserError
from .limits import PATIENCE
from .vmm import QEMU, Vmm

__all__ = [
    "IrqInfo",
    "MappedArea",
    "Message",
    "RegionInfo",
    "ReplyError",
    "ReplyTimeoutError",
    "ServerVersion",
    "VfioUserClient",
    "VfioUserError",
]

_PACK_REGION = wire.REGION_MESSAGE.pack
_ROOM = 4096
"""Bytes offered for a reply with capabilities."""
_REGION_SIZE = wire.REGION_MESSAGE.size


@dataclass(frozen=True)
class RegionInfo:
    """What DEVICE_GET_REGION_INFO says about one region."""

    index: int
    flags: int
    size: int
    offset: int
    capabilities: bytes = b""


@dataclass(frozen=True)
class MappedArea:
    """A part of a region, from `offset` on, that the server shares."""

    offset: int
    content: mmap.mmap


@dataclass(frozen=True)
class IrqInfo:
    """What DEVICE_GET_IRQ_INFO says about one interrupt index."""

    index: int
    flags: int
    count: int


@dataclass
class ServerVersion:
    """The server's half of the negotiation."""

    major: int
    minor: int
    capabilities: dict[str, Any] = field(default_factory=dict)


class VfioUserClient(ClientConnection):
    """A client of a vfio-user server, as the VMM `vmm`. After `negotiate`, `version` is the server's."""

    def __init__(self, sock: socket.socket, *, vmm: Vmm = QEMU, timeout: float = PATIENCE) -> None:
        super().__init__(sock, timeout=timeout)
        self.vmm = vmm
        self.version: ServerVersion | None = None

    @classmethod
    def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        vmm: Vmm = QEMU,
        timeout: float = PATIENCE,
        wait: float = 0.0,
        negotiate: bool = True,
    ) -> VfioUserClient:
        """Connect to the server at `path` and negotiate; try for `wait` seconds while nobody listens there."""
        deadline = time.monotonic() + wait
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout)
                sock.connect(os.fspath(path))
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                sock.close()
                if time.monotonic() >= deadline:
                    raise VfioUserError(f"cannot connect to {os.fspath(path)}: {error.strerror}") from None
                time.sleep(0.005)
            except BaseException:
                sock.close()
                raise
        client = cls(sock, vmm=vmm, timeout=timeout)
        if negotiate:
            try:
                client.negotiate()
            except BaseException:
                client.close()
                raise
        return client

    # -- messages --------------------------------------------------------------------------------------------------

    def negotiate(
        self, capabilities: dict[str, Any] | None = None, *, major: int = wire.MAJOR, minor: int | None = None
    ) -> ServerVersion:
        """VERSION: propose `capabilities`, those of `vmm` and its version by default; return the server's answer."""
        proposal = self.vmm.capabilities if capabilities is None else capabilities
        if minor is None:
            minor = self.vmm.minor
        data = json.dumps({"capabilities": proposal}, separators=(",", ":")).encode() + b"\0"
        payload = self.request(wire.VERSION, wire.VERSION_FIELDS.pack(major, minor) + data).payload
        if len(payload) < wire.VERSION_FIELDS.size:
            raise VfioUserError("the VERSION reply has no version")
        answer_major, answer_minor = wire.VERSION_FIELDS.unpack_from(payload)
        text = payload[wire.VERSION_FIELDS.size :]
        answer: dict[str, Any] = {}
        if text:
            if text[-1:] != b"\0":
                raise VfioUserError("the data of the VERSION reply does not end with a NUL")
            try:
                answer = json.loads(text[:-1])["capabilities"]
            except (ValueError, KeyError, TypeError) as error:
                raise VfioUserError(f"the data of the VERSION reply is not understood: {error!r}") from None
        self.version = ServerVersion(answer_major, answer_minor, answer)
        return self.version

    def dma_map(
        self,
        address: int,
        size: int,
        fd: int | None = None,
        offset: int = 0,
        *,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """DMA_MAP: let the server access `size` bytes at `address`, in `fd` from `offset` on."""
        flags = (wire.DMA_MAP_READ if readable else 0) | (wire.DMA_MAP_WRITE if writable else 0)
        payload = wire.DMA_MAP_FIELDS.pack(wire.DMA_MAP_FIELDS.size, flags, offset, address, size)
        self.request(wire.DMA_MAP, payload, () if fd is None else (fd,))

    def dma_unmap(self, address: int, size: int, *, flags: int = 0) -> None:
        """DMA_UNMAP: take the range away; when this returns, the server does not touch it any more."""
        self.request(wire.DMA_UNMAP, wire.DMA_UNMAP_FIELDS.pack(wire.DMA_UNMAP_FIELDS.size, flags, address, size))

    def get_info(self) -> tuple[int, int, int]:
        """DEVICE_GET_INFO: (flags, number of regions, number of interrupt indices)."""
        reply = self.request(wire.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(wire.DEVICE_INFO.size, 0, 0, 0))
        _, flags, regions, irqs = wire.DEVICE_INFO.unpack_from(reply.payload)
        return flags, regions, irqs

    def map_region(self, index: int) -> list[MappedArea]:
        """Map what the server lets a client map of a region, as Cloud Hypervisor does."""
        reply = self.request(wire.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(_ROOM, 0, index, 0, 0, 0))
        try:
            _, flags, _, at, _, offset = wire.REGION_INFO.unpack_from(reply.payload)
            if not flags & wire.REGION_FLAG_MMAP:
                return []
            (fd,) = reply.fds
            while at:
                kind, _, following, count, _ = wire.SPARSE_MMAP.unpack_from(reply.payload, at)
                if kind == wire.SPARSE_MMAP_ID:
                    content = memoryview(reply.payload)[at + wire.SPARSE_MMAP.size :]
                    areas = wire.SPARSE_MMAP_AREA.iter_unpack(content[: count * wire.SPARSE_MMAP_AREA.size])
                    return [MappedArea(begin, mmap.mmap(fd, size, offset=offset + begin)) for begin, size in areas]
                at = following
            raise VfioUserError(f"region {index} can be mapped, and no area is named")
        finally:
            for fd in reply.fds:
                os.close(fd)

    def region_info(self, index: int, *, argsz: int = wire.REGION_INFO.size) -> RegionInfo:
        """DEVICE_GET_REGION_INFO; asks again with the larger argsz where the region has capabilities."""
        reply = self.request(wire.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(argsz, 0, index, 0, 0, 0))
        needed, flags, answered, _, size, offset = wire.REGION_INFO.unpack_from(reply.payload)
        for fd in reply.fds:
            os.close(fd)
        if needed > argsz:
            return self.region_info(index, argsz=needed)
        return RegionInfo(answered, flags, size, offset, reply.payload[wire.REGION_INFO.size :])

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        reply = self.request(wire.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(wire.IRQ_INFO.size, 0, index, 0))
        _, flags, answered, count = wire.IRQ_INFO.unpack_from(reply.payload)
        return IrqInfo(answered, flags, count)

    def set_irqs(
        self, index: int, flags: int, start: int = 0, count: int = 0, *, data: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """DEVICE_SET_IRQS with any data and action; see `assign_eventfds` for the usual one."""
        size = wire.SET_IRQS_FIELDS.size + len(data)
        payload = wire.SET_IRQS_FIELDS.pack(size, flags, index, start, count) + data
        self.request(wire.DEVICE_SET_IRQS, payload, fds)

    def assign_eventfds(self, index: int, fds: Iterable[int], start: int = 0) -> None:
        """Have the vectors from `start` on signal these eventfds; as many messages as the descriptors need."""
        remaining = list(fds)
        flags = wire.IRQ_DATA_EVENTFD | wire.IRQ_ACTION_TRIGGER
        while remaining:
            batch, remaining = remaining[: wire.MAX_MSG_FDS], remaining[wire.MAX_MSG_FDS :]
            self.set_irqs(index, flags, start, len(batch), fds=batch)
            start += len(batch)

    def disable_irqs(self, index: int) -> None:
        """Take all eventfds of an interrupt index away."""
        self.set_irqs(index, wire.IRQ_DATA_NONE | wire.IRQ_ACTION_TRIGGER)

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.request(wire.DEVICE_RESET)

    # -- regions ---------------------------------------------------------------------------------------------------

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ: `count` bytes. Everything posted before has reached the device when this returns."""
        reply = self.request(wire.REGION_READ, wire.REGION_ACCESS.pack(offset, region, count))
        data = reply.payload[wire.REGION_ACCESS.size :]
        if len(data) != count or wire.REGION_ACCESS.unpack_from(reply.payload) != (offset, region, count):
            raise VfioUserError(f"REGION_READ of {count} bytes at {offset:#x} answered with {len(data)} bytes")
        return data

    def region_write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """REGION_WRITE; `posted` asks for no reply and returns at once."""
        if posted:
            self.send_posted(self.posted_write(region, offset, data))
            return
        reply = self.request(wire.REGION_WRITE, wire.REGION_ACCESS.pack(offset, region, len(data)) + data)
        if wire.REGION_ACCESS.unpack_from(reply.payload) != (offset, region, len(data)):
            raise VfioUserError(f"REGION_WRITE of {len(data)} bytes at {offset:#x} answered {reply.payload.hex()}")

    def posted_write(self, region: int, offset: int, data: bytes) -> bytes:
        """The bytes of a posted REGION_WRITE, for `send_posted`; several may be sent at once."""
        number, count = self.next_id(), len(data)
        return (
            _PACK_REGION(number, wire.REGION_WRITE, _REGION_SIZE + count, wire.NO_REPLY, 0, offset, region, count)
            + data
        )
