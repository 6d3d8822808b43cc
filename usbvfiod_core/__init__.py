"""usbvfiod: a vfio-user server with an xHCI controller whose USB devices come from plugins.

The names here are what a plugin needs. They, and the hooks in `usbvfiod_core.hooks.specs`, are the plugin API.
"""

from __future__ import annotations

from .errors import ConfigError, DeviceError, DeviceWithheld, PluginError, UsbvfiodError
from .hooks.interceptor import InterceptedTransfer, Interceptor
from .hooks.options import RegisterOptions
from .hooks.registry import hookimpl
from .hooks.specs import PLUGIN_API
from .hooks.wrapper import WrappedDevice
from .options import NoOptions, SettingError, option
from .usb.backend import Backend, DeviceInfo
from .usb.device import Device, DeviceEvents, Loop, Timer
from .usb.requests import SetupPacket
from .usb.speed import Speed
from .usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType

__all__ = [
    "PLUGIN_API",
    "Backend",
    "ConfigError",
    "Device",
    "DeviceError",
    "DeviceEvents",
    "DeviceInfo",
    "DeviceWithheld",
    "InterceptedTransfer",
    "Interceptor",
    "IsochronousPacket",
    "Loop",
    "NoOptions",
    "PluginError",
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
    "option",
]
