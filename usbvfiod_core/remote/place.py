"""Where the other end is, as people write it: `host`, `host:port`, `192.0.2.1:3240`, `[2001:db8::1]:3240`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ..errors import ConfigError

_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9_.-]{1,15})?")
"""IPv6, with the zone of a link-local one (RFC 4007 11.2)."""


class Place(NamedTuple):
    """A host, by name or address without brackets, and its TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_place(text: str, default_port: int | None = None) -> Place:
    """The place that `text` names. Raises ConfigError; without a `default_port` the port has to be there."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed is not None:
        host, port = bracketed[1], bracketed[2]
        good = _ADDRESS.fullmatch(host) is not None and ":" in host
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
        good = _NAME.fullmatch(host) is not None
        if ":" in rest:
            raise ConfigError(f"{text!r}: an IPv6 address is in brackets: [2001:db8::1]:3240")
    if not good:
        raise ConfigError(f"{host!r} is not the name or the address of a host")
    if port is None:
        if default_port is None:
            raise ConfigError(f"{text!r} needs a port: {text}:PORT")
        return Place(host, default_port)
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16):
        raise ConfigError(f"{port!r} is not a TCP port from 1 to 65535")
    return Place(host, int(port))
