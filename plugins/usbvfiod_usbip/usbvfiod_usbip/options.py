"""The options of the backend: of each device, and of the plugin."""

from __future__ import annotations

from dataclasses import dataclass

from usbvfiod_core import option
from usbvfiod_core.remote import RemoteOptions, parse_place

from .wire import PORT

_LARGEST = 1024


def _check_hosts(hosts: tuple[str, ...]) -> None:
    for host in hosts:
        parse_place(host, PORT)


@dataclass(frozen=True, slots=True)
class UsbipOptions(RemoteOptions):
    """Of one device."""

    largest: int = option(
        _LARGEST,
        "KiB of the largest bulk transfer that is sent in one piece; less for servers that lack memory.",
        lowest=16,
        highest=1024,
    )


@dataclass(frozen=True)
class UsbipConfig:
    """`[plugins.usbip]` of a configuration file."""

    hosts: tuple[str, ...] = option(
        (), "Servers, `host` or `host:port`: where `usbip:*/VID:PID` looks for a device.", check=_check_hosts
    )
