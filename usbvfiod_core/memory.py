"""Guest memory: the regions that a client has mapped for DMA, and bounds checks for every access to them.

Nothing else in the project checks a guest address, and nothing else touches guest memory but through what is handed
out here. A file is mapped once as a whole and regions are slices of it, because clients unmap and map the same
file dozens of times while a firmware boots (notes: QEMU's PAM regions).

A memoryview that was handed out keeps its pages mapped after `unmap`; `mmap.close` is never called. Whoever keeps
views across messages compares `generation` and resolves them anew when it has changed. Whoever answers the guest while
a device may still write to a view withdraws it first (`withdraw`).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from .backing import Backing, in_memory
from .errors import ClientError, GuestMemoryError, UnsharedMemoryError

if TYPE_CHECKING:
    from .mapping import Place, Withdrawn
    from .sigbus import Guard

PAGE_SIZE: Final = 4096
MAX_REGIONS: Final = 65535
MAX_FILES: Final = 512
"""Files that are mapped at a time. Each is a descriptor, of which a process has 1024 unless told otherwise; the others
are for devices and for the control socket."""
ADDRESS_LIMIT: Final = 1 << 64

NOTICED_SIZE: Final = 128 << 20
"""Bytes that are not shared and are the guest's memory, no device's. QEMU maps firmware (64 MiB at most) and the
memory of display adapters (64 MiB) in the same way; Linux takes no less than this as a memory module."""

HOW_TO_SHARE: Final = "QEMU: share=on for every memory-backend, Cloud Hypervisor: shared=on"
"""What helps where memory of the guest's is not shared; for messages."""

NOT_IN_MEMORY: Final = (
    "the file is not on a memory file system (memfd, /dev/shm, hugetlbfs), so whoever owns it could keep the server "
    "waiting for its pages for ever; --any-memory-file, or any-memory-file in [server], accepts it"
)


class Region:
    """One mapped range of guest physical addresses, `start` up to but not including `end`.

    `view` is None where the client shared no file for it; `reason` then says why it cannot be accessed.
    """

    __slots__ = ("backing", "end", "offset", "readable", "reason", "start", "view", "writable")

    def __init__(self, start: int, size: int, readable: bool, writable: bool) -> None:
        self.start = start
        self.end = start + size
        self.readable = readable
        self.writable = writable
        self.view: memoryview | None = None
        self.reason = f"the client does not share {self.start:#x}-{self.end:#x} ({HOW_TO_SHARE})"
        self.backing: Backing | None = None
        self.offset = 0


class MapKeeper(Protocol):
    """Is told of every change of the map, at once, for a process that goes on if this one is killed."""

    def mapped(self, region: Region) -> None: ...
    def unmapped(self, region: Region) -> None: ...

    def settled(self) -> None:
        """A burst of messages has been drained: files that no region uses are not needed any more."""
        ...


