"""What a backend of remote devices needs of the system: TCP connections, and the names of hosts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

_DNS: Final = 53
_NAMES: Final = ("/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/gai.conf", "/etc/services")
_CERTIFICATES: Final = ("/etc/ssl", "/etc/pki", "/usr/lib/ssl", "/usr/share/ca-certificates")


class _Register(Protocol):
    """As `usbvfiod_core.RegisterNeeds`, as far as it is used."""

    def __call__(self, *, sockets: tuple[str, ...], read: tuple[Path, ...], connect: tuple[int, ...]) -> None: ...


def register_remote_needs(register: _Register, ports: Iterable[int] = ()) -> None:
    """For a backend's `usbvfiod_register_needs`. `ports` are those it may connect whatever is configured; those of
    configured devices come from `Backend.connects`.

    The C library asks name servers by UDP, which a server with a sandbox has not: from now on it asks by TCP.
    """
    os.environ.setdefault("RES_OPTIONS", "use-vc")
    files = [*map(Path, _NAMES), *map(Path, _CERTIFICATES), Path(os.path.realpath("/etc/resolv.conf"))]
    register(sockets=("inet", "inet6"), read=tuple(files), connect=(_DNS, *ports))
