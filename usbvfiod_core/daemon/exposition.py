"""What servers say of themselves, in the text formats that Prometheus reads: its own (0.0.4), and OpenMetrics 1.0.

It is made of answers to the request `status` (docs/control.md), by the server itself and by `usbvfiod metrics`. A
server is asked while its guest waits, so this is made for speed: the official library takes thirty times as long. Its
parser checks the text in the tests. docs/metrics.md lists the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any, Final

from ..usb.transfer import TransferType
from ..visible import visible
from ..xhci import spec
from ..xhci.statistics import EndpointCounters, EndpointStatistics
from .intents import State

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""Media types of the two formats."""

_ENDS: Final = range(13, 32, 2)
"""Bit lengths of the nanoseconds at which buckets end: from 8 µs to 2 s, each four times the last."""
_BUCKETS: Final = "".join(f'%NAME%_bucket{{%LABELS%,le="{(1 << bits) / 1e9!r}"}} %d\n' for bits in _ENDS)
_HISTOGRAM: Final = (
    _BUCKETS + '%NAME%_bucket{%LABELS%,le="+Inf"} %d\n%NAME%_sum{%LABELS%} %a\n%NAME%_count{%LABELS%} %d\n'
)

_OF_SERVERS: Final = {
    "up": ("gauge", "Whether the server answers."),
    "build_info": ("info", "The version of usbvfiod."),
    "start_time_seconds": ("gauge", "When the server was started, in seconds since the epoch."),
    "cpu_seconds_total": ("counter", "Processor time of the server."),
    "loop_lateness_seconds": ("histogram", "How late the server comes to what is due, measured while somebody looks."),
    "client_connected": ("gauge", "Whether a VMM is connected."),
    "guest_memory_bytes": ("gauge", "Guest memory that the VMM has mapped; devices use only what is shared."),
    "attachments": ("gauge", "Attachments by their state."),
}
_OF_ATTACHMENTS: Final = {
    "attachment_info": ("info", "The device of an attachment, and the port of the controller that it is plugged into."),
    "attachment_plugged": ("gauge", "Whether the device is plugged in."),
    "attachment_plugs_total": ("counter", "How often the device was plugged in."),
}
_OF_ENDPOINTS: Final = {
    "endpoint_transfers_total": ("counter", "Transfers that ended well since the device was plugged in."),
    "endpoint_bytes_total": ("counter", "Bytes that these transfers moved."),
    "endpoint_errors_total": ("counter", "Errors reported to the guest's driver, by completion code."),
    "endpoint_missed_intervals_total": ("counter", "Isochronous service intervals that were not served."),
    "endpoint_queued_transfers": ("gauge", "Transfers that the device has now."),
    "endpoint_latency_seconds": ("histogram", "From handing a transfer to the device until its event."),
}
_FAMILIES: Final = {**_OF_SERVERS, **_OF_ATTACHMENTS, **_OF_ENDPOINTS}
"""Each metric without its prefix: type and help."""
METRICS: Final = {f"usbvfiod_{name}": kind for name, (kind, _) in _FAMILIES.items()}
"""The type of each metric."""
_GIVEN: Final = [each.name for each in fields(EndpointStatistics)][1:]
"""What JSON has of an endpoint: not the port."""


MOST_ENDPOINTS: Final = 255 * 31
"""Of one server: as many as an xHC has slots and endpoints (xHCI 5.3.3, 4.5.1). No more errors of all together."""
LONGEST: Final = 128
"""Characters of a name in a label: a string of a device has 126."""

_Lines = tuple[bytes, ...]
Counters = EndpointCounters | EndpointStatistics
"""What endpoints have counted: the server's own, which go on to count, or what one says of them."""


class Exposition:
    """The text, and what of it is still true when it is asked for again: most devices have done nothing meanwhile."""

    def __init__(self) -> None:
        self._servers: dict[str, _Server] = {}

    def parts(self, servers: Mapping[str, Mapping[str, Any] | None], *, openmetrics: bool = False) -> list[bytes]:
        """The metrics of servers by name, in pieces: each an answer to `status`, of which "server" needs "usbvfiod",
        "started", "cpu_seconds" and "lateness" alone, and where "endpoints" are each an address, its `Counters`, and
        the transfers that the device has now; or None if it does not answer."""
        self._servers = {name: self._servers.get(name) or _Server(name) for name in servers}
        of_servers: list[_Lines] = []
        of_attachments: list[_Lines] = []
        of_endpoints: list[_Lines] = []
        for name, status in servers.items():
            server = self._servers[name]
            of_servers.append(server.lines(status))
            for attachment, known in server.attachments(status):
                of_attachments.append(known.lines(attachment))
                of_endpoints += known.of_endpoints(attachment["endpoints"])
        found: list[bytes] = []
        for families, rows in (
            (_OF_SERVERS, of_servers),
            (_OF_ATTACHMENTS, of_attachments),
            (_OF_ENDPOINTS, of_endpoints),
        ):
            for family, lines in zip(families, map(b"".join, zip(*rows, strict=True)), strict=False):
                if lines:
                    found += (_HEADS[openmetrics][family], lines)
        return [*found, b"# EOF\n"] if openmetrics else found


