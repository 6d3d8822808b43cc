"""Eventfds that a client gave us (eventfd(2)): an interrupt is one write to one."""

from __future__ import annotations

import os
from errno import EINVAL
from typing import Final

from ..errors import ClientError

_write = os.eventfd_write


class Eventfd:
    """An eventfd that is ours to signal and close."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take over `fd`. Raises ClientError(EINVAL), and leaves it to the caller, if it is something else.

        It is made non-blocking, for the client's end too, so that a counter nobody reads cannot hold us up; both known
        clients have it so already.
        """
        try:
            kind = os.readlink(f"/proc/self/fd/{fd}")
            if kind != "anon_inode:[eventfd]":
                raise ClientError(EINVAL, f"an interrupt needs an eventfd, not {kind}")
            os.set_blocking(fd, False)
        except OSError as error:
            raise ClientError(EINVAL, f"an interrupt needs an eventfd: {error.strerror}") from None
        self._fd: Final = fd

    def signal(self) -> None:
        """Add one to the counter. A full counter is a signal already."""
        try:
            _write(self._fd, 1)
        except OSError:
            pass

    def close(self) -> None:
        """Give the descriptor back; nobody may signal it any more."""
        os.close(self._fd)
