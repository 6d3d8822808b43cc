"""What the page shows, as JSON: made of what the servers say, without state of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from usbvfiod_core.daemon.host_devices import identity, once
from usbvfiod_core.host.sysfs import ALLOW, RULE
from usbvfiod_core.visible import visible

from .link import Json
from .rates import Rate

MADE: Final = "virtual"
"""The backend whose devices are not there before somebody asks for them."""
HOLDING: Final = ("opening", "plugged", "leaving")
"""States of an attachment that has its device."""


class Shown(Protocol):
    """A server, as far as it is shown."""

    name: str
    why: str
    devices: list[Json]
    status: Json
    captured: set[int]

    @property
    def up(self) -> bool: ...
    @property
    def attachments(self) -> Mapping[int, Json]: ...
    @property
    def rates(self) -> Mapping[int, Rate]: ...


def view(host: str, servers: Iterable[Shown]) -> Json:
    """Everything: the devices of the host and the VMs, each in an order that stays."""
    shown = list(servers)
    return {
        "host": host,
        "devices": _devices(shown),
        "kinds": sorted(
            {device["device"] for server in shown for device in server.devices if device["backend"] == MADE}
        ),
        "vms": [_vm(server) for server in shown],
    }


def usable(devices: Iterable[Json], wanted: str) -> Json | None:
    """The device of this identity in a server's list; by the backend that can use it, or else that is preferred."""
    return next(iter(once(device for device in devices if identity(device) == wanted)), None)


def _devices(servers: list[Shown]) -> list[Json]:
    holders = {
        identity(attachment["device"]): {"vm": server.name, "number": attachment["number"]}
        for server in servers
        if server.up
        for attachment in server.attachments.values()
        if attachment["device"] and attachment["state"] in HOLDING
    }
    listed: dict[str, list[tuple[Shown, Json]]] = {}
    for server in servers:
        for device in once(each for each in server.devices if each["backend"] != MADE) if server.up else ():
            listed.setdefault(identity(device), []).append((server, device))
    return [_device(key, listed[key], holders.get(key)) for key in sorted(listed, key=_natural)]


def _device(key: str, seen: list[tuple[Shown, Json]], holder: Json | None) -> Json:
    best = min((device for _, device in seen), key=lambda device: bool(device["note"]))
    return {
        "id": key,
        "name": visible(best["name"]) or "unnamed device",
        "identity": f"{best['vendor_id']:04x}:{best['product_id']:04x}",
        "serial": visible(best["serial"]),
        "port": best["port_path"],
        "driver": best["driver"],
        "speed": best["speed"],
        "in_use": visible(best["in_use"]),
        "holder": holder,
        "vms": [{"vm": server.name, "can": not device["note"], **_reason(device["note"])} for server, device in seen],
    }


def _reason(note: str) -> Json:
    """Why a server cannot use a device, and what to paste into a shell or a file."""
    for mark, what in ((RULE, "This udev rule would help:"), (ALLOW, "This would allow it:")):
        reason, found, fix = note.partition(mark)
        if found:
            return {"why": visible(reason), "fix": visible(fix), "what": what}
    return {"why": visible(note), "fix": "", "what": ""}


def _vm(server: Shown) -> Json:
    about = server.status.get("server") or {}
    client = server.status.get("client") or {}
    return {
        "name": server.name,
        "up": server.up,
        "why": visible(server.why),
        "pid": about.get("pid"),
        "missing": about.get("missing", []),
        "client": visible(f"{client.get('name', '')} {client.get('version', '')}".strip()) or "a client" * bool(client),
        "ports": [about.get("usb2_ports", 0), about.get("usb3_ports", 0)],
        "attachments": [
            {
                **_attachment(attachment, server.rates.get(attachment["number"])),
                "captured": attachment["number"] in server.captured,
            }
            for attachment in (server.attachments.values() if server.up else ())
        ],
    }


def _attachment(attachment: Json, rate: Rate | None) -> Json:
    device = attachment["device"] or {}
    return {
        "number": attachment["number"],
        "name": attachment["name"],
        "spec": attachment["spec"],
        "product": visible(attachment["product"] or attachment["spec"]),
        "serial": visible(device.get("serial", "")),
        "place": device.get("port_path", ""),
        "state": attachment["state"],
        "reason": visible(attachment["reason"] or attachment["note"]),
        "port": attachment["port"],
        "ports": attachment["ports"],
        "configured": attachment["configured"],
        "rate": None if rate is None or attachment["state"] != "plugged" else _shown(rate),
    }


def _shown(rate: Rate) -> list[Any]:
    return [round(rate.to_guest), round(rate.from_guest), round(rate.transfers), rate.errors, rate.missed]


def _natural(text: str) -> list[tuple[int, str]]:
    """A key by which `1-10` comes after `1-2`."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]
