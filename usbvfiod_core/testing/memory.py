"""Guest RAM for tests and demonstrations: a memfd mapped in this process, with an allocator.

`GuestRam` is the guest's physical memory. A `SocketBus` passes its file descriptor to a server by DMA_MAP, a
`DirectBus` gives the same pages to an in-process controller; the guest driver allocates its rings, contexts and
buffers in it. Addresses are guest physical.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsbvfiodError
from ..memory import PAGE_SIZE

_F_ADD_SEALS = 1033
_F_SEAL_SHRINK = 0x0002

BELOW_4_GIB = 0x0010_0000
ABOVE_4_GIB = 0x1_0000_0000


class GuestRamError(UsbvfiodError):
    """Guest RAM is exhausted, or an address lies outside of it. A mistake of the test, never of the controller."""


@dataclass(frozen=True, slots=True)
class Span:
    """`size` bytes of RAM at guest physical `address`, in the memfd from `offset` on."""

    address: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        """The first address behind the span."""
        return self.address + self.size


class GuestRam:
    """Guest physical memory in one memfd, sealed against shrinking as VMMs do it.

    `layout` is a sequence of (address, size), page-aligned and not overlapping. By default there are 64 MiB at
    1 MiB and 64 MiB at 4 GiB; pages cost nothing until they are touched. `spans` says where each lies in `fd`. Without
    `sealed` it can shrink, as Cloud Hypervisor's can; then an access here may end this process (SIGBUS).
    """

    def __init__(self, layout: Sequence[tuple[int, int]] | None = None, *, sealed: bool = True) -> None:
        layout = layout if layout is not None else ((BELOW_4_GIB, 64 << 20), (ABOVE_4_GIB, 64 << 20))
        spans: list[Span] = []
        offset = 0
        for address, size in sorted(layout):
            if address % PAGE_SIZE or size % PAGE_SIZE or size <= 0:
                raise GuestRamError(f"span {address:#x}+{size:#x} is not made of whole pages")
            if spans and address < spans[-1].end:
                raise GuestRamError(f"span {address:#x}+{size:#x} overlaps {spans[-1].address:#x}")
            spans.append(Span(address, size, offset))
            offset += size
        self.spans = tuple(spans)
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, offset)
        if sealed:
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _F_SEAL_SHRINK)
        self._map = mmap.mmap(self.fd, offset, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._map)
        self._dwords = self._view.cast("I")
        self._holes: list[tuple[int, int]] = [(span.address, span.end) for span in self.spans]
        self._used: dict[int, int] = {}

    def close(self) -> None:
        """Close the memfd. Windows that are still around keep their pages."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # -- access ----------------------------------------------------------------------------------------------------

    def window(self, address: int, length: int) -> memoryview:
        """A writable view of `length` bytes; they must lie in one span."""
        start = self._offset(address, length)
        return self._view[start : start + length]

    def dwords(self, address: int, count: int) -> memoryview:
        """A view of `count` aligned dwords (format "I"): assigning one is a single store, as hardware sees it."""
        if address % 4:
            raise GuestRamError(f"{address:#x} is not aligned to a dword")
        start = self._offset(address, 4 * count) >> 2
        return self._dwords[start : start + count]

    def read(self, address: int, length: int) -> bytes:
        """Copy `length` bytes out."""
        return bytes(self.window(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` in."""
        self.window(address, len(data))[:] = data

    def read_u32(self, address: int) -> int:
        """The dword at an aligned address."""
        return int(self.dwords(address, 1)[0])

    def write_u32(self, address: int, value: int) -> None:
        """Store a dword at an aligned address."""
        self.dwords(address, 1)[0] = value & 0xFFFF_FFFF

    def read_u64(self, address: int) -> int:
        """The two dwords at an aligned address, low one first."""
        low, high = self.dwords(address, 2)
        return int(low) | int(high) << 32

    def write_u64(self, address: int, value: int) -> None:
        """Store two dwords, low one first."""
        pair = self.dwords(address, 2)
        pair[0] = value & 0xFFFF_FFFF
        pair[1] = value >> 32 & 0xFFFF_FFFF

    # -- allocation ------------------------------------------------------------------------------------------------

    def allocate(
        self, length: int, *, align: int = 64, boundary: int = 0, page_end: bool = False, high: bool | None = None
    ) -> int:
        """Take `length` bytes of zeroed memory and return their address.

        align       the address is a multiple of it; a power of two
        boundary    the bytes do not cross a multiple of it (a power of two; 65536 for a TRB's buffer, 0: may cross)
        page_end    the last byte is the last of a page, so that one byte more is in another page; wins over `align`
        high        True: above 4 GiB, False: below, None: wherever there is room, low addresses first
        """
        if length <= 0 or align & (align - 1) or align <= 0 or boundary & (boundary - 1):
            raise GuestRamError(f"cannot allocate {length} bytes, align {align:#x}, boundary {boundary:#x}")
        if boundary and length > boundary:
            raise GuestRamError(f"{length} bytes cannot stay within {boundary:#x}")
        for index, (start, end) in enumerate(self._holes):
            if high is not None:
                if high:
                    start = max(start, ABOVE_4_GIB)
                else:
                    end = min(end, ABOVE_4_GIB)
            address = self._fit(start, length, align, boundary, page_end)
            if address + length <= end:
                hole_start, hole_end = self._holes.pop(index)
                if address + length < hole_end:
                    self._holes.insert(index, (address + length, hole_end))
                if hole_start < address:
                    self._holes.insert(index, (hole_start, address))
                self._used[address] = length
                self.window(address, length)[:] = bytes(length)
                return address
        raise GuestRamError(f"no room for {length:#x} bytes in guest RAM")

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        try:
            length = self._used.pop(address)
        except KeyError:
            raise GuestRamError(f"{address:#x} was not allocated") from None
        insort(self._holes, (address, address + length))
        index = self._holes.index((address, address + length))
        starts = {span.address for span in self.spans}  # spans that touch stay apart: nothing may lie across them
        for left in (index, index - 1):
            if 0 <= left < len(self._holes) - 1:
                (start, end), (next_start, next_end) = self._holes[left], self._holes[left + 1]
                if end == next_start and end not in starts:
                    self._holes[left : left + 2] = [(start, next_end)]

    @property
    def allocated(self) -> int:
        """Bytes that are allocated now; a test may hold that nothing leaks."""
        return sum(self._used.values())

    # -- own -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _fit(start: int, length: int, align: int, boundary: int, page_end: bool) -> int:
        if page_end:
            end = -(-(start + length) // PAGE_SIZE) * PAGE_SIZE
            return end - length
        address = (start + align - 1) & ~(align - 1)
        if boundary and address // boundary != (address + length - 1) // boundary:
            address = (address + boundary - 1) & ~(boundary - 1)
            address = (address + align - 1) & ~(align - 1)
        return address

    def _offset(self, address: int, length: int) -> int:
        for span in self.spans:
            if span.address <= address and address + length <= span.end:
                return address - span.address + span.offset
        raise GuestRamError(f"{address:#x}+{length:#x} is not in guest RAM")
