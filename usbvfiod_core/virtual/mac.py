"""The address of a virtual network adapter (IEEE 802 8.2)."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConfigError
from .digest import sha256
from .needs import MACHINE_ID


def parse_mac(text: str) -> bytes:
    """The six bytes of 02:00:00:12:34:56 or 02-00-00-12-34-56. Raises ConfigError, also if no station can have it."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}(\1[0-9A-Fa-f]{2}){4}", text):
        raise ConfigError(f"virtual:network: mac={text} is not an address such as 02:00:00:12:34:56")
    mac = bytes.fromhex(re.sub("[:-]", "", text))
    if mac[0] & 1 or not any(mac):
        raise ConfigError(
            f"virtual:network: mac={text} is not the address of one station; its first byte has to be even"
        )
    return mac


def stable_mac(text: str) -> bytes:
    """An address for this text, always the same: of one station, locally administered."""
    digest = sha256(f"usbvfiod network {text}".encode())
    return bytes(((digest[0] & 0xFC) | 0x02,)) + digest[1:6]


def machine_mac(text: str) -> bytes:
    """The same for this text on this host, so that two hosts with a tap0 do not get the same address."""
    try:
        machine = Path(MACHINE_ID).read_text().strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    return stable_mac(f"{machine} {text}")


def adapter_mac(text: str, serial: str, end: str) -> bytes:
    """The address that `text` says; without one, that of this serial number, or of this end of the cable on this host.
    Raises ConfigError."""
    if text:
        return parse_mac(text)
    return stable_mac(serial) if serial else machine_mac(end)
