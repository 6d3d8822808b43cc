"""Each device of the host once: every backend for them lists it, every server that a client asks does, and each of them
has an event for what happens to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from .config import OWN_BACKENDS
from .report import node

Entry: TypeAlias = "dict[str, Any]"
"""A device as `report.device_entry` makes it, or as a server has sent it."""

MAX_NEWS: Final = 1024
"""Devices whose last change is known; those of a bus have 127 numbers."""


def identity(device: Mapping[str, Any]) -> str:
    """What all backends and servers call a device of the host by: its place, or for a root hub its node. Whatever has
    neither is its backend's alone."""
    return str(device["port_path"] or node(device) or device["device"])


def once(devices: Iterable[Entry]) -> list[Entry]:
    """Of several entries for the same device the one whose backend can use it, and of those the one that is used where
    none is named; in the order in which the devices come."""
    same: dict[str, list[Entry]] = {}
    for device in devices:
        same.setdefault(identity(device), []).append(device)
    return [min(entries, key=_preference) for entries in same.values()]


def _preference(device: Entry) -> tuple[bool, int, str]:
    backend = device["backend"]
    order = OWN_BACKENDS.index(backend) if backend in OWN_BACKENDS else len(OWN_BACKENDS)
    return bool(device["note"]), order, backend


class News:
    """Which changes of devices a reader of events knows already."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[str, tuple[str, str]]] = {}
        """By device, hashed because a server may call one anything: the last change, and who told of it first."""

    def is_new(self, event: Mapping[str, Any], server: str = "") -> bool:
        """Whether an event `device`, of this server if there are several, says what none before it did."""
        device, change = event["device"], event["change"]
        teller = server, device["backend"]
        # A place has another device, or the same one again, under another number.
        key = hash((identity(device), device["address"]))
        last = self._last.get(key)
        if last is not None and last[0] == change and last[1] != teller:
            return False
        self._last.pop(key, None)
        self._last[key] = change, teller
        if len(self._last) > MAX_NEWS:
            del self._last[next(iter(self._last))]
        return True
