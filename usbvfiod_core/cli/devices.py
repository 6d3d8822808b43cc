"""`usbvfiod devices`: what the backends can see."""

from __future__ import annotations

from collections.abc import Mapping

import click

from ..daemon.config import host_backend
from ..daemon.escapes import escaped
from ..daemon.report import device_entry
from ..errors import DeviceError
from ..hooks.registry import Registry
from ..usb.backend import Backend, DeviceInfo
from .output import print_json, print_table, say


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def devices(registry: Registry, as_json: bool) -> None:
    """List the devices that the backends can see.

    The first column is what --device takes; a note says why a device cannot be used. A device of this host that several
    backends see is listed for the one that is used if none is named, and with --json for each.
    """
    found: list[DeviceInfo] = []
    failures: list[str] = []
    backends = registry.backends()
    for name, backend in sorted(backends.items()):
        try:
            found += backend.list_devices()
        except Exception as error:
            failures.append(f"backend {name} cannot list its devices: {error}")
    if as_json:
        print_json("devices", [device_entry(info) for info in found], errors=failures)
    elif found:
        titles = ("DEVICE", "ID", "NAME", "SERIAL", "SPEED", "PORT", "DRIVER", "NOTE")
        print_table(titles, [_row(info) for info in _once(found, backends)])
    elif not failures:
        say("no devices", err=True)
    if failures:
        raise DeviceError("; ".join(failures))


def _once(found: list[DeviceInfo], backends: Mapping[str, Backend]) -> list[DeviceInfo]:
    """Without what the backend that is used by itself for devices of the host sees, too."""
    preferred = host_backend(backends)
    seen = {info.address for info in found if info.backend == preferred}
    others = [name for name, backend in backends.items() if backend.of_host and name != preferred]
    return [info for info in found if info.backend not in others or info.address not in seen]


def _row(info: DeviceInfo) -> tuple[str, ...]:
    identity = f"{info.vendor_id:04x}:{info.product_id:04x}"
    address = f"{info.backend}:{escaped(info.address)}"
    in_use = f"in use on this host: {info.in_use}" if info.in_use else ""
    note = "; ".join(filter(None, [info.note, in_use]))
    return (address, identity, info.name, info.serial, _speed(info), info.port_path, info.driver, note)


def _speed(info: DeviceInfo) -> str:
    return info.speed.name.lower() if info.speed is not None else ""
