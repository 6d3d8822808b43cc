"""A page of registers that a client maps, so that a guest's accesses to it cost no message.

The page lies in a memory file of its own, at the offset that it has in its region, because a client adds the two; the
pages before it are never used. The file is sealed: nobody can make it shorter under our feet. A guest writes to the
page at any time, and any value.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from mmap import mmap

from .mapping import map_over
from .shared_area import PAGE, SharedArea

_SEALS = 0x0001 | 0x0002 | 0x0004
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW (fcntl(2))."""


class SharedPage:
    """The page at `offset` of `registers`, in a file from the constructor to `close`; what is in it stays. Raises
    OSError."""

    def __init__(self, registers: mmap, offset: int) -> None:
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(registers)) + offset
        self._content = memoryview(registers)[offset : offset + PAGE]
        fd = os.memfd_create("registers", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.area = SharedArea(fd, offset, PAGE)
        try:
            os.truncate(fd, offset + PAGE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._replace(fd)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Take the page back: what a client has mapped is not looked at any more."""
        self._replace(-1)
        os.close(self.area.fd)

    def _replace(self, fd: int) -> None:
        content = bytes(self._content)
        map_over(self._address, PAGE, fd, self.area.offset)
        self._content[:] = content
