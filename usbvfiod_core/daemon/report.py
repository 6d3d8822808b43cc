"""What is told of devices, attachments and endpoints, as JSON has it. docs/control.md explains every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..usb.backend import DeviceInfo
from ..xhci.statistics import EndpointStatistics
from .escapes import escaped
from .intents import Attachment, State

_OF_ENDPOINTS = tuple(each.name for each in fields(EndpointStatistics) if each.name != "port_id")


def device_entry(info: DeviceInfo) -> dict[str, object]:
    """A device as a backend lists it."""
    return {
        "device": f"{info.backend}:{escaped(info.address)}",
        "backend": info.backend,
        "address": escaped(info.address),
        "vendor_id": info.vendor_id,
        "product_id": info.product_id,
        "name": info.name,
        "serial": info.serial,
        "speed": info.speed.name.lower() if info.speed is not None else "",
        "port_path": info.port_path,
        "twin": info.twin,
        "driver": info.driver,
        "note": info.note,
        "in_use": info.in_use,
    }


WITHHELD = "kept from the guest until `usbvfiod resume`"


def attachment_entry(
    attachment: Attachment, ports: dict[bool, int], now: float, *, withheld: bool = False
) -> dict[str, object]:
    """An attachment; `ports` are those of the controller that it keeps. `withheld`: the guest does not see devices."""
    spec = attachment.spec
    notes = [WITHHELD] * withheld + [attachment.note] * bool(attachment.note)
    known = attachment.last is not None or attachment.info.vendor_id or attachment.info.port_path
    return {
        "number": attachment.number,
        "name": spec.name,
        "spec": spec.text,
        "state": attachment.state.value,
        "reason": attachment.reason,
        "note": "; ".join(notes) if attachment.state is State.PLUGGED else "",
        "seconds": round(max(now - attachment.since, 0.0), 3),
        "port": attachment.port_id,
        "ports": sorted(ports.values()),
        "mode": spec.mode.value,
        "follow_port": spec.follow_port,
        "configured": attachment.configured,
        "plugs": attachment.plugs,
        "next_try": None if attachment.next_try is None else round(max(attachment.next_try - now, 0.0), 3),
        "product": product(attachment),
        "device": device_entry(attachment.info) if known else None,
    }


def product(attachment: Attachment) -> str:
    """What its device calls itself, or its backend."""
    return attachment.name if attachment.device is not None else attachment.info.name


def endpoint_entry(statistics: EndpointStatistics) -> dict[str, object]:
    """What an endpoint has done."""
    entry: dict[str, object] = {name: getattr(statistics, name) for name in _OF_ENDPOINTS}
    entry.update({f"p{number}": statistics.percentile(number / 100) for number in (50, 90, 99)})
    return entry


def node(device: Mapping[str, Any]) -> str:
    """The node of a device of this host, by which all backends for those know it; else nothing."""
    address = str(device["address"])
    return address if address.startswith("/dev/bus/usb/") else ""


def sentence(event: Mapping[str, Any]) -> str:
    """An event of the control socket, in words."""
    if event["event"] == "attachment":
        attachment = event["attachment"]
        label = attachment["name"] or attachment["spec"]
        parts = [label, attachment["state"]]
        if attachment["port"]:
            parts.append(f"in port {attachment['port']}: {attachment['product']}")
        remark = attachment["reason"] or attachment["note"]
        if remark:
            parts.append(f"({remark})")
        return " ".join(parts)
    if event["event"] == "device":
        device = event["device"]
        details = [f"{device['vendor_id']:04x}:{device['product_id']:04x}", device["name"]]
        details += [f"serial {device['serial']}"] if device["serial"] else []
        details += [f"port {device['port_path']}"] if device["port_path"] else []
        return f"device {event['change']}: {node(device) or device['device']} {' '.join(details)}"
    if event["event"] == "lost":
        return f"{event['count']} events were missed"
    return str(event)
