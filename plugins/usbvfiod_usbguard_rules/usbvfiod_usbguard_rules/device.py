"""What a device is, as USBGuard sees it: the values of its attributes, of sysfs."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from usbvfiod_core import DeviceInfo
from usbvfiod_core.usb.descriptors import walk

from .parser import ENCODING
from .rules import Facts

SYSFS = Path("/sys")
DEVICES = SYSFS / "bus/usb/devices"

_INTERFACE = 4
"""bDescriptorType (USB 3.2, table 9-6)."""
_ROOT_HUBS = {("1d6b", "0001"), ("1d6b", "0002"), ("1d6b", "0003")}
_BCD_DEVICE = slice(12, 14)

UNKNOWN: Mapping[str, None] = dict.fromkeys(("hash", "parent-hash", "via-port", "with-interface", "with-connect-type"))


def facts(info: DeviceInfo, devices: Path = DEVICES) -> Facts:
    """The values of a device that a backend has listed, as USBGuard prints them.

    Of one that is not the host's own, only the first three are known. Reads sysfs, and may wait while the host
    configures the device.
    """
    listed: dict[str, Sequence[str]] = {
        "id": [f"{info.vendor_id:04x}:{info.product_id:04x}"],
        "name": [info.name],
        "serial": [info.serial],
    }
    directory = devices / info.port_path
    if not info.port_path or not directory.is_dir():
        return {**listed, **UNKNOWN}
    read: dict[str, Sequence[str] | None] = {
        "id": [f"{_text(directory, 'idVendor')}:{_text(directory, 'idProduct')}"],
        "name": [_text(directory, "product")],
        "serial": [_text(directory, "serial")],
    }
    if read["id"] != listed["id"]:  # somebody else's port path, or another device by now
        return {**listed, **UNKNOWN}
    parent = Path(os.path.realpath(directory)).parent
    return {
        **read,
        "hash": [fingerprint(directory)],
        "parent-hash": [
            fingerprint(parent) if (parent / "descriptors").exists() else _hash(f"/{parent.relative_to(SYSFS)}")
        ],
        "via-port": [info.port_path],
        "with-interface": interface_types(_bytes(directory, "descriptors")),
        "with-connect-type": [_text(directory, "port/connect_type")],
    }


def fingerprint(directory: Path) -> str:
    """The `hash` of a device: SHA-256 of name, identity, serial number and descriptors.

    Of Linux's own root hubs the version is left out, which is the kernel's and changes with it.
    """
    vendor, product = _text(directory, "idVendor"), _text(directory, "idProduct")
    descriptors = bytearray(_bytes(directory, "descriptors"))
    if (vendor, product) in _ROOT_HUBS:
        descriptors[_BCD_DEVICE] = bytes(2)
    texts = (_text(directory, "product"), vendor, product, _text(directory, "serial"))
    return _hash("".join(texts).encode(*ENCODING) + bytes(descriptors))


def interface_types(descriptors: bytes) -> list[str]:
    """Class, subclass and protocol of every interface descriptor, in all settings of all configurations."""
    return [each[5:8].hex(":") for kind, each in walk(descriptors) if kind == _INTERFACE and len(each) >= 9]


def _hash(data: bytes | str) -> str:
    return base64.b64encode(hashlib.sha256(data.encode(*ENCODING) if isinstance(data, str) else data).digest()).decode()


def _bytes(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError:  # it has none, or it has gone
        return b""


def _text(directory: Path, name: str) -> str:
    return _bytes(directory, name).removesuffix(b"\n").decode(*ENCODING)
