"""Where the other end of usbredir is: `HOST:PORT`, `unix=PATH`, and `listen=` before either for one that comes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from usbvfiod_core import ConfigError
from usbvfiod_core.remote import Place, parse_place

FORMS: Final = "HOST:PORT, unix=PATH, listen=HOST:PORT or listen=PATH"
_LISTEN: Final = "listen="
_UNIX: Final = "unix="


@dataclass(frozen=True, slots=True)
class Address:
    """`place` or `path`; `listens`: there we wait for the other end."""

    text: str
    place: Place | None = None
    path: Path | None = None
    listens: bool = False

    def __str__(self) -> str:
        return self.text


def parse_address(text: str) -> Address:
    """What a device specification says behind `usbredir:`. Raises ConfigError."""
    listens = text.startswith(_LISTEN)
    rest = text.removeprefix(_LISTEN)
    if rest.startswith(_UNIX) or (listens and "/" in rest):
        path = rest.removeprefix(_UNIX)
        if not path.startswith("/"):
            raise ConfigError(f"{text!r}: the path of a socket begins with /")
        return Address(text, path=Path(path), listens=listens)
    try:
        if listens and rest.startswith(":"):
            return Address(text, place=parse_place("localhost" + rest)._replace(host=""), listens=True)
        return Address(text, place=parse_place(rest), listens=listens)
    except ConfigError as error:
        raise ConfigError(f"{text!r}: {error}; an address is {FORMS}") from None