class GuestMemory:
    """The guest's memory as far as the client has mapped it. Addresses are guest physical (the client's IOVA).

    `generation` changes with every change of the map. With `any_files` also files are accepted that are not in memory;
    see NOT_IN_MEMORY.
    """

    def __init__(self, *, any_files: bool = False, max_files: int = MAX_FILES) -> None:
        self.generation = 0
        self._max_files = max_files
        self._any_files = any_files
        self._starts: list[int] = []
        self._regions: list[Region] = []
        self._backings: dict[tuple[int, int], Backing] = {}
        self.truncated: Callable[[], object] = lambda: None
        """Called when the client has truncated a file that it has mapped; for whoever serves the client."""
        self.keeper: MapKeeper | None = None
        """Who is told of changes; set before there is any."""
        self._unsealed = False
        self._guard: Guard | None = None
        self._faults = 0
        self._last = Region(0, 0, False, False)
        self._former: list[Place] = []

    # -- the client's side: DMA_MAP and DMA_UNMAP ---------------------------------------------------------

    def map(
        self,
        address: int,
        size: int,
        fd: int | None = None,
        offset: int = 0,
        *,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """Map `size` bytes at `address`, backed by `fd` from `offset` on; the caller keeps and may close `fd`.

        The same mapping again is no error. Raises ClientError: EINVAL for a malformed range or an unsuitable file,
        EEXIST for an overlap, ENOSPC above MAX_REGIONS or MAX_FILES, EACCES for a writable map of a read-only file.
        """
        if size <= 0 or address < 0 or address + size > ADDRESS_LIMIT:
            raise ClientError(errno.EINVAL, f"DMA map {address:#x}+{size:#x} is not a range of 64-bit addresses")
        if (address | size | offset) % PAGE_SIZE:
            raise ClientError(errno.EINVAL, f"DMA map {address:#x}+{size:#x}@{offset:#x} is not page-aligned")
        if offset < 0 or offset + size >= 1 << 63:
            raise ClientError(errno.EINVAL, f"DMA map offset {offset:#x} is out of range")
        region = Region(address, size, readable, writable)
        backing = None
        if fd is not None:
            backing = self._backing(fd, offset + size)
            if writable and not backing.writable:
                raise ClientError(errno.EACCES, "DMA map asks for write access to a read-only file")
            region.backing, region.offset = backing, offset
        index = bisect_right(self._starts, address)
        for near in self._regions[max(index - 1, 0) : index + 1]:
            if near.start < region.end and region.start < near.end:
                if self._same(near, region):
                    return
                raise ClientError(
                    errno.EEXIST, f"DMA map {address:#x}+{size:#x} overlaps {near.start:#x}-{near.end:#x}"
                )
        if len(self._regions) >= MAX_REGIONS:
            raise ClientError(errno.ENOSPC, f"more than {MAX_REGIONS} DMA maps")
        if backing is not None:
            backing.regions += 1
            self._backings[backing.key] = backing
            region.view = backing.view[offset : offset + size]
            if not backing.sealed:
                self._unsealed = True
                self._guard = backing.guard
        self._starts.insert(index, address)
        self._regions.insert(index, region)
        self.generation += 1
        if self.keeper is not None:
            self.keeper.mapped(region)

    def map_buffer(self, address: int, buffer: bytearray | memoryview | mmap.mmap, *, writable: bool = True) -> None:
        """Map a buffer of this process; for tests and in-process drivers. No alignment is asked for."""
        view = memoryview(buffer).cast("B")
        region = Region(address, len(view), True, writable)
        region.view = view
        index = bisect_right(self._starts, address)
        self._starts.insert(index, address)
        self._regions.insert(index, region)
        self.generation += 1

    def unmap(self, address: int, size: int) -> int:
        """Forget every mapping that lies wholly in the range; return how many did.

        Nothing mapped there is no error: QEMU's virtual IOMMU unmaps ranges that never were. The caller has
        made sure that no transfer uses the range. Raises ClientError(EINVAL) for a range that would cut a mapping
        in two, or is no range.
        """
        end = address + size
        if size <= 0 or address < 0 or end > ADDRESS_LIMIT:
            raise ClientError(errno.EINVAL, f"DMA unmap {address:#x}+{size:#x} is not a range of 64-bit addresses")
        first = bisect_right(self._starts, address) - 1
        if first < 0 or self._regions[first].end <= address:
            first += 1
        last = bisect_left(self._starts, end)
        gone = self._regions[first:last]
        if not gone:
            return 0
        for region in (gone[0], gone[-1]):
            if region.start < address or region.end > end:
                raise ClientError(
                    errno.EINVAL,
                    f"DMA unmap {address:#x}+{size:#x} cuts the mapping {region.start:#x}-{region.end:#x}",
                )
        del self._regions[first:last], self._starts[first:last]
        self._forget(gone)
        return len(gone)

    def unmap_all(self) -> None:
        """Forget every mapping: DMA_UNMAP with the ALL flag, or the client went away."""
        gone, self._regions, self._starts = self._regions, [], []
        self._forget(gone)

    def settle(self) -> None:
        """Drop files that no region uses any more. Called when a burst of messages has been drained."""
        for key in [key for key, backing in self._backings.items() if not backing.regions]:
            del self._backings[key]
        self._unsealed = any(not backing.sealed for backing in self._backings.values())
        if self.keeper is not None:
            self.keeper.settled()

    def check(self) -> None:
        """Take away the regions of files that have shrunk. Called before guest memory is used for a batch of work.

        A file that shrinks between this check and an access is no harm: `sigbus` sees to it, and it is noticed here the
        next time. VMMs pass memory that is sealed against shrinking, and then this costs nothing.
        """
        if not self._unsealed:
            return
        faults = self._guard.faults if self._guard is not None else 0
        known, self._faults = self._faults, faults
        for backing in list(self._backings.values()):
            if not backing.sealed and (
                backing.map.size() < len(backing.view) or (faults != known and backing.has_faulted)
            ):
                self._truncated(backing)

    def withdraw(self, windows: Sequence[memoryview]) -> Withdrawn:
        """Windows that were handed out and may be written to when nobody expects it any more: their pages are handed
        out at another place from now on. `Withdrawn.revoke` then takes them away from whoever has them; before, those
        who have others in the same pages (`Withdrawn.meets`) have to give them back.

        Buffers of this process (`map_buffer`) cannot be taken away. Raises OSError if the process has no room for
        another mapping.
        """
        from .mapping import Withdrawn

        withdrawn = Withdrawn(windows, self._places())
        for backing in self._all_backings():
            if backing.place in withdrawn.touched:
                self._move(backing)
        return withdrawn

    def revoke_all(self) -> None:
        """Nothing that was handed out reaches the guest any more: it is let go of while devices may still have some of
        its memory. `unmap_all` follows. Raises OSError."""
        from .mapping import failure

        for place in self._places():
            if place.owner is not None and not place.revoke():
                raise failure()

    @property
    def regions(self) -> tuple[Region, ...]:
        """The mapped regions in order of address."""
        return tuple(self._regions)

    # -- the controller's side -------------------------------------------------------------------------------

    def window(self, address: int, length: int, *, write: bool = True) -> memoryview:
        """A view of `length` bytes that lie in one region. Raises GuestMemoryError, of the kind UnsharedMemoryError
        where the client has mapped memory that it does not share."""
        last = self._last
        end = address + length
        if last.start <= address and end <= last.end:
            region = last
        else:
            region = self._find(address, length)
            if end > region.end:
                raise GuestMemoryError(address, length, "crosses the end of a mapping")
        view = region.view
        if view is None:
            raise UnsharedMemoryError(address, length, region.reason)
        if (write and not region.writable) or not region.readable:
            raise GuestMemoryError(address, length, "write-only" if region.writable else "read-only")
        start = region.start
        return view[address - start : end - start]

    def windows(self, address: int, length: int, *, write: bool) -> list[memoryview]:
        """Views that together are `length` bytes, split where regions meet. Raises GuestMemoryError."""
        last = self._last
        if last.start <= address and address + length <= last.end:
            return [self.window(address, length, write=write)]
        views = []
        while length > 0:
            region = self._find(address, length)
            part = min(length, region.end - address)
            views.append(self.window(address, part, write=write))
            address += part
            length -= part
        return views

    def gather(self, ranges: Iterable[tuple[int, int] | memoryview], *, write: bool) -> list[memoryview]:
        """Views of many ranges (address and length) in order; what is a view already stays. Raises GuestMemoryError."""
        views: list[memoryview] = []
        last, view = self._last, None
        for each in ranges:
            if isinstance(each, memoryview):
                views.append(each)
                continue
            address, length = each
            if view is None or address < last.start or address + length > last.end:
                views += self.windows(address, length, write=write)
                last = self._last
                view = last.view if last.readable and (last.writable or not write) else None
                continue
            start = address - last.start
            views.append(view[start : start + length])
        return views

    def read(self, address: int, length: int) -> bytes:
        """Copy `length` bytes out. Raises GuestMemoryError."""
        return b"".join(self.windows(address, length, write=False))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` in. Raises GuestMemoryError, and then has written nothing."""
        done = 0
        for view in self.windows(address, len(data), write=True):
            view[:] = data[done : done + len(view)]
            done += len(view)

    def check_shared(self, address: int, length: int) -> None:
        """Raises UnsharedMemoryError if some of the range is memory that the client has mapped and does not share; what
        is not mapped at all, or cannot be written, is none of its business."""
        for region in self._regions[max(bisect_right(self._starts, address) - 1, 0) :]:
            if region.start >= address + length:
                return
            if region.view is None and address < region.end:
                raise UnsharedMemoryError(address, length, region.reason)

    # -- own ---------------------------------------------------------------------------------------------------

    def _find(self, address: int, length: int) -> Region:
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            region = self._regions[index]
            if address < region.end:
                self._last = region
                return region
        raise GuestMemoryError(address, length, "not mapped")

    @staticmethod
    def _same(old: Region, new: Region) -> bool:
        return (
            (old.start, old.end, old.readable, old.writable, old.offset)
            == (new.start, new.end, new.readable, new.writable, new.offset)
        ) and old.backing is new.backing

    def _backing(self, fd: int, needed: int) -> Backing:
        # First, because asking a file for anything else may already wait for its owner.
        if not self._any_files and not in_memory(fd):
            raise ClientError(errno.EINVAL, f"DMA map: {NOT_IN_MEMORY}")
        try:
            status = os.fstat(fd)
        except OSError as failure:
            raise ClientError(failure.errno or errno.EBADF, f"DMA map: {failure.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            raise ClientError(errno.EINVAL, "DMA map: the file descriptor is not a memfd or regular file")
        if status.st_size < needed:
            raise ClientError(
                errno.EINVAL, f"DMA map: the file is {status.st_size:#x} bytes, the map needs {needed:#x}"
            )
        key = (status.st_dev, status.st_ino)
        known = self._backings.get(key)
        if known is not None and len(known.view) >= needed:
            return known
        if len(self._backings) >= self._max_files:
            self.settle()
            if len(self._backings) >= self._max_files:
                raise ClientError(errno.ENOSPC, f"guest memory in more than {self._max_files} files")
        try:
            return Backing(fd, key, status.st_size)
        except (OSError, ValueError, OverflowError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
            raise ClientError(code, f"DMA map: the file cannot be mapped: {error}") from None

    def _forget(self, gone: list[Region]) -> None:
        for region in gone:
            if region.backing is not None:
                region.backing.regions -= 1
            if self.keeper is not None:
                self.keeper.unmapped(region)
        self._last = Region(0, 0, False, False)
        self.generation += 1

    def _all_backings(self) -> set[Backing]:
        """Every file; one that has grown since it was mapped is there twice."""
        return {*self._backings.values(), *(each.backing for each in self._regions if each.backing is not None)}

    def _places(self) -> list[Place]:
        """Where files are mapped whose windows can be written, now and earlier."""
        places = {place for place in self._former if place.owner is not None}
        places.update(backing.place for backing in self._all_backings() if backing.writable)
        self._former = list(places)
        return self._former

    def _move(self, backing: Backing) -> None:
        """Hand out the file at another place from now on."""
        backing.move()
        for region in self._regions:
            if region.backing is backing and region.view is not None:
                region.view = backing.view[region.offset : region.offset + region.end - region.start]
        self._last = Region(0, 0, False, False)
        self.generation += 1

    def _truncated(self, backing: Backing) -> None:
        backing.sealed = True  # said once; nothing of it can be reached any more
        for region in self._regions:
            if region.backing is backing:
                region.view = None
                region.reason = "the client has truncated the file of this memory"
        self._backings.pop(backing.key, None)
        self.generation += 1
        if backing.regions:
            self.truncated()
