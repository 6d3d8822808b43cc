"""Where metrics are served: a Unix socket, or a port of the loopback interface and nothing else."""

from __future__ import annotations

import re
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import ConfigError
from ..installation import installation

_PORT = re.compile(r"(.*):([0-9]{1,5})")
_V6_LOOPBACK: Final = bytes(15) + b"\x01"


class MetricsAddress(NamedTuple):
    """`path` of a Unix socket, or `host` (an address) and `port`, 0 for one that is free."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"


def metrics_address(text: str) -> MetricsAddress:
    """What `--metrics` says. Raises ConfigError."""
    match = _PORT.fullmatch(text)
    if "/" in text or not match:
        if not text or ("/" not in text and (":" in text or _may_be_an_address(text))):
            raise ConfigError(_what(text))
        return MetricsAddress(Path(text))
    host, port = match[1], int(match[2])
    if port > 65535:
        raise ConfigError(f"metrics: {port} is not a TCP port, which is at most 65535")
    address = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    if not is_loopback(address):
        raise ConfigError(_what(text))
    return MetricsAddress(None, address, port)


def needs_library() -> None:
    """Raises ConfigError if what reads HTTP is not installed."""
    if find_spec("h11") is None:
        raise ConfigError(f"metrics needs the library h11: {installation().library('h11', debian='python3-h11')}")


def is_loopback(host: str) -> bool:
    """Whether this is an address of the loopback interface."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return packed == _V6_LOOPBACK if family == socket.AF_INET6 else packed[0] == 127
    return False


def _may_be_an_address(text: str) -> bool:
    """Whether this is an address without a port, or a port without an address, and hardly the name of a file."""
    if text.isdigit() or text == "localhost":
        return True
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def _what(text: str) -> str:
    return (
        f"metrics is the path of a Unix socket, or a loopback address and a port as 127.0.0.1:9742 or [::1]:9742, not "
        f"{text!r}; let other hosts in by a proxy that knows them"
    )
