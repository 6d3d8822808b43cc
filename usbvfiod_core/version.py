"""The version, told without loading what serves or any plugin."""

from __future__ import annotations

import platform
from importlib.metadata import version

from .hooks.specs import PLUGIN_API


def version_line() -> str:
    """What `usbvfiod --version` prints."""
    return f"usbvfiod {version('usbvfiod')} (plugin API {PLUGIN_API}, Python {platform.python_version()})"
