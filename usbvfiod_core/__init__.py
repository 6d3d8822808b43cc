"""usbvfiod: a vfio-user server with an xHCI controller whose USB devices come from plugins.

The names here are what a plugin needs. They, and the hooks in `usbvfiod_core.hooks.specs`, are the plugin API.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import ConfigError, DeviceAway, DeviceError, DeviceWithheld, PluginError, UsbvfiodError
    from .files import open_path
    from .hooks.interceptor import InterceptedTransfer, Interceptor
    from .hooks.loading import hookimpl
    from .hooks.options import RegisterOptions
    from .hooks.specs import PLUGIN_API
    from .hooks.wrapper import WrappedDevice
    from .needs import RegisterNeeds
    from .options import NoOptions, SettingError, option
    from .usb.backend import Backend, DeviceInfo
    from .usb.device import Device, DeviceEvents, Loop, Timer
    from .usb.handover import CannotHandOver, Handover, NotSettled
    from .usb.requests import SetupPacket
    from .usb.speed import Speed
    from .usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType

__all__ = [
    "PLUGIN_API",
    "Backend",
    "CannotHandOver",
    "ConfigError",
    "Device",
    "DeviceAway",
    "DeviceError",
    "DeviceEvents",
    "DeviceInfo",
    "DeviceWithheld",
    "Handover",
    "InterceptedTransfer",
    "Interceptor",
    "IsochronousPacket",
    "Loop",
    "NoOptions",
    "NotSettled",
    "PluginError",
    "RegisterNeeds",
    "RegisterOptions",
    "SettingError",
    "SetupPacket",
    "Speed",
    "Timer",
    "Transfer",
    "TransferStatus",
    "TransferType",
    "UsbvfiodError",
    "WrappedDevice",
    "hookimpl",
    "open_path",
    "option",
]

_MODULES = {
    "PLUGIN_API": "hooks.specs",
    "Backend": "usb.backend",
    "CannotHandOver": "usb.handover",
    "ConfigError": "errors",
    "Device": "usb.device",
    "DeviceAway": "errors",
    "DeviceError": "errors",
    "DeviceEvents": "usb.device",
    "DeviceInfo": "usb.backend",
    "DeviceWithheld": "errors",
    "Handover": "usb.handover",
    "InterceptedTransfer": "hooks.interceptor",
    "Interceptor": "hooks.interceptor",
    "IsochronousPacket": "usb.transfer",
    "Loop": "usb.device",
    "NoOptions": "options",
    "NotSettled": "usb.handover",
    "PluginError": "errors",
    "RegisterNeeds": "needs",
    "RegisterOptions": "hooks.options",
    "SettingError": "options",
    "SetupPacket": "usb.requests",
    "Speed": "usb.speed",
    "Timer": "usb.device",
    "Transfer": "usb.transfer",
    "TransferStatus": "usb.transfer",
    "TransferType": "usb.transfer",
    "UsbvfiodError": "errors",
    "WrappedDevice": "hooks.wrapper",
    "hookimpl": "hooks.loading",
    "open_path": "files",
    "option": "options",
}


def __getattr__(name: str) -> Any:
    """Import what a name is when it is wanted (PEP 562): whoever only asks for the version waits for none of it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value
