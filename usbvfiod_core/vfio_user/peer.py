"""What the process at the other end of the socket does with the files that it passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from .expendable import ask

_FILES: Final = 64
"""Files of one client that are looked up; a VM has one for each piece of its memory."""
_PATIENCE: Final = 0.2
"""Seconds for the client's memory map. The client can keep it locked, and what it has passed can be a file that does
not answer; then nothing more of it is looked up."""


Look = Callable[[int, int, int], bool]
"""Whether process `pid` maps a file, by its device and inode, privately and only so; False where it cannot be told."""


def is_private(pid: int, device: int, inode: int) -> bool:
    """`Look`, by this process."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            return kinds(maps, device, inode) == {b"p"}
    except OSError:
        return False


def kinds(lines: Iterable[bytes], device: int, inode: int) -> set[bytes]:
    """How a file is mapped, of the lines of a memory map: `p` for privately, `s` for shared."""
    wanted = [f"{os.major(device):02x}:{os.minor(device):02x}".encode(), str(inode).encode()]
    found = set()
    for line in lines:
        fields = line.split(None, 5)  # range, permissions, offset, device, inode, path (proc_pid_maps(5))
        if fields[3:5] == wanted:
            found.add(fields[1][3:4])
    return found


class PrivateFiles:
    """Whether process `pid` maps a file for itself only.

    QEMU passes the file of a memory-backend also without `share=on`. It maps the file privately then (MAP_PRIVATE):
    what the guest writes stays in QEMU's own pages, and whoever else maps the file sees what was there before, zeros.
    No message tells that, but the process's memory map does.
    """

    def __init__(self, pid: int, look: Look = is_private) -> None:
        self._pid = pid
        self._look = look
        self._known: dict[tuple[int, int], bool] = {}
        self._silent = False

    def __call__(self, fd: int) -> bool:
        """Whether the file behind `fd` is mapped privately by the client, and only so; False where that cannot be told:
        the client is another user's, or has not mapped it at all."""
        if self._silent:
            return False
        private = ask(partial(self._is_private, fd), _PATIENCE, None)
        self._silent = private is None
        return bool(private)

    def _is_private(self, fd: int) -> bool:
        try:
            status = os.fstat(fd)
        except OSError:
            return False
        key = (status.st_dev, status.st_ino)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _FILES:
                return False
            known = self._known[key] = self._look(self._pid, *key)
        return known
