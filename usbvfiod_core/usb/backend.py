"""The contract between the core and a backend, which finds and opens devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from .device import Device, Loop
from .speed import Speed


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device as a backend sees it, for `usbvfiod devices` and for admission. Unknown texts are empty."""

    backend: str
    address: str
    """What follows the backend's name in a device specification and opens this device."""
    vendor_id: int
    product_id: int
    name: str
    serial: str = ""
    speed: Speed | None = None
    port_path: str = ""
    """Bus and ports as in sysfs, `2-1.4`."""
    driver: str = ""
    """The driver that holds the device now."""
    note: str = ""
    """Why the device cannot be used and what would help; empty for a usable one."""


class Backend(ABC):
    """A way to devices. Registered by the hook `usbvfiod_register_backends`.

    `list_devices` and `open` are called in a thread and may block; what they return is used on the loop's thread.
    """

    name: str
    """The prefix of its device specifications, `virtual` in `virtual:flash`; letters, digits and dashes."""

    @abstractmethod
    def list_devices(self) -> list[DeviceInfo]:
        """The devices there are now, usable or not. Raises DeviceError."""

    @abstractmethod
    def open(self, address: str, options: Mapping[str, str], loop: Loop) -> Device:
        """Open the device at `address`, ready for `Device.attach`.

        `options` are the `key=value` pairs behind the `?` of a specification, without those the core knows (`port`).
        Raises ConfigError for an address or option it does not know, naming those it does; DeviceError if the
        device is missing or cannot be opened.
        """
