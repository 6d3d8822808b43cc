"""What servers say of themselves, in the text formats that Prometheus reads: its own (0.0.4), and OpenMetrics 1.0.

It is made of answers to the request `status` (docs/control.md), by the server itself and by `usbvfiod metrics`. A
server is asked while its guest waits, so this is made for speed: the official library takes thirty times as long. Its
parser checks the text in the tests. docs/metrics.md lists the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final

from ..visible import visible
from ..xhci.statistics import EndpointStatistics
from .intents import State

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""Media types of the two formats."""

_ENDS: Final = range(13, 32, 2)
"""Bit lengths of the nanoseconds at which buckets end: from 8 µs to 2 s, each four times the last."""
_BUCKETS: Final = "".join(f'%NAME%_bucket{{%LABELS%,le="{(1 << bits) / 1e9!r}"}} %d\n' for bits in _ENDS)
_HISTOGRAM: Final = (
    _BUCKETS + '%NAME%_bucket{%LABELS%,le="+Inf"} %d\n%NAME%_sum{%LABELS%} %r\n%NAME%_count{%LABELS%} %d\n'
)

_TEMPLATES: Final = 256
"""Endpoints whose lines are kept without their numbers, 2 KB each."""

_FAMILIES: Final = {
    "up": ("gauge", "Whether the server answers."),
    "build_info": ("info", "The version of usbvfiod."),
    "start_time_seconds": ("gauge", "When the server was started, in seconds since the epoch."),
    "cpu_seconds_total": ("counter", "Processor time of the server."),
    "loop_lateness_seconds": ("histogram", "How late the server comes to what is due, measured while somebody looks."),
    "client_connected": ("gauge", "Whether a VMM is connected."),
    "guest_memory_bytes": ("gauge", "Guest memory that the VMM has mapped; devices use only what is shared."),
    "attachments": ("gauge", "Attachments by their state."),
    "attachment_info": ("info", "The device of an attachment, and the port of the controller that it is plugged into."),
    "attachment_plugged": ("gauge", "Whether the device is plugged in."),
    "attachment_plugs_total": ("counter", "How often the device was plugged in."),
    "endpoint_transfers_total": ("counter", "Transfers that ended well since the device was plugged in."),
    "endpoint_bytes_total": ("counter", "Bytes that these transfers moved."),
    "endpoint_errors_total": ("counter", "Errors reported to the guest's driver, by completion code."),
    "endpoint_missed_intervals_total": ("counter", "Isochronous service intervals that were not served."),
    "endpoint_queued_transfers": ("gauge", "Transfers that the device has now."),
    "endpoint_latency_seconds": ("histogram", "From handing a transfer to the device until its event."),
}
"""Each metric without its prefix: type and help."""
METRICS: Final = {f"usbvfiod_{name}": kind for name, (kind, _) in _FAMILIES.items()}
"""The type of each metric."""
_OF_ENDPOINTS: Final = (
    "usbvfiod_endpoint_transfers_total",
    "usbvfiod_endpoint_bytes_total",
    "usbvfiod_endpoint_queued_transfers",
    "usbvfiod_endpoint_latency_seconds",
)
"""Those that every endpoint has."""
_GIVEN: Final = [each.name for each in fields(EndpointStatistics)][1:]
"""What JSON has of an endpoint: not the port."""


class Exposition:
    """The text, and what of it is still true when it is asked for again: most devices have done nothing meanwhile."""

    def __init__(self) -> None:
        self._attachments: dict[tuple[str, int], tuple[Mapping[str, Any], dict[str, str]]] = {}
        """What was told of an attachment of a server, and its lines by metric."""
        self._metrics: dict[str, tuple[list[str], bytes]] = {}
        """The pieces of a metric's text, and all of them in one."""

    def parts(self, servers: Mapping[str, Mapping[str, Any] | None], *, openmetrics: bool = False) -> list[bytes]:
        """The metrics of servers by name, in pieces: each an answer to `status`, of which "server" needs "usbvfiod",
        "started", "cpu_seconds" and "lateness" alone, and where "endpoints" are EndpointStatistics; or None if it does
        not answer. What was given is kept, and not to be changed."""
        text: dict[str, list[str]] = {name: [] for name in METRICS}
        told = {}
        for name, status in servers.items():
            server = f'server="{_quoted(name)}"'
            text["usbvfiod_up"].append(f"usbvfiod_up{{{server}}} {int(status is not None)}\n")
            if status is None:
                continue
            _add_server(text, server, status)
            for attachment in status["attachments"]:
                key = server, attachment["number"]
                known = self._attachments.get(key)
                if known is None or known[0] != attachment:
                    known = attachment, _of_attachment(server, attachment)
                told[key] = known
                for metric, lines in known[1].items():
                    text[metric].append(lines)
        self._attachments = told
        found: list[bytes] = []
        for metric, pieces in text.items():
            whole = self._metrics.get(metric)
            if whole is None or whole[0] != pieces:
                whole = self._metrics[metric] = pieces, "".join(pieces).encode()
            if pieces:
                found += (_HEADS[openmetrics][metric], whole[1])
        return [*found, b"# EOF\n"] if openmetrics else found


def exposition(servers: Mapping[str, Mapping[str, Any] | None], *, openmetrics: bool = False) -> str:
    """The metrics of servers, by name: each its answer to `status`, or None if it does not answer."""
    typed = {name: None if status is None else _typed(status) for name, status in servers.items()}
    return b"".join(Exposition().parts(typed, openmetrics=openmetrics)).decode()


# -- own ---------------------------------------------------------------------------------------------------------------


