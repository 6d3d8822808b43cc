"""The three-byte protocol of the Rust program `usbvfiod`, version 0.3, without a socket.

A client connects for one command: a byte that says which, the device's bus and its number there. A descriptor of the
device's node comes with the first byte of ATTACH (SCM_RIGHTS), and with nothing else. The answer is one byte, behind
LIST_FOLLOWING how many devices there are, and two bytes for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

LENGTH: Final = 3
"""Bytes of a command."""
MAX_LISTED: Final = 127
"""Devices in a list: the client that comes with the Rust program counts their bytes in one byte."""


class Code(IntEnum):
    """The first byte of a command."""

    ATTACH = 0
    DETACH = 1
    LIST = 2


class Response(IntEnum):
    """The first byte of an answer."""

    SUCCESSFUL_OPERATION = 0
    LIST_FOLLOWING = 1
    NO_FREE_PORT = 2
    COULD_NOT_DETERMINE_SPEED = 3
    FAILED_TO_OPEN_FD = 4
    NO_SUCH_DEVICE = 5
    INVALID = 6


class Command(NamedTuple):
    """What a client wants done with the device of this number on this bus; LIST is for all."""

    code: Code
    bus: int = 0
    number: int = 0

    @property
    def node(self) -> str:
        """The node of the device."""
        return f"/dev/bus/usb/{self.bus:03d}/{self.number:03d}"


class CommandError(ValueError):
    """Bytes or descriptors that are no command."""


def parse(data: bytes, fds: int) -> Command | None:
    """The command that a client has sent so far with so many descriptors; None if more has to come. Raises
    CommandError."""
    if len(data) > LENGTH:
        raise CommandError(f"more than {LENGTH} bytes")
    if data and data[0] not in tuple(Code):
        raise CommandError(f"there is no command {data[0]}")
    wanted = bool(data) and data[0] == Code.ATTACH
    if fds != wanted and (data or fds):
        raise CommandError(f"{fds} descriptors where {int(wanted)} belongs")
    if len(data) < LENGTH:
        return None
    code = Code(data[0])
    return Command(code) if code is Code.LIST else Command(code, data[1], data[2])


def listing(nodes: Iterable[str]) -> bytes:
    """The answer to LIST: those of `nodes` that can be told in it."""
    pairs = []
    for node in nodes:
        bus, _, number = node.removeprefix("/dev/bus/usb/").partition("/")
        if bus.isdecimal() and number.isdecimal() and int(bus) < 256 and int(number) < 256:
            pairs.append(bytes((int(bus), int(number))))
    del pairs[MAX_LISTED:]
    return bytes((Response.LIST_FOLLOWING, len(pairs))) + b"".join(pairs)
