"""The descriptor store of the service manager (sd_pid_notify_with_fds(3), FileDescriptorStoreMax=): what it holds, the
next start of the server gets.

`usbvfiod front` speaks the same protocol. Names in the store begin with `held.`, which tells them from sockets.
"""

from __future__ import annotations

import array
import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from ..errors import ConfigError
from ..usb.device import Loop
from .notify import address_of

log = logging.getLogger(__name__)

PREFIX: Final = "held."
ROOM: Final = "FDSTORE"
"""In the environment: how many descriptors are held for this unit. systemd says so from version 254 on."""
TRIES: Final = 100
"""Times that the service manager is told of one descriptor before that is given up."""
PAUSE: Final = 0.05
"""Seconds until the service manager is told again what there was no room for."""

_Message = tuple[str, int]
"""What is said, and a descriptor that goes with it and is ours to close; -1 for none."""


def room(environment: Mapping[str, str]) -> int:
    """How many descriptors are held; 0 where nobody does, or does not say so. Raises ConfigError."""
    told = environment.get(ROOM, "")
    if not told or not environment.get("NOTIFY_SOCKET"):
        return 0
    if not told.isascii() or not told.isdigit():
        raise ConfigError(f"{ROOM} is {told!r}, which is not a number of descriptors")
    return int(told)


class DescriptorStore:
    """A `Keeper`. `limit` is how many may be in the store, `held` are the names of what is there already: the first
    that is stored by such a name is taken for the same file. On the loop's thread.

    What is said is said in order. If the service manager has more to read than it gets round to, the rest waits.
    """

    def __init__(self, loop: Loop, limit: int, held: Iterable[str] = ()) -> None:
        self._loop = loop
        self._limit = limit
        self._names = set(held)
        self._found = set(held)
        self._waiting: deque[_Message] = deque()
        self._tries = 0
        self._quiet = False
        self._full = False

    @property
    def names(self) -> frozenset[str]:
        """What is in the store, as far as this process knows."""
        return frozenset(self._names)

    def store(self, name: str, fd: int) -> None:
        """Keep the open file of this descriptor, which stays the caller's, in the place of what had the name."""
        if name in self._found:
            self._found.discard(name)
            return
        self.remove(name)
        if len(self._names) >= self._limit:
            if not self._full:
                self._full = True
                log.warning(
                    "the service manager holds %d descriptors and no more, so the VM does not survive a crash of this "
                    "server; see FileDescriptorStoreMax=",
                    self._limit,
                )
            return
        self._names.add(name)
        self._say(f"FDSTORE=1\nFDNAME={PREFIX}{name}\nFDPOLL=0", fd)

    def remove(self, name: str) -> None:
        """Keep it no longer; nothing if it was not kept."""
        self._found.discard(name)
        if name in self._names:
            self._names.discard(name)
            self._full = False
            self._say(f"FDSTOREREMOVE=1\nFDNAME={PREFIX}{name}")

    def clear(self) -> None:
        """Keep nothing: the server ends because it was told to, or begins anew."""
        for name in sorted(self._names):
            self.remove(name)

    def hold(self, held: bool) -> None:
        """While `held` nothing is said: the service manager would not believe it. It is made up for afterwards."""
        self._quiet = held
        if not held:
            self._go_on()

    def forget(self) -> None:
        """Another process says what is to be kept from now on."""
        self._names.clear()
        self._found.clear()
        self._drop()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _say(self, text: str, fd: int = -1) -> None:
        if self._waiting or self._quiet or not _sent(text, fd):
            self._waiting.append((text, -1 if fd < 0 else os.dup(fd)))
            if len(self._waiting) == 1 and not self._quiet:
                self._tries = TRIES
                self._loop.call_later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        while self._waiting and not self._quiet:
            text, fd = self._waiting[0]
            if not _sent(text, fd):
                if self._tries:
                    self._tries -= 1
                    self._loop.call_later(PAUSE, self._go_on)
                else:
                    log.warning("the service manager does not read, so it does not hold what the server needs again")
                    self._drop()
                return
            self._tries = TRIES
            self._waiting.popleft()
            if fd >= 0:
                os.close(fd)

    def _drop(self) -> None:
        while self._waiting:
            _, fd = self._waiting.popleft()
            if fd >= 0:
                os.close(fd)


def _sent(text: str, fd: int) -> bool:
    """Send it; False if the service manager has to read something before."""
    address = address_of(os.environ.get("NOTIFY_SOCKET", ""))
    ancillary = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendmsg([text.encode()], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("the service manager cannot be told %s: %s", text.partition("\n")[0], error)
    return True
