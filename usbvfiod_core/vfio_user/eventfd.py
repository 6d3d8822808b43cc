"""Eventfds that a client gave us (eventfd(2)): an interrupt is one write to one, an unmasked pin one read."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EINVAL
from typing import Final

from ..errors import ClientError
from ..usb.device import Loop
from .signalling import Signal, signal


class Eventfd:
    """An eventfd that is ours to signal and close."""

    __slots__ = ("fd", "signal")

    def __init__(self, fd: int) -> None:
        """Take over `fd`. Raises ClientError(EINVAL), and leaves it to the caller, if it is something else."""
        _check(fd)
        self.fd: Final = fd
        self.signal: Signal = signal(fd)
        """Add one to the counter. A full counter is a signal already."""

    def close(self) -> None:
        """Give the descriptor back; nobody may signal it any more."""
        os.close(self.fd)


class EventfdListener:
    """An eventfd that is ours to listen to and close: `signalled` is called on the loop when its counter is not 0."""

    def __init__(self, fd: int, loop: Loop, signalled: Callable[[], None]) -> None:
        """Take over `fd`. Raises ClientError(EINVAL), and leaves it to the caller, if it is something else."""
        _check(fd)
        self.fd: Final = fd
        self._loop: Final = loop
        self._signalled: Final = signalled
        self._counter: Final = bytearray(8)
        self.go_on()

    def go_on(self) -> None:
        """Listen."""
        self._loop.add_reader(self.fd, self._readable)

    def stop(self) -> None:
        """Do not listen until `go_on`: what is signalled meanwhile stays in the counter."""
        self._loop.remove_reader(self.fd)

    def close(self) -> None:
        """Stop listening, and give the descriptor back."""
        self._loop.remove_reader(self.fd)
        os.close(self.fd)

    def _readable(self) -> None:
        try:
            os.preadv(self.fd, (self._counter,), -1, os.RWF_NOWAIT)  # whatever the client has done to O_NONBLOCK
        except OSError:
            return  # its other end has read it
        self._signalled()


class LoopEventfds:
    """What is made of a client's eventfds where there is a loop; see `irqs.Eventfds`."""

    def __init__(self, loop: Loop) -> None:
        self._loop: Final = loop

    def notifier(self, fd: int) -> Eventfd:
        return Eventfd(fd)

    def listener(self, fd: int, signalled: Callable[[], None]) -> EventfdListener:
        return EventfdListener(fd, self._loop, signalled)


def _check(fd: int) -> None:
    try:
        kind = os.readlink(f"/proc/self/fd/{fd}")
        if kind != "anon_inode:[eventfd]":
            raise ClientError(EINVAL, f"an interrupt needs an eventfd, not {kind}")
    except OSError as error:
        raise ClientError(EINVAL, f"an interrupt needs an eventfd: {error.strerror}") from None
