"""VFIO_USER_DMA_MAP and VFIO_USER_DMA_UNMAP: from message to `GuestMemory`."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOSPC, ENOTSUP
from typing import Final

from ..errors import ClientError
from ..memory import ADDRESS_LIMIT, HOW_TO_SHARE, NOTICED_SIZE, GuestMemory
from .wire import (
    DMA_MAP_FIELDS,
    DMA_MAP_FILE_IO,
    DMA_MAP_MMAP,
    DMA_MAP_READ,
    DMA_MAP_WRITE,
    DMA_UNMAP_ALL,
    DMA_UNMAP_FIELDS,
    DMA_UNMAP_GET_DIRTY_BITMAP,
)

MAX_MAP_SIZE: Final = 8 << 40
"""Largest single mapping, 8 TiB."""

_MAP_FLAGS: Final = DMA_MAP_READ | DMA_MAP_WRITE | DMA_MAP_MMAP | DMA_MAP_FILE_IO
_DIRTY_BITMAP_SIZE: Final = 16


class UnsharedRanges:
    """What one client has mapped of the guest's memory without sharing it; each range is told once.

    A client maps parts of it again and again while a firmware boots, and other ranges when memory is plugged in.
    `is_private` says of the file behind a descriptor whether the client maps it for itself only.
    """

    def __init__(self, complain: Callable[[str], None], is_private: Callable[[int], bool]) -> None:
        self._complain = complain
        self.is_private = is_private
        self.told: list[tuple[int, int]] = []
        """First address, and the one behind the last, of each."""

    def mapped(self, address: int, size: int) -> None:
        """Memory that the guest can write was mapped without a file."""
        end = address + size
        if size < NOTICED_SIZE or any(start <= address and end <= last for start, last in self.told):
            return
        self.told.append((address, end))
        self._complain(
            f"it does not share the guest's memory {address:#x}-{end:#x} ({size >> 20} MiB); USB transfers to and from "
            f"it fail, and no device works if the guest's driver lies in it ({HOW_TO_SHARE})"
        )


def dma_map(memory: GuestMemory, payload: bytes, fds: list[int], unshared: UnsharedRanges) -> None:
    """Carry out a DMA_MAP; the caller closes `fds`. Raises ClientError.

    Without a file, or with one that the client maps privately, the range is known but cannot be accessed: QEMU maps its
    firmware so, and all memory that is not shared; `unshared` is told of the latter.
    """
    if len(payload) != DMA_MAP_FIELDS.size:
        raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, not {DMA_MAP_FIELDS.size}")
    argsz, flags, offset, address, size = DMA_MAP_FIELDS.unpack(payload)
    if argsz < DMA_MAP_FIELDS.size:
        raise ClientError(EINVAL, f"argsz {argsz} is too small")
    if flags & ~_MAP_FLAGS or not flags & (DMA_MAP_READ | DMA_MAP_WRITE):
        raise ClientError(EINVAL, f"flags {flags:#x} are not a way to map memory")
    if flags & DMA_MAP_MMAP and flags & DMA_MAP_FILE_IO:
        raise ClientError(EINVAL, "both mmap and file I/O are asked for")
    if len(fds) > 1:
        raise ClientError(EINVAL, f"{len(fds)} file descriptors for one mapping")
    if flags & (DMA_MAP_MMAP | DMA_MAP_FILE_IO) and not fds:
        raise ClientError(EINVAL, "mmap or file I/O is asked for, and no file descriptor given")
    if flags & DMA_MAP_FILE_IO:
        raise ClientError(ENOTSUP, "memory that can only be read and written as a file is not supported")
    if size > MAX_MAP_SIZE:
        raise ClientError(ENOSPC, f"a mapping of {size:#x} bytes is too large")
    fd = fds[0] if fds else None
    if fd is not None and flags & DMA_MAP_WRITE and unshared.is_private(fd):
        fd, offset = None, 0
    memory.map(
        address,
        size,
        fd,
        offset,
        readable=bool(flags & DMA_MAP_READ),
        writable=bool(flags & DMA_MAP_WRITE),
    )
    if fd is None and flags & DMA_MAP_WRITE:
        unshared.mapped(address, size)


def unmap_range(payload: bytes) -> tuple[int, int]:
    """Address and size that a DMA_UNMAP names; with the ALL flag that is every address. Raises ClientError(EINVAL)."""
    if len(payload) not in (DMA_UNMAP_FIELDS.size, DMA_UNMAP_FIELDS.size + _DIRTY_BITMAP_SIZE):
        raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, not {DMA_UNMAP_FIELDS.size}")
    argsz, flags, address, size = DMA_UNMAP_FIELDS.unpack_from(payload)
    if argsz < DMA_UNMAP_FIELDS.size:
        raise ClientError(EINVAL, f"argsz {argsz} is too small")
    if flags & DMA_UNMAP_GET_DIRTY_BITMAP:
        raise ClientError(EINVAL, "dirty pages are not tracked")
    if flags & ~DMA_UNMAP_ALL or len(payload) != DMA_UNMAP_FIELDS.size:
        raise ClientError(EINVAL, f"flags {flags:#x} are not a way to unmap memory")
    if flags & DMA_UNMAP_ALL:
        if address or size:
            raise ClientError(EINVAL, "address and size must be 0 to unmap everything")
        return 0, ADDRESS_LIMIT
    if not size or address + size > ADDRESS_LIMIT:
        raise ClientError(EINVAL, f"{address:#x}+{size:#x} is not a range of 64-bit addresses")
    return address, size
