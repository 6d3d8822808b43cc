"""What the kernel says when devices come and go: how a test waits for one without asking again and again.

The messages are netlink datagrams of NUL-terminated strings: a line "ACTION@DEVPATH", then KEY=value pairs; see
lib/kobject_uevent.c in Linux. They come in the order of what happened, after it has.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from usbvfiod_core.testing.limits import PATIENCE

KOBJECT_UEVENT = 15  # NETLINK_KOBJECT_UEVENT
KERNEL_GROUP = 1
SO_RCVBUFFORCE = 33  # as SO_RCVBUF, beyond the limit of ordinary users
RECEIVE_BYTES = 4 << 20

Found = TypeVar("Found")


class Uevents:
    """The kernel's messages from the constructor on. `seen` keeps those that have been read, oldest first."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, KOBJECT_UEVENT)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        self._socket.bind((0, KERNEL_GROUP))
        self.seen: list[dict[str, str]] = []

    def __enter__(self) -> Uevents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def next(self, deadline: float) -> dict[str, str] | None:
        """The next message as its keys (ACTION, DEVPATH, SUBSYSTEM ...), or None if none comes until the deadline."""
        remaining = deadline - time.monotonic()
        if not select.select([self._socket], [], [], max(0.0, remaining))[0]:
            return None
        _, *pairs = self._socket.recv(65536).rstrip(b"\0").split(b"\0")
        keys = dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)
        self.seen.append(keys)
        return keys

    def wait(self, what: str, condition: Callable[[], Found | None], timeout: float = PATIENCE) -> Found:
        """Wait until `condition()` is true, asked now and after every message; returns what it gave.

        Raises TimeoutError, which names `what` and the last messages.
        """
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            if self.next(deadline) is None:
                if found := condition():
                    break
                last = [f"{keys.get('ACTION')} {keys.get('DEVPATH')}" for keys in self.seen[-10:]]
                raise TimeoutError(f"no {what} after {timeout:.0f} s; the last uevents: {last}")
        return found

    def wait_for(self, action: str, path: str, timeout: float = PATIENCE) -> None:
        """Wait for a message of this kind about a device (a path below /sys), one that was seen before included."""
        wanted = (action, path.removeprefix("/sys"))
        self.wait(
            f"{action} of {path}",
            lambda: any((keys.get("ACTION"), keys.get("DEVPATH")) == wanted for keys in self.seen),
            timeout,
        )
