"""What `usbvfiod top` makes of answers: rates, times of an interval, orders; and texts that fit a column."""

from __future__ import annotations

from pathlib import Path
from selectors import DefaultSelector
from typing import Any

import pytest

from tests.unit.daemon.test_exposition import attachment, endpoint, status
from usbvfiod_core.cli.activity import VIEWS, Activity, cell, ordered
from usbvfiod_core.cli.screen import cells, fit
from usbvfiod_core.cli.servers import Server


class Table:
    """An `Activity` of servers whose answers a test gives."""

    def __init__(self) -> None:
        self.activity = Activity()
        self.servers: dict[str, Server] = {}

    def answers(self, name: str, answer: dict[str, Any] | None, at: float, error: str = "") -> None:
        server = self.servers.setdefault(name, Server(Path(name), DefaultSelector()))
        if answer is not None:
            answer["server"].setdefault("seconds", at)
        server.answer, server.at, server.error = answer, at, error
        self.activity.take(self.servers)

    def row(self, view: str) -> dict[str, Any]:
        [only] = self.activity.rows(view)
        return only


def bulk(transfers: int, **more: Any) -> dict[str, Any]:
    """An endpoint that has done so many transfers of 512 bytes, each in 10 µs."""
    latency = [0] * 14 + [transfers] if transfers else []
    return endpoint(transfers=transfers, bytes=512 * transfers, latency=latency, **more)


def test_rates_are_of_the_interval() -> None:
    table = Table()
    table.answers("web", status(attachment(endpoints=[bulk(1000)])), 10.0)
    row = table.row("devices")
    assert (row["rate"], row["transfers"], row["p50"]) == (None, None, None), "one answer says nothing"
    table.answers("web", status(attachment(endpoints=[bulk(1100, queued=3)])), 10.5)
    row = table.row("devices")
    assert (row["rate"], row["transfers"], row["queued"]) == (102400, 200, 3)
    assert 8 <= row["p50"] <= row["p99"] <= 16.4
    table.answers("web", status(attachment(endpoints=[bulk(1100)])), 11.0)
    row = table.row("devices")
    assert (row["rate"], row["transfers"], row["p50"]) == (0, 0, None), "nothing was done, so nothing took time"
    assert table.row("servers")["rate"] == 0


def test_an_answer_that_has_not_come_yet_changes_nothing() -> None:
    table = Table()
    first, second = (status(attachment(endpoints=[bulk(count)])) for count in (0, 100))
    table.answers("web", first, 1.0)
    table.answers("web", second, 2.0)
    table.answers("web", second, 2.0)
    assert table.row("devices")["transfers"] == 100


def test_a_device_that_was_plugged_in_again_begins_at_0() -> None:
    table = Table()
    table.answers("web", status(attachment(plugs=1, endpoints=[bulk(1000)])), 1.0)
    table.answers("web", status(attachment(plugs=2, endpoints=[bulk(10)])), 2.0)
    assert table.row("devices")["transfers"] == 10


def test_a_server_that_was_started_again_is_another() -> None:
    table = Table()
    table.answers("web", status(attachment(endpoints=[bulk(1000)]), started=1), 1.0)
    table.answers("web", status(attachment(endpoints=[bulk(10)]), started=2), 2.0)
    assert table.row("devices")["transfers"] is None


def test_errors_and_misses_are_all_that_there_were() -> None:
    table = Table()
    table.answers("web", status(attachment(endpoints=[bulk(1, errors={"Stall": 2}, missed=1)])), 1.0)
    table.answers("web", status(attachment(endpoints=[bulk(2, errors={"Stall": 2}, missed=1)])), 2.0)
    row = table.row("devices")
    assert (row["errors"], row["missed"], row["worse"]) == (2, 1, False)
    table.answers("web", status(attachment(endpoints=[bulk(2, errors={"Stall": 2, "Babble": 1}, missed=1)])), 3.0)
    row = table.row("devices")
    assert (row["errors"], row["missed"], row["worse"]) == (3, 1, True)


def test_waiting_is_no_latency() -> None:
    """An interrupt endpoint of a keyboard waits for keys."""
    table = Table()
    for count in (0, 5):
        waits = endpoint(type="interrupt", transfers=count, latency=[0] * 33 + [count])
        table.answers("web", status(attachment(endpoints=[waits])), float(count + 1))
    assert table.row("devices")["p99"] is None
    assert table.row("endpoints")["p99"] > 4e6


def test_servers() -> None:
    table = Table()
    table.answers("web", status(attachment(), attachment(2, state="waiting"), cpu_seconds=1.0), 1.0)
    late = {"latency": [0] * 21 + [10], "nanoseconds": 0}
    table.answers("web", status(attachment(), attachment(2, state="waiting"), cpu_seconds=1.5, lateness=late), 2.0)
    row = table.row("servers")
    assert (row["devices"], row["cpu"], row["vm"]) == ("1/2", 0.5, "none")
    assert 1048 <= row["late"] <= 2098
    table.answers("web", None, 2.0, "it has gone")
    assert table.row("servers")["vm"] == "it has gone"
    assert table.activity.rows("devices") == []
    table.servers.clear()
    table.activity.take(table.servers)
    assert table.activity.rows("servers") == []


def test_order() -> None:
    rows: list[dict[str, Any]] = [{"server": name, "rate": rate} for name, rate in (("b", 1), ("a", None), ("c", 2))]
    columns = {column.key: column for column in VIEWS["devices"]}

    def names(key: str, *, reverse: bool = False) -> str:
        return "".join(row["server"] for row in ordered(rows, columns[key], reverse=reverse))

    assert (names("rate"), names("rate", reverse=True)) == ("cba", "bca")
    assert (names("server"), names("server", reverse=True)) == ("abc", "cba")


def test_every_cell_has_a_text() -> None:
    table = Table()
    for at in (1.0, 2.0):
        table.answers("web", status(attachment(endpoints=[bulk(int(at))])), at)
    for view, columns in VIEWS.items():
        row = table.row(view)
        assert {column.key for column in columns} <= set(row)
        assert all(isinstance(cell(row, column), str) for column in columns)


@pytest.mark.parametrize(
    ("text", "width", "fitted"),
    [
        ("abc", 5, "abc  "),
        ("abc", 3, "abc"),
        ("abcd", 3, "ab~"),
        ("abc", 1, "~"),
        ("abc", 0, ""),
        ("键盘", 5, "键盘 "),
        ("键盘x", 4, "键~ "),
        ("键盘", 2, "~ "),
        ("e\u0301x", 2, "e\u0301x"),
    ],
)
def test_texts_fit(text: str, width: int, fitted: str) -> None:
    assert fit(text, width) == fitted
    assert cells(fit(text, width)) == width
    assert fit("ab", 4, right=True) == "  ab"