def exposition(servers: Mapping[str, Mapping[str, Any] | None], *, openmetrics: bool = False) -> str:
    """The metrics of servers, by name: each its answer to `status`, or None if it does not answer. Raises ValueError if
    one says more than a server can have."""
    given = {name: None if status is None else _given(status) for name, status in servers.items()}
    return b"".join(Exposition().parts(given, openmetrics=openmetrics)).decode()


# -- own ---------------------------------------------------------------------------------------------------------------


def _head(family: str, openmetrics: bool) -> bytes:
    kind, description = _FAMILIES[family]
    name = f"usbvfiod_{family}"
    if openmetrics:  # there the family of a counter, or an info, has a name without the suffix
        name = name.removesuffix("_total").removesuffix("_info")
    elif kind == "info":
        kind = "gauge"
    return f"# HELP {name} {description}\n# TYPE {name} {kind}\n".encode()


_HEADS: Final = {openmetrics: {name: _head(name, openmetrics) for name in _FAMILIES} for openmetrics in (False, True)}


def _given(status: Mapping[str, Any]) -> dict[str, Any]:
    """An answer to `status`, with its endpoints as `Exposition` takes them. Raises ValueError."""
    endpoints = [given for each in status["attachments"] for given in each["endpoints"]]
    for what, most in (
        ("attachments", len(status["attachments"])),
        ("endpoints", len(endpoints)),
        ("errors", sum(len(given["errors"]) for given in endpoints)),
    ):
        if most > MOST_ENDPOINTS:
            raise ValueError(f"it says that it has {most} {what}")
    attachments = [
        {
            **each,
            "endpoints": [
                (given["address"], EndpointStatistics(0, *map(given.__getitem__, _GIVEN)), given["queued"])
                for given in each["endpoints"]
            ],
        }
        for each in status["attachments"]
    ]
    return {**status, "attachments": attachments}


class _Server:
    """The lines of a server, and what they were made of."""

    def __init__(self, name: str) -> None:
        self._labels = f'server="{_quoted(name)}"'
        self._lateness = _histogram("loop_lateness_seconds", self._labels)
        self._made_of: tuple[object, ...] = ()
        self._lines: _Lines = ()
        self._attachments: dict[int, _Attachment] = {}

    def lines(self, status: Mapping[str, Any] | None) -> _Lines:
        """For each of `_OF_SERVERS`."""
        labels = self._labels
        if status is None:
            return (_sample("up", labels, 0), *[b""] * (len(_OF_SERVERS) - 1))
        server, memory, is_connected = status["server"], status["memory"], status["client"] is not None
        states = [attachment["state"] for attachment in status["attachments"]]
        made_of = (server["usbvfiod"], server["started"], is_connected, memory, states)
        if made_of != self._made_of:
            self._lines = (
                _sample("up", labels, 1),
                _sample("build_info", f'{labels},version="{_quoted(server["usbvfiod"])}"', 1),
                _sample("start_time_seconds", labels, server["started"]),
                b"",
                b"",
                _sample("client_connected", labels, int(is_connected)),
                _sample("guest_memory_bytes", f'{labels},shared="true"', memory["shared"])
                + _sample("guest_memory_bytes", f'{labels},shared="false"', memory["unshared"]),
                b"".join(
                    _sample("attachments", f'{labels},state="{state.value}"', states.count(state.value))
                    for state in State
                    if state is not State.GONE
                ),
            )
            self._made_of = made_of
        late = server["lateness"]
        lateness = self._lateness % _distribution(late["latency"], late["nanoseconds"])
        return (
            *self._lines[:3],
            _sample("cpu_seconds_total", labels, server["cpu_seconds"]),
            lateness,
            *self._lines[5:],
        )

    def attachments(self, status: Mapping[str, Any] | None) -> list[tuple[Mapping[str, Any], _Attachment]]:
        """What it says of each, and what is known of it."""
        known = self._attachments
        found = [
            (each, known.get(each["number"]) or _Attachment(self._labels, each["number"]))
            for each in (() if status is None else status["attachments"])
        ]
        self._attachments = {each["number"]: attachment for each, attachment in found}
        return found


