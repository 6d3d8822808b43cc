"""Which device an address means among those a backend lists, now and when it comes back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import IntEnum
from fnmatch import fnmatchcase

from ..errors import ConfigError
from ..host.paths import usb_node
from ..usb.backend import DeviceInfo
from ..visible import visible
from .address_forms import canonical, listed

_NUMBER = r"[0-9A-Fa-f*?!\[\]-]+"
_IDENTITY = re.compile(rf"({_NUMBER}):({_NUMBER})(?::(.*))?", re.DOTALL)
_WHOLE_NUMBER = re.compile(r"[0-9A-Fa-f]{4}|.*[*?\[].*")
_NODE = re.compile(r"/dev/bus/usb/\d+/\d+")
_PORT_PATH = re.compile(r"[\d*]+-[\d*]+(\.[\d*]+)*")
_NAME = "name="
_ELSEWHERE = re.compile(r"\[[^\]]*:[^\]]*\].*", re.DOTALL)
"""Begins with an IPv6 address, which only a backend of remote devices understands."""


class Kind(IntEnum):
    """What an address goes by; the lower, the more it knows. Attachments that know more choose first."""

    NODE = 0
    """`/dev/bus/usb/002/003`, or a whole line of lsusb."""
    PATH = 1
    """`/dev/ttyUSB0`: a link to a node, or what the device is on this host while a driver of the host has it."""
    OWN = 2
    """Something that only the backend understands, `flash` say."""
    PORT_PATH = 3
    """`2-1.4`, as in sysfs."""
    SERIAL = 4
    """`VID:PID:SERIAL`."""
    IDENTITY = 5
    """`VID:PID`."""
    NAME = 6
    """`name=TEXT`."""


def kind_of(address: str) -> Kind:
    """What `address` goes by, in whatever form it is written."""
    address = canonical(address)
    if _NODE.fullmatch(address) or listed(address):
        return Kind.NODE
    if address.startswith("/"):
        return Kind.PATH
    if address.startswith(_NAME):
        return Kind.NAME
    if _PORT_PATH.fullmatch(address):
        return Kind.PORT_PATH
    identity = None if _ELSEWHERE.fullmatch(address) else _IDENTITY.fullmatch(address)
    if identity is None or not (_WHOLE_NUMBER.fullmatch(identity[1]) and _WHOLE_NUMBER.fullmatch(identity[2])):
        return Kind.OWN
    return Kind.IDENTITY if identity[3] is None else Kind.SERIAL


def rank(address: str) -> tuple[int, bool]:
    """A key that sorts addresses, those that say most first: a pattern comes after the same without `*`."""
    return kind_of(address), "*" in address or "[" in address


def matching(address: str, devices: Iterable[DeviceInfo], *, either_side: bool = False) -> list[DeviceInfo]:
    """The devices that `address` means. `either_side`: a port path means both sides of its socket, USB 2 and USB 3.

    In all but nodes and paths `*` stands for any text and `[...]` for one character, as in a shell. Names are compared
    without regard to case. Raises ConfigError for a path that is there and is no USB device.
    """
    devices = list(devices)
    own = [info for info in devices if info.address == address]
    if own:
        return own
    address = canonical(address)
    kind = kind_of(address)
    if kind is Kind.NODE:
        return _at_node(address, devices)
    if kind is Kind.PATH:
        node = _real(address)
        return [info for info in devices if info.address == node] or _behind(address, devices)
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
    number to another device: there it is the same kind of device in the same place. A path is gone while the device is
    a guest's: there it is the same, or the device with the same serial number wherever it is. Of several devices that
    are alike it is the one in the same place. Raises ConfigError if several are left.
    """
    devices = list(devices)
    if last is None or not last.port_path:
        return find(address, devices, either_side=follow_port)
    if follow_port:
        socket = {last.port_path, last.twin} - {""}
        return _only(address, [info for info in devices if not socket.isdisjoint((info.port_path, info.twin))])
    kind = kind_of(address)
    if kind in (Kind.NODE, Kind.PATH):
        found = [info for info in devices if same_place_and_kind(info, last)]
        found = found or [info for info in _now_at(address, devices) if _same_kind(info, last)]
        if not found and kind is Kind.PATH and last.serial:
            found = [info for info in devices if _same_kind(info, last)]
        return _only(address, found)
    found = matching(address, devices)
    return _only(address, [info for info in found if same_place_and_kind(info, last)] or found)


def describe(info: DeviceInfo) -> str:
    """What tells a device from others, for people."""
    parts = [info.address]
    if info.serial:
        parts.append(f"serial {info.serial}")
    if info.port_path:
        parts.append(f"port {info.port_path}")
    return " ".join(parts)


def leads_nowhere(address: str) -> bool:
    """Whether it is a path that does not exist now."""
    return kind_of(address) is Kind.PATH and not os.path.lexists(canonical(address))


def missing(address: str) -> str:
    """What to say of a device that is not there."""
    return f"{canonical(address)} does not exist" if leads_nowhere(address) else "it is not there"


def _at_node(address: str, devices: list[DeviceInfo]) -> list[DeviceInfo]:
    """What is at a node. A line of lsusb is of some time ago: if another device is there now, it means its kind."""
    line = listed(address)
    if line is None:
        return [info for info in devices if info.address == address]
    node, identity = line
    alike = [info for info in devices if f"{info.vendor_id:04x}:{info.product_id:04x}" == identity]
    return [info for info in alike if info.address == node] or alike


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL
        return path


def _behind(path: str, devices: list[DeviceInfo]) -> list[DeviceInfo]:
    node = usb_node(path)
    return [info for info in devices if info.address == node]


def _now_at(address: str, devices: list[DeviceInfo]) -> list[DeviceInfo]:
    """As `matching`; what once was the path of a USB device may be that of something else now."""
    try:
        return matching(address, devices)
    except ConfigError:
        return []


def _fits(text: str, pattern: str) -> bool:
    """Whether a device's text is meant, as it is or as people see it: some have serial numbers of any bytes."""
    return pattern in (text, visible(text)) or fnmatchcase(text, pattern)


def _same_kind(info: DeviceInfo, other: DeviceInfo) -> bool:
    return (info.vendor_id, info.product_id, info.serial) == (other.vendor_id, other.product_id, other.serial)


def same_place_and_kind(info: DeviceInfo, other: DeviceInfo) -> bool:
    """Whether they may be one device that has not been moved."""
    return info.port_path == other.port_path and _same_kind(info, other)


def _only(address: str, found: list[DeviceInfo]) -> DeviceInfo | None:
    if len(found) > 1:
        choices = "; ".join(describe(info) for info in found)
        raise ConfigError(f"{address} is ambiguous, give one of these addresses: {choices}")
    return found[0] if found else None
