"""What servers say of themselves, in the text formats that Prometheus reads: its own (0.0.4), and OpenMetrics 1.0.

It is made of answers to the request `status` (docs/control.md), by the server itself and by `usbvfiod metrics`. A
server is asked while its guest waits, so this is made for speed: the official library takes thirty times as long. Its
parser checks the text in the tests. docs/metrics.md lists the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final

from ..visible import visible
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
"""Endpoints whose text is kept for the next time, of 2 KB each."""

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


def exposition(servers: Mapping[str, Mapping[str, Any] | None], *, openmetrics: bool = False) -> str:
    """The metrics of servers, by name: each its answer to `status`, or None if it does not answer."""
    text: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, status in servers.items():
        server = f'server="{_quoted(name)}"'
        text["usbvfiod_up"].append(f"usbvfiod_up{{{server}}} {int(status is not None)}\n")
        if status is not None:
            _add_server(text, server, status)
            for attachment in status["attachments"]:
                _add_attachment(text, server, attachment)
    parts = [part for name, lines in text.items() if lines for part in (*_head(name, openmetrics), *lines)]
    return "".join(parts) + ("# EOF\n" if openmetrics else "")


# -- own ---------------------------------------------------------------------------------------------------------------


def _head(name: str, openmetrics: bool) -> Iterator[str]:
    kind, description = _FAMILIES[name.removeprefix("usbvfiod_")]
    if openmetrics:  # there the family of a counter, or an info, has a name without the suffix
        name = name.removesuffix("_total").removesuffix("_info")
    elif kind == "info":
        kind = "gauge"
    yield f"# HELP {name} {description}\n"
    yield f"# TYPE {name} {kind}\n"


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


def _add_attachment(text: dict[str, list[str]], server: str, attachment: Mapping[str, Any]) -> None:
    # A specification may have passwords and paths in its options.
    device = _quoted(attachment["name"] or attachment["spec"].partition("?")[0])
    labels = f'{server},attachment="{attachment["number"]}",device="{device}"'
    listed = attachment["device"] or {"vendor_id": 0, "product_id": 0}
    number = f"{listed['vendor_id']:04x}:{listed['product_id']:04x}"
    more = f',product="{_quoted(attachment["product"])}",id="{number}",port="{attachment["port"]}"'
    text["usbvfiod_attachment_info"].append(f"usbvfiod_attachment_info{{{labels}{more}}} 1\n")
    plugged = int(attachment["state"] == State.PLUGGED.value)
    text["usbvfiod_attachment_plugged"].append(f"usbvfiod_attachment_plugged{{{labels}}} {plugged}\n")
    text["usbvfiod_attachment_plugs_total"].append(
        f"usbvfiod_attachment_plugs_total{{{labels}}} {attachment['plugs']}\n"
    )
    for endpoint in attachment["endpoints"]:
        _add_endpoint(text, labels, endpoint)


def _add_endpoint(text: dict[str, list[str]], labels: str, endpoint: Mapping[str, Any]) -> None:
    kind = endpoint["type"]
    labels = f'{labels},endpoint="0x{endpoint["address"]:02x}",type="{kind}"'
    numbers = endpoint["transfers"], endpoint["bytes"], endpoint["queued"]
    lines = _of_endpoint(labels, *numbers, endpoint["nanoseconds"], *endpoint["latency"])
    for name, part in zip(_OF_ENDPOINTS, lines, strict=True):
        text[name].append(part)
    for error, count in endpoint["errors"].items():
        at_error = f'{{{labels},error="{_quoted(error)}"}}'
        text["usbvfiod_endpoint_errors_total"].append(f"usbvfiod_endpoint_errors_total{at_error} {count}\n")
    if kind == "isochronous":
        text["usbvfiod_endpoint_missed_intervals_total"].append(
            f"usbvfiod_endpoint_missed_intervals_total{{{labels}}} {endpoint['missed']}\n"
        )


@lru_cache(maxsize=_TEMPLATES)
def _of_endpoint(labels: str, transfers: int, moved: int, queued: int, nanoseconds: int, *counts: int) -> list[str]:
    """The lines of `_OF_ENDPOINTS`. Most endpoints have done nothing since they were asked for last."""
    numbers = transfers, moved, queued, *_distribution(counts, nanoseconds)
    return (_template(labels, *_OF_ENDPOINTS) % numbers).split("\0")


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
