"""What the start of a server would find wrong outside its configuration, found before: for `config check` and `why`.

Nothing is made, locked or taken; what a server that runs already has is not wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ConfigError, UsbvfiodError
from ..hooks.options import backend_options
from ..options import SettingError
from ..usb.backend import Backend
from ..vfio_user.listener import check_path
from .config import DeviceSpec
from .guest_ports import GuestPorts, no_such_port, wrong_kind
from .matching import find
from .metrics_address import metrics_address, needs_library
from .server_settings import ServerSettings

_SOCKETS = ("socket_path", "control_path", "hotplug_socket_path")


def socket_errors(server: ServerSettings) -> Iterator[SettingError]:
    """The places of sockets at which none can be made, with their keys."""
    for name in _SOCKETS:
        path = getattr(server, name)
        if path is not None:
            try:
                check_path(str(path))
            except ConfigError as error:
                yield SettingError(name.replace("_", "-"), str(error))
    if server.metrics is not None:
        try:
            path = metrics_address(server.metrics).path
            if path is not None:
                check_path(str(path))
            needs_library()
        except ConfigError as error:
            yield SettingError("metrics", str(error))


def device_errors(ports: GuestPorts, spec: DeviceSpec, backend: Backend) -> Iterator[SettingError]:
    """Why a device could not be plugged in, with the key of the option that is to blame, if one is."""
    speed = None
    try:
        speed = backend.check(spec.address, backend_options(backend, spec.address, spec.options))
    except UsbvfiodError as error:
        yield SettingError(getattr(error, "key", ""), str(error))
    except Exception as error:
        yield SettingError("", f"backend {backend.name} fails: {type(error).__name__}: {error}")
    if spec.port is None:
        return
    if spec.port > ports.last:
        yield SettingError("port", no_such_port(spec.port, ports.last))
        return
    if spec.follow_port:
        return
    if speed is None:
        speed = _speed(spec, backend)
    if speed is not None and spec.port not in ports.of_kind(speed.is_usb3):
        yield SettingError("port", wrong_kind(ports, "it", speed.is_usb3, spec.port))


def _speed(spec: DeviceSpec, backend: Backend) -> Any:
    """That of the device if it is there; who cannot list devices now will say so when they are needed."""
    try:
        found = find(spec.address, backend.list_devices())
    except Exception:
        return None
    return None if found is None else found.speed
