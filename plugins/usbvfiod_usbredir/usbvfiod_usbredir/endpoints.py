"""What descriptors say of endpoints, as far as the protocol needs it."""

from __future__ import annotations

from collections.abc import Mapping

from usbvfiod_core import Speed
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface

_CDC, _ACM = 0x02, 0x02
_CDC_DATA = 0x0A


def find(configuration: Configuration | None, settings: Mapping[int, int], address: int) -> Endpoint | None:
    """The endpoint of this address in the settings that are selected; 0 for an interface that is not in `settings`."""
    for interface in () if configuration is None else configuration.interfaces:
        if interface.alternate == settings.get(interface.number, 0):
            for endpoint in interface.endpoints:
                if endpoint.address == address:
                    return endpoint
    return None


def setting_of(configuration: Configuration | None, settings: Mapping[int, int], address: int) -> Interface | None:
    """The selected setting that has the endpoint."""
    for interface in () if configuration is None else configuration.interfaces:
        is_selected = interface.alternate == settings.get(interface.number, 0)
        if is_selected and any(endpoint.address == address for endpoint in interface.endpoints):
            return interface
    return None


def interval_of(endpoint: Endpoint, speed: Speed) -> float:
    """Seconds between two service intervals of an isochronous endpoint (USB 2.0 9.6.6)."""
    period: int = 1 << min(max(endpoint.interval, 1) - 1, 15)
    return period * (0.000125 if speed >= Speed.HIGH else 0.001)


def streams_of(interface: Interface) -> tuple[int, list[int]]:
    """How many streams every endpoint has that has some in a setting, and these endpoints; 0 if there are none."""
    able = [each for each in interface.endpoints if each.companion is not None and each.companion.max_streams]
    counts = [each.companion.max_streams for each in able if each.companion is not None]
    return min(counts, default=0), [each.address for each in able]


def is_serial_data(configuration: Configuration | None, settings: Mapping[int, int], address: int) -> bool:
    """Whether the endpoint carries the data of a serial port (CDC ACM)."""
    interface = setting_of(configuration, settings, address)
    if configuration is None or interface is None or interface.class_code != _CDC_DATA:
        return False
    return any((each.class_code, each.subclass) == (_CDC, _ACM) for each in configuration.interfaces)
