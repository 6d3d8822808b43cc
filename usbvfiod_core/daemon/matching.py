"""Which device an address means among those a backend lists, now and when it comes back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import IntEnum
from fnmatch import fnmatchcase

from ..errors import ConfigError
from ..usb.backend import DeviceInfo

_NUMBER = r"[0-9A-Fa-f*?!\[\]-]+"
_IDENTITY = re.compile(rf"({_NUMBER}):({_NUMBER})(?::(.*))?", re.DOTALL)
_WHOLE_NUMBER = re.compile(r"[0-9A-Fa-f]{4}|.*[*?\[].*")
_PORT_PATH = re.compile(r"[\d*]+-[\d*]+(\.[\d*]+)*")
_NAME = "name="


class Kind(IntEnum):
    """What an address goes by; the lower, the more it knows. Attachments that know more choose first."""

    NODE = 0
    """`/dev/bus/usb/002/003`, or a link to it."""
    OWN = 1
    """Something that only the backend understands, `flash` say."""
    PORT_PATH = 2
    """`2-1.4`, as in sysfs."""
    SERIAL = 3
    """`VID:PID:SERIAL`."""
    IDENTITY = 4
    """`VID:PID`."""
    NAME = 5
    """`name=TEXT`."""


def kind_of(address: str) -> Kind:
    """What `address` goes by."""
    if address.startswith("/"):
        return Kind.NODE
    if address.startswith(_NAME):
        return Kind.NAME
    if _PORT_PATH.fullmatch(address):
        return Kind.PORT_PATH
    identity = _IDENTITY.fullmatch(address)
    if identity is None or not (_WHOLE_NUMBER.fullmatch(identity[1]) and _WHOLE_NUMBER.fullmatch(identity[2])):
        return Kind.OWN
    return Kind.IDENTITY if identity[3] is None else Kind.SERIAL


def rank(address: str) -> tuple[int, bool]:
    """A key that sorts addresses, those that say most first: a pattern comes after the same without `*`."""
    return kind_of(address), "*" in address or "[" in address


def matching(address: str, devices: Iterable[DeviceInfo], *, either_side: bool = False) -> list[DeviceInfo]:
    """The devices that `address` means. `either_side`: a port path means both sides of its socket, USB 2 and USB 3.

    In all but nodes `*` stands for any text and `[...]` for one character, as in a shell. Names are compared without
    regard to case.
    """
    devices = list(devices)
    own = [info for info in devices if info.address == address]
    if own:
        return own
    kind = kind_of(address)
    if kind is Kind.NODE:
        node = os.path.realpath(address)
        return [info for info in devices if info.address == node]
    if kind is Kind.OWN:
        return []
    if kind is Kind.PORT_PATH:
        return [
            info
            for info in devices
            if (info.port_path and fnmatchcase(info.port_path, address))
            or (either_side and info.twin and fnmatchcase(info.twin, address))
        ]
    if kind is Kind.NAME:
        name = address.removeprefix(_NAME).casefold()
        return [info for info in devices if _fits(info.name.casefold(), name)]
    identity = _IDENTITY.fullmatch(address)
    assert identity is not None
    vendor, product, serial = identity[1].lower(), identity[2].lower(), identity[3]
    return [
        info
        for info in devices
        if fnmatchcase(f"{info.vendor_id:04x}", vendor)
        and fnmatchcase(f"{info.product_id:04x}", product)
        and (serial is None or _fits(info.serial, serial))
    ]


def find(address: str, devices: Iterable[DeviceInfo], *, either_side: bool = False) -> DeviceInfo | None:
    """The one device that `address` means, or None if none of them is it. Raises ConfigError if it means several."""
    return _only(address, matching(address, devices, either_side=either_side))


def find_again(
    address: str, last: DeviceInfo | None, devices: Iterable[DeviceInfo], *, follow_port: bool = False
) -> DeviceInfo | None:
    """The same, for an attachment that had the device `last` before, or None if it had none yet.

    With `follow_port` it is whatever sits in the socket of `last`. A node is given a new number each time, and an old
    number to another device: there it is the same kind of device in the same place. Of several devices that are alike
    it is the one in the same place. Raises ConfigError if several are left.
    """
    devices = list(devices)
    if last is None or not last.port_path:
        return find(address, devices, either_side=follow_port)
    if follow_port:
        socket = {last.port_path, last.twin} - {""}
        return _only(address, [info for info in devices if not socket.isdisjoint((info.port_path, info.twin))])
    if kind_of(address) is Kind.NODE:
        found = [info for info in devices if _same_place_and_kind(info, last)]
        return _only(address, found or [info for info in matching(address, devices) if _same_kind(info, last)])
    found = matching(address, devices)
    return _only(address, [info for info in found if _same_place_and_kind(info, last)] or found)


def describe(info: DeviceInfo) -> str:
    """What tells a device from others, for people."""
    parts = [info.address]
    if info.serial:
        parts.append(f"serial {info.serial}")
    if info.port_path:
        parts.append(f"port {info.port_path}")
    return " ".join(parts)


def _fits(text: str, pattern: str) -> bool:
    return text == pattern or fnmatchcase(text, pattern)


def _same_kind(info: DeviceInfo, other: DeviceInfo) -> bool:
    return (info.vendor_id, info.product_id, info.serial) == (other.vendor_id, other.product_id, other.serial)


def _same_place_and_kind(info: DeviceInfo, other: DeviceInfo) -> bool:
    return info.port_path == other.port_path and _same_kind(info, other)


def _only(address: str, found: list[DeviceInfo]) -> DeviceInfo | None:
    if len(found) > 1:
        choices = "; ".join(describe(info) for info in found)
        raise ConfigError(f"{address} is ambiguous, give one of these addresses: {choices}")
    return found[0] if found else None
