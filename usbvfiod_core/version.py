"""The version, told without loading what serves or any plugin."""

from __future__ import annotations

import sys

from .compiled import BUILD
from .hooks.specs import PLUGIN_API
from .installed import version


def version_line() -> str:
    """What `usbvfiod --version` prints."""
    return f"usbvfiod {version('usbvfiod')} (plugin API {PLUGIN_API}, Python {sys.version.split()[0]}, {BUILD})"
