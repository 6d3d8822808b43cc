"""Opening a backend's device as a server does: the options are text, and are checked."""

from __future__ import annotations

from collections.abc import Mapping

from ..hooks.options import backend_options
from ..usb.backend import Backend
from ..usb.device import Device, Loop


def open_device(backend: Backend, address: str, options: Mapping[str, str], loop: Loop) -> Device:
    """Open `BACKEND:ADDRESS?options`. Raises ConfigError for options that do not fit what the backend declares, and
    what `Backend.open` raises."""
    return backend.open(address, backend_options(backend, address, options), loop)
