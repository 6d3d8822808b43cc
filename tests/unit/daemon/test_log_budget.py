"""The budget of the log: what a flood costs, what others may still say meanwhile, and that what is left out is told."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from usbvfiod_core.daemon import log
from usbvfiod_core.daemon.log_budget import (
    BURST,
    DEBUG_FACTOR,
    PACE,
    PLACE_BURST,
    PLACE_PACE,
    SOURCES,
    TOLD_AFTER,
    TRACEBACK,
    Budget,
)
from usbvfiod_core.xhci.journal import TRACE

DAY = 86400.0
log_ = logging.getLogger("usbvfiod_core.under_test")


class Out(logging.Handler):
    """A handler with a budget and a clock of the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.budget = Budget(lambda: self.now)
        self.addFilter(self.budget)
        self.setFormatter(log.TextFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += self.format(record).splitlines()

    def tell(self, *, all_of_them: bool = False) -> None:
        for record in self.budget.due(all_of_them=all_of_them):
            self.emit(record)


@pytest.fixture
def out() -> Iterator[Out]:
    out = Out()
    log_.addHandler(out)
    log_.setLevel(logging.INFO)
    log_.propagate = False
    yield out
    log_.removeHandler(out)
    log_.propagate = True


def complain(name: str, text: str = "stalls") -> None:
    log_.warning("%s %s", name, text)


def counted(lines: list[str]) -> int:
    """Messages that were logged, and those that are said to have been left out."""
    text = "\n".join(lines)
    before = [int(number) for number in re.findall(r"\(and (\d+) like it before, which were left out\)", text)]
    told = [int(number) for number in re.findall(r"(\d+) messages in \d+ s were left out", text)]
    return len(lines) - len(told) + sum(before) + sum(told)


def test_a_source_says_little_and_every_message_is_counted(out: Out) -> None:
    for _ in range(1000):
        complain("drive")
    assert out.lines == ["usbvfiod: warning: drive stalls"] * BURST
    out.now += PACE
    complain("drive")
    assert out.lines[BURST:] == [
        f"usbvfiod: warning: drive stalls (and {1000 - BURST} like it before, which were left out)"
    ]
    complain("drive")
    out.now += 7
    out.tell(all_of_them=True)
    assert out.lines[BURST + 1 :] == [
        "usbvfiod: warning: 1 messages in 7 s were left out, the first of them: drive stalls"
    ]
    assert counted(out.lines) == 1002


def test_others_are_heard_meanwhile(out: Out) -> None:
    for _ in range(100):
        complain("drive")
    complain("keyboard")
    log_.error("something else")
    log_.error("%s is lost", "drive")
    assert out.lines[BURST:] == [
        "usbvfiod: warning: keyboard stalls",
        "usbvfiod: error: something else",
        "usbvfiod: error: drive is lost",
    ]


@pytest.mark.parametrize("names", [1, 50, 100_000], ids=["one name", "some", "made up"])
def test_a_day_of_flood_is_small(out: Out, names: int) -> None:
    """Many at once, and then a few all the time."""
    number = 0
    for turn in range(int(DAY / PLACE_PACE)):
        for _ in range(2 if turn else 3000):
            number += 1
            complain(f"device {number % names}")
        out.now += PLACE_PACE
        out.tell()
    out.now += TOLD_AFTER
    out.tell()
    sources = min(names, PLACE_BURST)
    assert len(out.lines) <= PLACE_BURST + DAY / PLACE_PACE + DAY / TOLD_AFTER + sources
    assert sum(map(len, out.lines)) < 2 << 20
    assert counted(out.lines) == number
    assert len(out.budget._sources) <= SOURCES


@pytest.mark.faults("drive fails")
def test_tracebacks_count_more(out: Out) -> None:
    for _ in range(100):
        try:
            raise ValueError("broken")
        except ValueError:
            log_.exception("drive fails")
    assert sum(line == "usbvfiod: error: drive fails" for line in out.lines) == BURST // TRACEBACK


def test_who_asks_for_more_gets_more(out: Out) -> None:
    log_.setLevel(logging.DEBUG)
    for _ in range(10 * BURST * DEBUG_FACTOR):
        log_.debug("%s: a detail", "drive")
    assert len(out.lines) == BURST * DEBUG_FACTOR
    log_.setLevel(TRACE)
    out.lines.clear()
    for _ in range(1000):
        log_.log(TRACE, "%s: a transfer", "drive")
        log_.debug("%s: another detail", "drive")
    assert len(out.lines) == 2000


def test_messages_that_do_not_fit_are_counted_as_well(out: Out) -> None:
    for _ in range(BURST + 3):
        log_.warning("%s", "drive")
    record = logging.LogRecord("usbvfiod", logging.WARNING, "x.py", 1, "%d %d", ("drive",), None)
    while out.budget.filter(record):
        pass
    assert any("the first of them: %d %d" in each.getMessage() for each in out.budget.due(all_of_them=True))


def test_the_server_tells_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(0, "text")
    with log.never_waiting():
        for _ in range(1000):
            logging.getLogger("usbvfiod_core").warning("%s stalls", "drive")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:-1] == ["usbvfiod: warning: drive stalls"] * BURST
    assert counted(lines) == 1000
