"""The commands of the protocol after VERSION: payload and file descriptors in, payload of the reply out.

A refusal is a ClientError(EINVAL). Of the commands that are not in the table some are unknown, some are the server's
to send, and some (migration data, dirty pages) are not supported: the session refuses them all alike. Device features
are refused with ENOTTY, as Linux has it: for a client that asks whether the device can be migrated that is an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOTTY
from functools import partial
from struct import Struct
from typing import Final, Protocol

from ..errors import ClientError
from ..memory import GuestMemory
from ..pci.function import PciFunction
from ..pci.vfio import INTX_IRQ, NUM_IRQS, NUM_REGIONS
from .dma import UnsharedRanges, dma_map, unmap_range
from .irqs import Eventfds, Holder, Interrupts
from .wire import (
    DEVICE_FEATURE,
    DEVICE_FEATURE_FIELDS,
    DEVICE_FLAG_PCI,
    DEVICE_FLAG_RESET,
    DEVICE_GET_INFO,
    DEVICE_GET_IRQ_INFO,
    DEVICE_GET_REGION_INFO,
    DEVICE_GET_REGION_IO_FDS,
    DEVICE_INFO,
    DEVICE_RESET,
    DEVICE_SET_IRQS,
    DMA_MAP,
    DMA_UNMAP,
    FEATURE_GET,
    FEATURE_INDEX,
    FEATURE_MIGRATION,
    FEATURE_PROBE,
    FEATURE_SET,
    IRQ_FLAG_AUTOMASKED,
    IRQ_FLAG_EVENTFD,
    IRQ_FLAG_MASKABLE,
    IRQ_INFO,
    MAX_DATA_XFER_SIZE,
    MAX_WRITE_MULTI,
    REGION_ACCESS,
    REGION_FLAG_CAPS,
    REGION_FLAG_MMAP,
    REGION_FLAG_READ,
    REGION_FLAG_WRITE,
    REGION_INFO,
    REGION_IO_FDS,
    REGION_READ,
    REGION_WRITE,
    REGION_WRITE_MULTI,
    SPARSE_MMAP,
    SPARSE_MMAP_AREA,
    SPARSE_MMAP_ID,
    WRITE_MULTI_COUNT,
    WRITE_MULTI_ENTRY,
)

_INTX_FLAGS: Final = IRQ_FLAG_EVENTFD | IRQ_FLAG_MASKABLE | IRQ_FLAG_AUTOMASKED

Handler = Callable[[bytes, list[int]], "bytes | None"]
"""Executes a command. Takes descriptors by removing them from the list; None says that the reply comes later."""


class Wait(Protocol):
    """Reply with `finish()` once `begin` has called what it is given; None if it has not yet."""

    def __call__(
        self, begin: Callable[[Callable[[], object]], object], finish: Callable[[], bytes]
    ) -> bytes | None: ...


class Commands:
    """The commands as one client may give them; `handlers` is the table.

    `complain` logs a fault of the client's that gets no error reply; `fault` logs the exception being handled, which is
    our own, as the failure of a command. `send_fd` sends a descriptor along with the reply that is being made.
    """

    def __init__(
        self,
        function: PciFunction,
        memory: GuestMemory,
        *,
        eventfds: Eventfds,
        is_private: Callable[[int], bool],
        wait: Wait,
        complain: Callable[[str], None],
        fault: Callable[[int], None],
        send_fd: Callable[[int], None],
        holder: Holder | None = None,
    ) -> None:
        self._function: Final = function
        self._memory: Final = memory
        self.interrupts: Final = Interrupts(function.interrupts, eventfds, holder)
        self._wait: Final = wait
        self._complain: Final = complain
        self.unshared: Final = UnsharedRanges(complain, is_private)
        self._fault: Final = fault
        self._send_fd: Final = send_fd
        self.handlers: Final[dict[int, Handler]] = {
            DMA_MAP: self._dma_map,
            DMA_UNMAP: self._dma_unmap,
            DEVICE_GET_INFO: self._get_info,
            DEVICE_GET_REGION_INFO: self._get_region_info,
            DEVICE_GET_REGION_IO_FDS: self._get_region_io_fds,
            DEVICE_GET_IRQ_INFO: self._get_irq_info,
            DEVICE_SET_IRQS: self._set_irqs,
            REGION_READ: self._region_read,
            REGION_WRITE: self._region_write,
            REGION_WRITE_MULTI: self._region_write_multi,
            DEVICE_RESET: self._device_reset,
            DEVICE_FEATURE: self._device_feature,
        }

    def close(self) -> None:
        """The client is gone: its eventfds are closed."""
        self.interrupts.close()

    def _dma_map(self, payload: bytes, fds: list[int]) -> bytes:
        dma_map(self._memory, payload, fds, self.unshared)
        return b""

    def _dma_unmap(self, payload: bytes, fds: list[int]) -> bytes | None:
        address, size = unmap_range(payload)

        def finish() -> bytes:
            self._memory.unmap(address, size)
            return payload

        return self._wait(partial(self._function.quiesce, address, size), finish)

    def _get_info(self, payload: bytes, fds: list[int]) -> bytes:
        _at_least(payload, DEVICE_INFO)
        return DEVICE_INFO.pack(DEVICE_INFO.size, DEVICE_FLAG_RESET | DEVICE_FLAG_PCI, NUM_REGIONS, NUM_IRQS)

    def _get_region_info(self, payload: bytes, fds: list[int]) -> bytes:
        _at_least(payload, REGION_INFO)
        region: int = REGION_INFO.unpack_from(payload)[2]
        size = self._function.region_size(_region(region))
        flags = REGION_FLAG_READ | REGION_FLAG_WRITE if size else 0
        area = self._function.shared_area(region)
        if area is None:
            return REGION_INFO.pack(REGION_INFO.size, flags, region, 0, size, 0)
        flags |= REGION_FLAG_MMAP | REGION_FLAG_CAPS
        capability = SPARSE_MMAP.pack(SPARSE_MMAP_ID, 1, 0, 1, 0) + SPARSE_MMAP_AREA.pack(area.offset, area.size)
        needed = REGION_INFO.size + len(capability)
        info = REGION_INFO.pack(needed, flags, region, REGION_INFO.size, size, 0)
        if int.from_bytes(payload[:4], "little") < needed:
            return info  # the client asks again, with room; QEMU takes no offset of 0 here, as Linux answers it
        self._send_fd(area.fd)
        return info + capability

    def _get_region_io_fds(self, payload: bytes, fds: list[int]) -> bytes:
        _at_least(payload, REGION_IO_FDS)
        _, flags, region, _ = REGION_IO_FDS.unpack_from(payload)
        if flags:
            raise ClientError(EINVAL, f"flags {flags:#x}")
        return REGION_IO_FDS.pack(REGION_IO_FDS.size, 0, _region(region), 0)

    def _get_irq_info(self, payload: bytes, fds: list[int]) -> bytes:
        _at_least(payload, IRQ_INFO)
        index: int = IRQ_INFO.unpack_from(payload)[2]
        if index >= NUM_IRQS:
            raise ClientError(EINVAL, f"there is no interrupt index {index}")
        count = self._function.interrupts.count(index)
        flags = (_INTX_FLAGS if index == INTX_IRQ else IRQ_FLAG_EVENTFD) if count else 0
        return IRQ_INFO.pack(IRQ_INFO.size, flags, index, count)

    def _set_irqs(self, payload: bytes, fds: list[int]) -> bytes:
        self.interrupts.set_irqs(payload, fds)
        return b""

    def _region_read(self, payload: bytes, fds: list[int]) -> bytes:
        if len(payload) != REGION_ACCESS.size:
            raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, not {REGION_ACCESS.size}")
        offset, region, count = REGION_ACCESS.unpack(payload)
        _access(offset, region, count)
        try:
            data = self._function.read_region(region, offset, count)
        except Exception:
            self._fault(REGION_READ)
            data = b"\xff" * count
        return payload + data

    def _region_write(self, payload: bytes, fds: list[int]) -> bytes:
        if len(payload) < REGION_ACCESS.size:
            raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, less than {REGION_ACCESS.size}")
        offset, region, count = REGION_ACCESS.unpack_from(payload)
        _access(offset, region, count)
        data = payload[REGION_ACCESS.size :]
        if len(data) != count:
            raise ClientError(EINVAL, f"{len(data)} bytes of data, not {count}")
        self._write_region(region, offset, data)
        return payload[: REGION_ACCESS.size]

    def _region_write_multi(self, payload: bytes, fds: list[int]) -> bytes:
        if len(payload) < WRITE_MULTI_COUNT.size:
            raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, less than {WRITE_MULTI_COUNT.size}")
        (number,) = WRITE_MULTI_COUNT.unpack_from(payload)
        entries = payload[WRITE_MULTI_COUNT.size :]
        if number > MAX_WRITE_MULTI or len(entries) != number * WRITE_MULTI_ENTRY.size:
            raise ClientError(EINVAL, f"{len(entries)} bytes do not hold {number} writes")
        for offset, region, count, data in WRITE_MULTI_ENTRY.iter_unpack(entries):
            try:
                _access(offset, region, count)
                if not 1 <= count <= len(data):
                    raise ClientError(EINVAL, f"a write of {count} bytes")
            except ClientError as error:
                self._complain(f"REGION_WRITE_MULTI: {error}; skipped")
            else:
                self._write_region(region, offset, data[:count])
        return WRITE_MULTI_COUNT.pack(number)

    def _write_region(self, region: int, offset: int, data: bytes) -> None:
        try:
            self._function.write_region(region, offset, data)
        except Exception:
            self._fault(REGION_WRITE)

    def _device_reset(self, payload: bytes, fds: list[int]) -> bytes | None:
        if payload:
            raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, not 0")
        return self._wait(self._function.reset, bytes)

    def _device_feature(self, payload: bytes, fds: list[int]) -> bytes:
        _at_least(payload, DEVICE_FEATURE_FIELDS)
        flags: int = DEVICE_FEATURE_FIELDS.unpack_from(payload)[1]
        operation, feature = flags & ~FEATURE_INDEX, flags & FEATURE_INDEX
        both = FEATURE_GET | FEATURE_SET
        if operation in (0, both) or operation & ~(both | FEATURE_PROBE):
            raise ClientError(EINVAL, f"flags {flags:#x}")
        if feature == FEATURE_MIGRATION:
            raise ClientError(ENOTTY, "the controller's state cannot be saved or migrated (docs/snapshots.md)")
        raise ClientError(ENOTTY, f"there is no feature {feature}")


def _at_least(payload: bytes, fields: Struct) -> None:
    """Check a payload that begins with argsz and that later versions may make longer."""
    if len(payload) < fields.size:
        raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, less than {fields.size}")
    argsz = int.from_bytes(payload[:4], "little")
    if argsz < fields.size:
        raise ClientError(EINVAL, f"argsz {argsz} is too small")


def _region(region: int) -> int:
    if region >= NUM_REGIONS:
        raise ClientError(EINVAL, f"there is no region {region}")
    return region


def _access(offset: int, region: int, count: int) -> None:
    """Check what a guest cannot cause; an access outside a region is none of it."""
    _region(region)
    if count > MAX_DATA_XFER_SIZE:
        raise ClientError(EINVAL, f"an access of {count} bytes, more than {MAX_DATA_XFER_SIZE}")
    if offset + count > 1 << 64:
        raise ClientError(EINVAL, f"an access at {offset:#x}+{count:#x}")
