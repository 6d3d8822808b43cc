"""What the parts of a server need of the system: they declare it, and the sandbox lets nothing else through."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from ..errors import PluginError
from .calls import known

FAMILIES: Final = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16}
"""Address families of sockets (include/linux/socket.h); of inet and inet6 only streams can be had."""

CAPABILITIES: Final = {"chown": 0, "dac_override": 1, "net_admin": 12}
"""Capabilities that a part may keep (include/uapi/linux/capability.h)."""


DNS: Final = 53
NAMES: Final = (
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/pki",
    "/usr/share/ca-certificates",
)
"""What is read to find a host, and to check its certificate."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one part needs, or all together (`|`).

    system_calls    names as in the manual, beyond the default set
    ioctls          request numbers; of those with a size in them, exactly as they are called
    ioctl_types     letters: all requests of this type (include/uapi/asm-generic/ioctl.h)
    sockets         keys of FAMILIES
    read, write     files, and directories with all that is below them; what is not there is left out
    create          directories in which entries are made and removed, but no file is read or written
    connect         TCP ports that are connected
    listen          TCP ports at which others connect
    capabilities    keys of CAPABILITIES, if the process has them
    """

    system_calls: frozenset[str] = frozenset()
    ioctls: frozenset[int] = frozenset()
    ioctl_types: frozenset[str] = frozenset()
    sockets: frozenset[str] = frozenset()
    read: frozenset[Path] = frozenset()
    write: frozenset[Path] = frozenset()
    create: frozenset[Path] = frozenset()
    connect: frozenset[int] = frozenset()
    listen: frozenset[int] = frozenset()
    capabilities: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(*(getattr(self, each.name) | getattr(other, each.name) for each in fields(Needs)))


_PATHS: Final = frozenset({"read", "write"})
_DECLARABLE: Final = frozenset(each.name for each in fields(Needs)) - {"create", "listen"}
"""What a plugin may need; the rest only a server's own parts do."""


def to_connect(ports: Iterable[int]) -> Needs:
    """What it takes to connect these TCP ports of hosts that are known by name; nothing if there are none.

    The C library asks name servers by UDP, which nobody has inside: from then on it asks by TCP.
    """
    wanted = frozenset(ports)
    if not wanted:
        return Needs()
    os.environ.setdefault("RES_OPTIONS", "use-vc")
    names = {Path(name) for name in NAMES} | {Path(os.path.realpath("/etc/resolv.conf"))}
    return Needs(sockets=frozenset({"inet", "inet6"}), read=frozenset(names), connect=wanted | {DNS})


def to_listen(ports: Iterable[int]) -> Needs:
    """What it takes to wait for others at these TCP ports; nothing if there are none."""
    wanted = frozenset(ports)
    if not wanted:
        return Needs()
    return Needs(sockets=frozenset({"inet", "inet6"}), read=frozenset(map(Path, NAMES)), listen=wanted)


def declared(**given: Iterable[Any]) -> Needs:
    """What a plugin declares, in the words of `RegisterNeeds`, checked. Raises PluginError, and TypeError for another
    word."""
    for word in given:
        if word not in _DECLARABLE:
            raise TypeError(f"there is no {word!r} to declare, only {', '.join(sorted(_DECLARABLE))}")
    needs = Needs(**{word: frozenset(map(Path, some) if word in _PATHS else some) for word, some in given.items()})
    for what, names, right in (
        ("a system call", needs.system_calls, known()),
        ("an address family", needs.sockets, FAMILIES),
        ("a capability that can be kept", needs.capabilities, CAPABILITIES),
    ):
        wrong = sorted(names - set(right))
        if wrong:
            raise PluginError(f"{wrong[0]!r} is not the name of {what}")
    if any(len(each) != 1 or not each.isascii() for each in needs.ioctl_types):
        raise PluginError(f"the type of an ioctl is one character, unlike {sorted(needs.ioctl_types)}")
    if any(not 0 <= each < 1 << 32 for each in needs.ioctls):
        raise PluginError("an ioctl's request has 32 bits")
    if any(not 0 < each < 1 << 16 for each in needs.connect):
        raise PluginError("a TCP port is from 1 to 65535")
    return needs | Needs(sockets=frozenset({"inet", "inet6"})) if needs.connect else needs
