"""What servers, devices and endpoints do now: the difference between two answers to `status`, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from ..xhci.statistics import percentile
from .quantities import duration, microseconds, size
from .servers import Server
from .unreached import ServerUnreachable

Row = dict[str, Any]
"""Values by the keys of columns; None for what is not known. `worse`: it has more errors or misses than before."""


class Column(NamedTuple):
    """A column of a table. `show` makes text of a value other than None, `width` is what it has at least."""

    title: str
    key: str
    show: Callable[[Any], str] = str
    width: int = 0
    right: bool = False
    """Numbers: at the right, and the largest first when it is sorted by this."""


_MEASURES = (
    Column("RATE", "rate", lambda rate: f"{size(rate)}/s", 12, True),
    Column("TRANSFERS/s", "transfers", lambda count: f"{count:.0f}", 11, True),
    Column("P50", "p50", microseconds, 8, True),
    Column("P99", "p99", microseconds, 8, True),
    Column("ERRORS", "errors", str, 6, True),
    Column("MISSED", "missed", str, 6, True),
    Column("QUEUED", "queued", str, 6, True),
)
_SERVER = Column("SERVER", "server", width=8)
_DEVICE = Column("DEVICE", "device", width=12)
VIEWS: Mapping[str, tuple[Column, ...]] = {
    "devices": (
        *(_SERVER, _DEVICE, *_MEASURES),
        *(Column("PORT", "port", str, 4, True), Column("STATE", "state", width=8), Column("PRODUCT", "product")),
    ),
    "endpoints": (
        *(_SERVER, _DEVICE, Column("EP", "endpoint", lambda address: f"{address:02x}"), *_MEASURES),
        *(Column("TYPE", "type", width=11), Column("STATE", "state", width=8)),
    ),
    "servers": (
        *(_SERVER, Column("VM", "vm", width=8), Column("DEVICES", "devices", width=7), *_MEASURES),
        Column("CPU", "cpu", lambda part: f"{100 * part:.0f} %", 5, True),
        Column("LATE", "late", microseconds, 8, True),
        Column("RUNS FOR", "seconds", duration, 8, True),
    ),
}
"""What there is to see, and its columns, those first that are the last to be left out where there is no room."""


class _Sample(NamedTuple):
    answer: Mapping[str, Any]
    at: float


class Activity:
    """Remembers the two newest answers of each server. `errors` says why servers do not answer, by name."""

    def __init__(self) -> None:
        self._before: dict[str, _Sample] = {}
        self._now: dict[str, _Sample] = {}
        self.names: list[str] = []
        self.errors: dict[str, str] = {}

    def take(self, servers: Mapping[str, Server]) -> None:
        """These servers there are now."""
        self.names = list(servers)
        self.errors = {name: server.error for name, server in servers.items() if server.error}
        for samples in (self._before, self._now):
            for name in [name for name in samples if name not in servers]:
                del samples[name]
        for name, server in servers.items():
            if server.answer is None:
                self._before.pop(name, None)
                self._now.pop(name, None)
                continue
            newest = self._now.get(name)
            if newest is not None and newest.at == server.at:
                continue
            if newest is not None and _started(newest.answer) == _started(server.answer):
                self._before[name] = newest
            else:
                self._before.pop(name, None)  # another server of the same name
            self._now[name] = _Sample(server.answer, server.at)

    def rows(self, view: str) -> list[Row]:
        """The rows of one of `VIEWS`."""
        rows: list[Row] = []
        for name in self.names if view == "servers" else list(self._now):
            try:
                rows += [self._server(name)] if view == "servers" else self._attached(name, view)
            except ServerUnreachable as error:  # what it has answered is not whole, and hides no other server
                self.errors[name] = str(error)
                if view == "servers":
                    rows.append(_unknown(name, str(error)))
        return rows

    # -- own ---------------------------------------------------------------------------------------------------------

    def _seconds(self, name: str) -> float | None:
        """Between the two answers."""
        if name not in self._before:
            return None
        return max(self._now[name].at - self._before[name].at, 1e-6)

    def _pairs(self, name: str) -> dict[tuple[Any, ...], tuple[Mapping[str, Any] | None, Mapping[str, Any]]]:
        """Each endpoint before and now, by attachment, how often that was plugged in, and address."""
        before = _endpoints(self._before[name].answer) if name in self._before else {}
        return {key: (before.get(key), each) for key, each in _endpoints(self._now[name].answer).items()}

    def _server(self, name: str) -> Row:
        if name not in self._now:
            return _unknown(name, self.errors.get(name, "") or "has not answered yet")
        answer, seconds = self._now[name].answer, self._seconds(name)
        server, client = answer["server"], answer["client"]
        plugged = sum(each["state"] == "plugged" for each in answer["attachments"])
        cpu = late = None
        if seconds is not None:
            before = self._before[name].answer["server"]
            cpu = max(server["cpu_seconds"] - before["cpu_seconds"], 0) / seconds
            late = percentile(_more(before["lateness"]["latency"], server["lateness"]["latency"]), 0.99)
        return {
            "server": name,
            "vm": "none" if client is None else client["name"] or f"process {client['pid']}",
            "devices": f"{plugged}/{len(answer['attachments'])}",
            **_measure(self._pairs(name).values(), seconds),
            "cpu": cpu,
            "late": late,
            "seconds": server["seconds"],
        }

    def _attached(self, name: str, view: str) -> list[Row]:
        pairs, seconds = self._pairs(name), self._seconds(name)
        rows: list[Row] = []
        for attachment in self._now[name].answer["attachments"]:
            label = attachment["name"] or attachment["spec"].partition("?")[0]
            own = {key: pair for key, pair in pairs.items() if key[0] == attachment["number"]}
            start = {"server": name, "device": label, "attachment": attachment["number"]}
            if view == "endpoints":
                rows += (
                    {
                        **start,
                        "endpoint": now["address"],
                        **_measure([(before, now)], seconds, waiting=True),
                        "type": now["type"],
                        "state": now["state"].lower(),
                    }
                    for before, now in own.values()
                )
                continue
            port = attachment["port"] or None
            more = {"port": port, "state": attachment["state"], "product": attachment["product"]}
            rows.append({**start, **_measure(own.values(), seconds), **more})
        return rows


def _unknown(name: str, why: str) -> Row:
    return {"server": name, "vm": why, "worse": True}


def ordered(rows: list[Row], column: Column, *, reverse: bool = False) -> list[Row]:
    """Rows by a column: the largest numbers first, and names in their order; what is not known comes last."""
    known = [row for row in rows if row.get(column.key) is not None]
    unknown = [row for row in rows if row.get(column.key) is None]
    return sorted(known, key=lambda row: row[column.key], reverse=column.right != reverse) + unknown


def cell(row: Row, column: Column) -> str:
    """The text of a cell."""
    value = row.get(column.key)
    return "" if value is None else column.show(value)


def _started(answer: Mapping[str, Any]) -> object:
    return answer["server"].get("started")


def _endpoints(answer: Mapping[str, Any]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    return {
        (attachment["number"], attachment["plugs"], endpoint["address"]): endpoint
        for attachment in answer["attachments"]
        for endpoint in attachment["endpoints"]
    }


def _measure(
    pairs: Iterable[tuple[Mapping[str, Any] | None, Mapping[str, Any]]], seconds: float | None, *, waiting: bool = False
) -> Row:
    """What endpoints have done together in `seconds`. Interrupt endpoints mostly wait: their times count only with
    `waiting`."""
    moved = transfers = errors = missed = queued = fresh = 0
    histogram: list[int] = []
    for before, now in pairs:
        wrong = sum(now["errors"].values())
        errors, missed, queued = errors + wrong, missed + now["missed"], queued + now["queued"]
        was: Mapping[str, Any] = before or {"bytes": 0, "transfers": 0, "latency": [], "errors": {}, "missed": 0}
        moved += now["bytes"] - was["bytes"]
        transfers += now["transfers"] - was["transfers"]
        fresh += wrong - sum(was["errors"].values()) + now["missed"] - was["missed"]
        if waiting or now["type"] != "interrupt":
            more = _more(was["latency"], now["latency"])
            histogram = [sum(both) for both in zip_longest(histogram, more, fillvalue=0)]
    known = seconds is not None
    return {
        "rate": moved / seconds if seconds else None,
        "transfers": transfers / seconds if seconds else None,
        "p50": percentile(histogram, 0.5) if known else None,
        "p99": percentile(histogram, 0.99) if known else None,
        "errors": errors,
        "missed": missed,
        "queued": queued,
        "worse": known and fresh > 0,
    }


def _more(before: list[int], now: list[int]) -> list[int]:
    """What a histogram has more than before."""
    return [max(new - old, 0) for old, new in zip_longest(before, now, fillvalue=0)]
