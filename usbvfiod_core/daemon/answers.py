"""What comes from a control socket, for whoever asks there: a server may be another user's, or somebody may have taken
it over, and what it says is to cost its asker an error and nothing more.

docs/control.md has the fields. Here is of what kind they are, wherever they occur; others are taken as they come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

Refuse = Callable[[str], Exception]
"""Makes the error to raise of what is wrong, which goes on behind the name of who has said it."""

_NUMBER: Final = (int, float)
_NONE: Final = type(None)
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(
        ("backend", "build", "driver", "event", "in_use", "kind", "message", "mode", "name", "note"), (str,)
    ),
    **dict.fromkeys(
        ("port_path", "product", "reason", "serial", "socket", "spec", "speed", "state", "twin", "type"), (str,)
    ),
    **dict.fromkeys(("bytes", "capture", "dropped", "missed", "number", "packets", "plugs", "port", "queued"), (int,)),
    **dict.fromkeys(("product_id", "shared", "transfers", "unshared", "usb2_ports", "usb3_ports", "vendor_id"), (int,)),
    **dict.fromkeys(("cpu_seconds", "seconds", "started"), _NUMBER),
    **dict.fromkeys(("attachment", "error", "lateness", "memory", "sandbox", "server"), (dict,)),
    **dict.fromkeys(("attachments", "devices", "endpoints", "interfaces", "latency", "missing", "ports"), (list,)),
    "address": (str, int),  # of a device, of an endpoint
    "client": (dict, _NONE),
    "device": (str, dict, _NONE),
    "errors": (dict, list),
    "next_try": (*_NUMBER, _NONE),
    "pid": (int, _NONE),
    "quiesced": (*_NUMBER, _NONE),
}
_MEMBERS: Final[dict[str, type]] = {
    "attachments": dict,
    "devices": dict,
    "endpoints": dict,
    "interfaces": dict,
    "latency": int,
    "missing": str,
    "ports": int,
}
_DIGITS: Final = 20
"""Of a number: a counter has 64 bits."""


class Said(dict[str, Any]):
    """An object as a server has said it. A field that it has not raises the error, and no KeyError."""

    __slots__ = ("refuse",)

    refuse: Refuse

    def __missing__(self, key: str) -> Any:
        raise self.refuse(f"does not say its {key!r}")


def understood(line: bytes, refuse: Refuse) -> Said:
    """The object of a line. Raises what `refuse` makes."""

    def made(pairs: list[tuple[str, Any]]) -> Said:
        said = Said(pairs)
        said.refuse = refuse
        for key, value in said.items():
            kinds = _KINDS.get(key)
            if kinds is not None and not isinstance(value, kinds):
                raise refuse(f"says {key!r} of a kind that is wrong")
            if not _fits(key, value):
                raise refuse(f"says {key!r} with what does not belong there")
        return said

    def number(text: str) -> int | float:
        value = int(text) if len(text) <= _DIGITS and text.lstrip("-").isdigit() else float(text)
        if not math.isfinite(value):
            raise refuse("says a number without end")
        return value

    try:
        answer = json.loads(line, object_pairs_hook=made, parse_int=number, parse_float=number, parse_constant=number)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, Said):
        raise refuse("does not answer with JSON objects")
    return answer


def _fits(key: str, value: Any) -> bool:
    """Whether what is in a list, or in counts by name, is of its kind."""
    if key == "errors" and isinstance(value, dict):
        return all(isinstance(each, int) for each in value.values())
    if key == "endpoints" and any(isinstance(each, dict) and isinstance(each.get("errors"), list) for each in value):
        return False  # a list of errors is what a search for devices has
    kind = _MEMBERS.get(key)
    return kind is None or all(isinstance(each, kind) for each in value)
