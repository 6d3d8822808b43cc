"""What the user asked for, checked: device specifications and the server's configuration.

A device specification is `[BACKEND:]ADDRESS[?option=value&...]`. In options, `%XX` stands for a byte, so that a value
can hold `&`. The options of the core are `port`, `name`, `mode` and `follow-port`; the backend gets the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from urllib.parse import unquote

from ..errors import ConfigError, UsbvfiodError
from .selector import SPIN

MAX_PORTS = 255
"""Ports an xHC can have (xHCI 5.3.3); how many ours has, the controller says when a device is plugged."""

MAX_NAME = 64

_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")
_PREFIX = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*):(.*)", re.DOTALL)
_VENDOR = re.compile(r"[0-9A-Fa-f]{4}")


class SocketError(UsbvfiodError):
    """The socket to serve on cannot be used; the message says why and what to do."""


class Mode(Enum):
    """When an attachment's device is plugged in."""

    AUTO = "auto"
    """Whenever it is there."""
    REQUIRED = "required"
    """The same; and the server does not serve before it is."""
    MANUAL = "manual"
    """From the time on when somebody asks for it."""
    ASK = "ask"
    """When somebody allows it, each time it comes."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One `--device` value, parsed. `text` is as written, for messages; `address` says which device is meant
    (see `matching`), `port` the guest's port."""

    text: str
    backend: str
    address: str
    options: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    name: str = ""
    """What the user calls it; unique among those of a server."""
    mode: Mode = Mode.AUTO
    follow_port: bool = False
    """Keep whatever sits in the socket in which the device was found first."""


@dataclass(frozen=True, slots=True)
class Config:
    """What one server serves and where. Exactly one of `socket_path` and `fd` is given."""

    socket_path: Path | None = None
    fd: int | None = None
    devices: tuple[DeviceSpec, ...] = ()
    spin: float = SPIN

    def __post_init__(self) -> None:
        if (self.socket_path is None) == (self.fd is None):
            raise ConfigError("give either --socket-path PATH or --fd N")
        taken: dict[int, str] = {}
        names: dict[str, str] = {}
        for device in self.devices:
            if device.name and device.name in names:
                raise ConfigError(f"{names[device.name]} and {device.text} have the same name")
            names[device.name] = device.text
            if device.port is None:
                continue
            if device.port in taken:
                raise ConfigError(f"port {device.port} is asked for by both {taken[device.port]} and {device.text}")
            taken[device.port] = device.text


def parse_device(text: str, backends: Iterable[str], default_backend: str | None = None) -> DeviceSpec:
    """Parse one device specification. Raises ConfigError, naming what would be right.

    What stands before the first colon is a backend if there is one of that name; else the whole is an address of
    `default_backend`, as in `1d6b:0002`.
    """
    known = sorted(backends)
    place, question, query = text.partition("?")
    match = _PREFIX.fullmatch(place)
    if match is not None and match[1] in known:
        backend, address = match[1], match[2]
    elif match is not None and not _VENDOR.fullmatch(match[1]):
        raise ConfigError(f"device {text!r}: {unknown('backend', match[1], known)}")
    elif default_backend is None:
        raise ConfigError(
            f"device {text!r} names no backend; write BACKEND:{place} or give --backend (there are: {_list(known)})"
        )
    else:
        backend, address = default_backend, place
    if not address:
        raise ConfigError(f"device {text!r}: the address is missing; `usbvfiod devices` lists what there is")
    options = _parse_options(text, query) if question else {}
    return DeviceSpec(
        text,
        backend,
        address,
        port=_parse_port(text, options.pop("port", None)),
        name=_parse_name(text, options.pop("name", None)),
        mode=_parse_mode(text, options.pop("mode", None)),
        follow_port=_parse_follow_port(text, options.pop("follow-port", None)),
        options=options,
    )


def check_backend(name: str, backends: Iterable[str]) -> str:
    """`name`, if there is such a backend. Raises ConfigError."""
    known = sorted(backends)
    if name not in known:
        raise ConfigError(unknown("backend", name, known))
    return name


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A message that there is no `what` called `name`, with the nearest that there is, or all."""
    known = sorted(known)
    near = get_close_matches(name, known, 1)
    return f"there is no {what} {name!r}" + (f"; {near[0]!r} is meant?" if near else f" (there are: {_list(known)})")


def _parse_options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ConfigError(f"device {text!r}: {part!r} is no option; write ?name=value&name=value")
        key = unquote(key)
        if key in options:
            raise ConfigError(f"device {text!r}: option {key!r} is given twice")
        options[key] = unquote(value)
    return options


def _parse_port(text: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= MAX_PORTS:
        raise ConfigError(f"device {text!r}: port is a number from 1 up, not {value!r}")
    return int(value)


def _parse_name(text: str, value: str | None) -> str:
    if value is not None and not _NAME.fullmatch(value):
        raise ConfigError(
            f"device {text!r}: a name has letters, digits, '-', '_' and '.', begins with a letter and is at most "
            f"{MAX_NAME} long, unlike {value!r}"
        )
    return value or ""


def _parse_mode(text: str, value: str | None) -> Mode:
    try:
        return Mode.AUTO if value is None else Mode(value)
    except ValueError:
        modes = ", ".join(mode.value for mode in Mode)
        raise ConfigError(f"device {text!r}: there is no mode {value!r} (there are: {modes})") from None


def _parse_follow_port(text: str, value: str | None) -> bool:
    if value not in (None, "true", "false"):
        raise ConfigError(f"device {text!r}: follow-port is true or false, not {value!r}")
    return value == "true"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
