"""How guest memory is taken from whoever still holds a part of it.

A device that does not give a transfer back may write to its windows whenever it likes: a thread in `preadv`, Linux when
an URB is reaped, a plugin. No memoryview, slice or address can be taken out of their hands. So what is behind the
addresses is taken away: the file is mapped once more, at other addresses, for everybody who asks from now on, and
memory of nobody's comes in the place of the pages that are held. What is written there late, by this process or by the
kernel for it, is lost; nothing fails.

It costs nothing before it is needed: `memory` imports this file only then.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Final

Owner = mmap.mmap | ctypes.Array[ctypes.c_char]
"""What keeps a mapping: it is there as long as its owner, which every view of it keeps."""

_PROT: Final = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_MREMAP_MAYMOVE: Final = 1
FAILED: Final = ctypes.c_void_p(-1).value


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype, function.argtypes = result, arguments
    return function


_pointer, _size, _int = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
libc_mmap = _function("mmap", _pointer, _pointer, _size, _int, _int, _int, ctypes.c_int64)
_mremap = _function("mremap", _pointer, _pointer, _size, _size, _int)
_munmap = _function("munmap", _int, _pointer, _size)


class _Buffer(ctypes.Structure):
    """Py_buffer."""

    _fields_ = (("address", ctypes.c_void_p), ("rest", ctypes.c_byte * 128))


_get_buffer = ctypes.PYFUNCTYPE(_int, ctypes.py_object, ctypes.POINTER(_Buffer), _int)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.POINTER(_Buffer))(("PyBuffer_Release", ctypes.pythonapi))


def map_over(address: int, size: int, fd: int, offset: int) -> None:
    """Put `size` bytes of a file, shared, in the place of the pages at `address`; memory of nobody's if `fd` is -1.
    Raises OSError."""
    kind = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if libc_mmap(address, size, _PROT, kind | _MAP_FIXED, fd, offset) != address:
        raise _error("a page of registers cannot be mapped")


class Place:
    """Where a file is mapped: `size` bytes from `address` on, in pages of `page` bytes."""

    def __init__(self, owner: Owner, page: int) -> None:
        self._owner = weakref.ref(owner)
        self.address = address_of(owner)
        self.size = len(owner)
        self.page = page

    @property
    def owner(self) -> Owner | None:
        """Whoever keeps it mapped; None if nobody does any more."""
        return self._owner()

    def again(self, fd: int) -> Owner:
        """The same file mapped once more. `fd` is the file, or -1 if its pages are ordinary ones. Raises OSError."""
        if fd < 0:
            # Of a shared mapping, none of its bytes moved to another place is a second mapping of all of them.
            address = _mremap(self.address, 0, self.size, _MREMAP_MAYMOVE)
        else:
            address = libc_mmap(None, self.size, _PROT, mmap.MAP_SHARED, fd, 0)
        if address == FAILED:
            raise _error("the guest's memory cannot be mapped once more")
        owner = (ctypes.c_char * self.size).from_address(address)
        weakref.finalize(owner, _munmap, address, self.size).atexit = False
        return owner

    def pages(self, start: int, length: int) -> tuple[int, int]:
        """First address and end of the whole pages that hold `length` bytes at the address `start`."""
        first = (start - self.address) // self.page * self.page
        last = -(-(start - self.address + length) // self.page) * self.page
        return self.address + first, self.address + min(last, self.size)

    def revoke(self) -> bool:
        """Put memory of nobody's here; whether that went well."""
        return _replace(self.address, self.size)


class Withdrawn:
    """Pages of guest memory that nobody is given any more, but that somebody may still hold.

    `windows` are what they hold; those that lie in none of `places`, or cannot be written, are left alone.
    """

    def __init__(self, windows: Iterable[memoryview], places: Sequence[Place]) -> None:
        self._places = sorted((place for place in places if place.owner is not None), key=lambda each: each.address)
        self._owners = [place.owner for place in self._places]  # they stay, or others come to their addresses
        found = set()
        self.touched: set[Place] = set()
        """The places in which the windows lie."""
        for window in windows:
            at = _writable(window)
            place = self._place(at) if at else None
            if place is not None:
                found.add(place.pages(at, len(window)))
                self.touched.add(place)
        self._ranges: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if self._ranges and start <= self._ranges[-1][1]:
                start, last = self._ranges.pop()
                end = max(end, last)
            self._ranges.append((start, end))

    def meets(self, windows: Iterable[memoryview]) -> bool:
        """Whether one of these windows has a byte in the pages: whoever fills it must have given it back before they
        are revoked."""
        for window in windows:
            at = _writable(window)
            if at:
                index = bisect_right(self._ranges, (at + len(window), 0)) - 1
                if index >= 0 and at < self._ranges[index][1] and self._ranges[index][0] < at + len(window):
                    return True
        return False

    def revoke(self) -> None:
        """From now on nothing that is written to the windows reaches the guest. Raises OSError, and then it may."""
        ranges, self._ranges = self._ranges, []
        for index, (start, end) in enumerate(ranges):
            if not _replace(start, end - start):
                # The process has too many mappings. One for all of the place makes them fewer.
                for place in self.touched:
                    if not place.revoke():
                        self._ranges = ranges[index:]
                        raise failure()
                break
        self._owners.clear()

    def _place(self, address: int) -> Place | None:
        index = bisect_right(self._places, address, key=lambda each: each.address) - 1
        if index < 0 or address >= self._places[index].address + self._places[index].size:
            return None
        return self._places[index]


def _replace(address: int, size: int) -> bool:
    # Shared with nobody, but called so: what is private counts as data, of which a process may not have much.
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
    return bool(libc_mmap(address, size, _PROT, flags, -1, 0) == address)


def address_of(buffer: Owner | memoryview) -> int:
    """Where a buffer of at least one byte lies, which may be one that cannot be written."""
    view = _Buffer()
    _get_buffer(buffer, view, 0)
    _release_buffer(view)
    address: int = view.address
    return address


def _writable(window: memoryview) -> int:
    """Where a window lies; 0 for one that is empty, or cannot be written, also because it was released."""
    try:
        return 0 if window.readonly or not len(window) else address_of(window)
    except ValueError:
        return 0


def failure() -> OSError:
    """What `revoke` has failed with."""
    return _error("guest memory cannot be taken from a device")


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")
