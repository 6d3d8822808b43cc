"""Finding the device that an address means among those a backend lists."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ConfigError
from ..usb.backend import DeviceInfo

_IDENTITY = re.compile(r"([0-9A-Fa-f]{4}):([0-9A-Fa-f]{4})(?::(.*))?", re.DOTALL)
_PORT_PATH = re.compile(r"\d+-\d+(\.\d+)*")


def find(address: str, devices: Iterable[DeviceInfo]) -> DeviceInfo | None:
    """The one device that `address` means, or None if none of them is it.

    An address is a device's own (`/dev/bus/usb/002/003`, `flash`), `VID:PID`, `VID:PID:SERIAL`, or a port path as in
    sysfs (`2-1.4`). Raises ConfigError if it means more than one, with what tells them apart.
    """
    devices = list(devices)
    for info in devices:
        if info.address == address:
            return info
    identity = _IDENTITY.fullmatch(address)
    if identity is not None:
        vendor, product, serial = int(identity[1], 16), int(identity[2], 16), identity[3]
        matches = [
            info
            for info in devices
            if (info.vendor_id, info.product_id) == (vendor, product) and serial in (None, info.serial)
        ]
    elif _PORT_PATH.fullmatch(address):
        matches = [info for info in devices if info.port_path == address]
    else:
        return None
    if len(matches) > 1:
        choices = "; ".join(_difference(info) for info in matches)
        raise ConfigError(f"{address} is ambiguous, give one of these addresses: {choices}")
    return matches[0] if matches else None


def _difference(info: DeviceInfo) -> str:
    parts = [info.address]
    if info.serial:
        parts.append(f"serial {info.serial}")
    if info.port_path:
        parts.append(f"port {info.port_path}")
    return " ".join(parts)
