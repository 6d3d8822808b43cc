"""A page of registers that a client maps, so that a guest's accesses to it cost no message.

The page lies in a memory file of its own, at the offset that it has in its region, because a client adds the two; the
pages before it are never used. The file is sealed: nobody can make it shorter under our feet. A guest writes to the
page at any time, and any value.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from mmap import mmap

from .mapping import map_over
from .shared_area import PAGE, Home, SharedArea

_SEALS = 0x0001 | 0x0002 | 0x0004
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW (fcntl(2))."""


class SharedPage:
    """The page at `offset` of `registers`, in a file from the constructor to `close`; what is in it stays. Raises
    OSError.

    With `shared`, the file of another process's page, of which a copy of the descriptor is made, the page is that one,
    and what is in it is what the guest and the other process have written. `home` is where `registers` live if that is
    a file, to which the page goes back."""

    def __init__(self, registers: mmap, offset: int, shared: int | None = None, home: Home | None = None) -> None:
        self._home = (-1, 0) if home is None else (home.fd, home.offset + offset)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(registers)) + offset
        self._content = memoryview(registers)[offset : offset + PAGE]
        if shared is None:
            fd = os.memfd_create("registers", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            fd = fcntl.fcntl(shared, fcntl.F_DUPFD_CLOEXEC, 0)
        self.area = SharedArea(fd, offset, PAGE)
        try:
            if shared is None:
                os.truncate(fd, offset + PAGE)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                self._replace(fd, offset)
            else:
                if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fd).st_size != offset + PAGE:
                    raise OSError(errno.EINVAL, "it is not a page of registers")
                map_over(self._address, PAGE, fd, offset)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Take the page back: what a client has mapped is not looked at any more."""
        self._replace(*self._home)
        os.close(self.area.fd)

    def _replace(self, fd: int, offset: int) -> None:
        content = bytes(self._content)
        map_over(self._address, PAGE, fd, offset)
        self._content[:] = content