def _head(name: str, openmetrics: bool) -> bytes:
    kind, description = _FAMILIES[name.removeprefix("usbvfiod_")]
    if openmetrics:  # there the family of a counter, or an info, has a name without the suffix
        name = name.removesuffix("_total").removesuffix("_info")
    elif kind == "info":
        kind = "gauge"
    return f"# HELP {name} {description}\n# TYPE {name} {kind}\n".encode()


_HEADS: Final = {openmetrics: {name: _head(name, openmetrics) for name in METRICS} for openmetrics in (False, True)}


def _typed(status: Mapping[str, Any]) -> dict[str, Any]:
    """An answer to `status`, with its endpoints as the server itself has them."""
    attachments = [
        {
            **each,
            "endpoints": [EndpointStatistics(0, *map(endpoint.__getitem__, _GIVEN)) for endpoint in each["endpoints"]],
        }
        for each in status["attachments"]
    ]
    return {**status, "attachments": attachments}


def _add_server(text: dict[str, list[str]], labels: str, status: Mapping[str, Any]) -> None:
    server, memory = status["server"], status["memory"]

    def add(name: str, value: object, more: str = "") -> None:
        text[name].append(f"{name}{{{labels}{more}}} {value}\n")

    add("usbvfiod_build_info", 1, f',version="{_quoted(server["usbvfiod"])}"')
    add("usbvfiod_start_time_seconds", server["started"])
    add("usbvfiod_cpu_seconds_total", server["cpu_seconds"])
    late, name = server["lateness"], "usbvfiod_loop_lateness_seconds"
    text[name].append(_template(labels, name) % _distribution(late["latency"], late["nanoseconds"]))
    add("usbvfiod_client_connected", int(status["client"] is not None))
    add("usbvfiod_guest_memory_bytes", memory["shared"], ',shared="true"')
    add("usbvfiod_guest_memory_bytes", memory["unshared"], ',shared="false"')
    states = [attachment["state"] for attachment in status["attachments"]]
    for state in State:
        if state is not State.GONE:
            add("usbvfiod_attachments", states.count(state.value), f',state="{state.value}"')


def _of_attachment(server: str, attachment: Mapping[str, Any]) -> dict[str, str]:
    """The lines of an attachment and its endpoints, by metric."""
    # A specification may have passwords and paths in its options.
    device = _quoted(attachment["name"] or attachment["spec"].partition("?")[0])
    labels = f'{server},attachment="{attachment["number"]}",device="{device}"'
    listed = attachment["device"] or {"vendor_id": 0, "product_id": 0}
    number = f"{listed['vendor_id']:04x}:{listed['product_id']:04x}"
    more = f',product="{_quoted(attachment["product"])}",id="{number}",port="{attachment["port"]}"'
    plugged = int(attachment["state"] == State.PLUGGED.value)
    lines = {
        "usbvfiod_attachment_info": f"usbvfiod_attachment_info{{{labels}{more}}} 1\n",
        "usbvfiod_attachment_plugged": f"usbvfiod_attachment_plugged{{{labels}}} {plugged}\n",
        "usbvfiod_attachment_plugs_total": f"usbvfiod_attachment_plugs_total{{{labels}}} {attachment['plugs']}\n",
    }
    for endpoint in attachment["endpoints"]:
        _add_endpoint(lines, labels, endpoint)
    return lines


def _add_endpoint(text: dict[str, str], labels: str, endpoint: EndpointStatistics) -> None:
    def add(name: str, lines: str) -> None:
        text[name] = text.get(name, "") + lines

    labels = f'{labels},endpoint="0x{endpoint.address:02x}",type="{endpoint.type}"'
    distribution = _distribution(endpoint.latency, endpoint.nanoseconds)
    numbers = (endpoint.transfers, endpoint.bytes, endpoint.queued, *distribution)
    lines = (_template(labels, *_OF_ENDPOINTS) % numbers).split("\0")
    for name, part in zip(_OF_ENDPOINTS, lines, strict=True):
        add(name, part)
    for error, count in endpoint.errors.items():
        at_error = f'{{{labels},error="{_quoted(error)}"}}'
        add("usbvfiod_endpoint_errors_total", f"usbvfiod_endpoint_errors_total{at_error} {count}\n")
    if endpoint.type == "isochronous":
        add(
            "usbvfiod_endpoint_missed_intervals_total",
            f"usbvfiod_endpoint_missed_intervals_total{{{labels}}} {endpoint.missed}\n",
        )


def _distribution(counts: Sequence[int], nanoseconds: int) -> tuple[float, ...]:
    """The numbers of a histogram of `counts` by the bit lengths of nanoseconds, which ends with the longest time."""
    sums = list(accumulate(counts))
    total = sums[-1] if sums else 0
    sums += [total] * (_ENDS.stop - len(sums))
    return (*sums[_ENDS.start : _ENDS.stop : _ENDS.step], total, nanoseconds / 1e9, total)


@lru_cache(maxsize=_TEMPLATES)
def _template(labels: str, *names: str) -> str:
    """The lines of metrics, with NUL between them, into which the numbers are to be put."""
    labels = labels.replace("%", "%%")
    parts = (_HISTOGRAM if METRICS[name] == "histogram" else "%NAME%{%LABELS%} %d\n" for name in names)
    return "\0".join(
        part.replace("%NAME%", name).replace("%LABELS%", labels) for name, part in zip(names, parts, strict=True)
    )


def _quoted(text: str) -> str:
    """A label's value: on one line, and its quotes escaped."""
    return visible(text).replace("\\", "\\\\").replace('"', '\\"')
