"""`usbvfiod devices`: what the backends can see."""

from __future__ import annotations

import click

from ..daemon.host_devices import Entry, once
from ..daemon.report import device_entry
from ..errors import DeviceError
from ..hooks.registry import Registry
from .output import print_json, print_table, say


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def devices(registry: Registry, as_json: bool) -> None:
    """List the devices that the backends can see.

    The first column is what --device takes; a note says why a device cannot be used. A device of this host that several
    backends see is listed for one that can use it, the one that is used if none is named before others, and with --json
    for each.
    """
    found: list[Entry] = []
    failures: list[str] = []
    for name, backend in sorted(registry.backends().items()):
        try:
            found += map(device_entry, backend.list_devices())
        except Exception as error:
            failures.append(f"backend {name} cannot list its devices: {error}")
    if as_json:
        print_json("devices", found, errors=failures)
    elif found:
        titles = ("DEVICE", "ID", "NAME", "SERIAL", "SPEED", "PORT", "DRIVER", "NOTE")
        print_table(titles, [_row(device) for device in once(found)])
    elif not failures:
        say("no devices", err=True)
    if failures:
        raise DeviceError("; ".join(failures))


def _row(device: Entry) -> tuple[str, ...]:
    identity = f"{device['vendor_id']:04x}:{device['product_id']:04x}"
    in_use = f"in use on this host: {device['in_use']}" if device["in_use"] else ""
    note = "; ".join(filter(None, [device["note"], in_use]))
    return (
        device["device"],
        identity,
        *(device[each] for each in ("name", "serial", "speed", "port_path", "driver")),
        note,
    )