class _Attachment:
    """The lines of an attachment, and what they were made of."""

    def __init__(self, server: str, number: int) -> None:
        self._attachment = f'{server},attachment="{number}"'
        self._labels = ""
        self._made_of: tuple[object, ...] = ()
        self._lines: _Lines = ()
        self._endpoints: dict[int, _Endpoint] = {}

    def lines(self, attachment: Mapping[str, Any]) -> _Lines:
        """For each of `_OF_ATTACHMENTS`."""
        name, spec, product, listed = map(attachment.__getitem__, ("name", "spec", "product", "device"))
        state, port, plugs = map(attachment.__getitem__, ("state", "port", "plugs"))
        made_of = (name, spec, product, listed, state, port, plugs)
        if made_of != self._made_of:
            # A specification may have passwords and paths in its options.
            labels = f'{self._attachment},device="{_quoted(name or spec.partition("?")[0])}"'
            number = f"{listed['vendor_id']:04x}:{listed['product_id']:04x}" if listed else "0000:0000"
            about = f'product="{_quoted(product)}",id="{number}",port="{port}"'
            self._lines = (
                _sample("attachment_info", f"{labels},{about}", 1),
                _sample("attachment_plugged", labels, int(state == State.PLUGGED.value)),
                _sample("attachment_plugs_total", labels, plugs),
            )
            if labels != self._labels:
                self._labels, self._endpoints = labels, {}
            self._made_of = made_of
        return self._lines

    def of_endpoints(self, endpoints: Iterable[tuple[int, Counters, int]]) -> list[_Lines]:
        """The lines of these, for each of `_OF_ENDPOINTS`."""
        found = []
        for address, counters, queued in endpoints:
            known = self._endpoints.get(address)
            if known is None or known.type != counters.type:
                known = self._endpoints[address] = _Endpoint(self._labels, address, counters.type)
            found.append(known.lines(counters, queued))
        return found


class _Endpoint:
    """The lines of an endpoint, and what they were made of."""

    def __init__(self, labels: str, address: int, type: TransferType | str) -> None:
        self.type = type
        name = type if isinstance(type, str) else type.name.lower()
        self._is_isochronous = name == "isochronous"
        self._labels = labels = f'{labels},endpoint="0x{address:02x}",type="{_quoted(name)}"'
        self._transfers = _number("endpoint_transfers_total", labels)
        self._bytes = _number("endpoint_bytes_total", labels)
        self._queued = _number("endpoint_queued_transfers", labels)
        self._latency = _histogram("endpoint_latency_seconds", labels)
        self._made_of: tuple[object, ...] = ()
        self._lines: _Lines = ()

    def lines(self, counters: Counters, queued: int) -> _Lines:
        """For each of `_OF_ENDPOINTS`."""
        # Of times only those of nothing at all have to be looked at: each of the others adds to the sum.
        nothing, errors = counters.latency[:1], counters.errors
        made_of = (queued, counters.nanoseconds, counters.bytes, counters.missed, nothing, errors)
        if made_of != self._made_of:
            distribution = _distribution(counters.latency, counters.nanoseconds)
            self._lines = (
                self._transfers % distribution[-1],
                self._bytes % counters.bytes,
                b"".join(map(self._error, errors.items())) if errors else b"",
                _sample("endpoint_missed_intervals_total", self._labels, counters.missed)
                if self._is_isochronous
                else b"",
                self._queued % queued,
                self._latency % distribution,
            )
            self._made_of = (*made_of[:-1], errors.copy())
        return self._lines

    def _error(self, counted: tuple[int | str, int]) -> bytes:
        error, count = counted
        name = error if isinstance(error, str) else spec.COMPLETION_CODES[error]
        return _sample("endpoint_errors_total", f'{self._labels},error="{_quoted(name)}"', count)


def _distribution(counts: Sequence[int], nanoseconds: int) -> tuple[float, ...]:
    """The numbers of a histogram of `counts` by the bit lengths of nanoseconds, which ends with the longest time."""
    sums = list(accumulate(counts[: _ENDS.stop]))
    total = sum(counts)
    sums += [total] * (_ENDS.stop - len(sums))
    return (*sums[_ENDS.start : _ENDS.stop : _ENDS.step], total, nanoseconds / 1e9, total)


def _sample(family: str, labels: str, value: object) -> bytes:
    return f"usbvfiod_{family}{{{labels}}} {value}\n".encode()


# Numbers are put into bytes, which takes half the time of text.


def _number(family: str, labels: str) -> bytes:
    """The line of a number, which is to be put into it."""
    return _sample(family, labels.replace("%", "%%"), "%d")


def _histogram(family: str, labels: str) -> bytes:
    """The lines of a histogram, into which its numbers are to be put."""
    return _HISTOGRAM.replace("%NAME%", f"usbvfiod_{family}").replace("%LABELS%", labels.replace("%", "%%")).encode()


def _quoted(text: str) -> str:
    """A label's value: on one line, not long, and its quotes escaped."""
    return visible(text[:LONGEST]).replace("\\", "\\\\").replace('"', '\\"')
