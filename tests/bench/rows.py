"""What `make bench-against` prints: a ratio beside its target, or why it could not be measured here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from usbvfiod_core.errors import UsbvfiodError


class Missing(Exception):
    """Something that a figure needs is not here; the message says what."""


@dataclass
class Row:
    """One figure: `ratios` of neighbouring rounds, this build's to the other's. The median is to be at least `target`,
    or at most, where `most`. `missing` says why there are none."""

    figure: str
    target: float
    most: bool = False
    ratios: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def ratio(self) -> float | None:
        """The median; None without any."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether it is what it is to be; None if that is not known."""
        if self.ratio is None:
            return None
        return self.ratio <= self.target if self.most else self.ratio >= self.target

    def compare(self, new: Sequence[float], old: Sequence[float]) -> None:
        """Take samples of both builds, of one round each. Raises Missing if the other build's are nothing."""
        if not all(old):
            raise Missing("the other build's figure is 0")
        self.ratios += [mine / its for mine, its in zip(new, old, strict=True)]

    def line(self) -> str:
        """For people."""
        goal = f"{'<=' if self.most else '>='} {self.target:<5g}"
        if self.ratio is None:
            return f"{self.figure:72} {'-':>6}                {goal} not measured: {self.missing}"
        spread = f"({min(self.ratios):.2f}-{max(self.ratios):.2f})"
        return f"{self.figure:72} {self.ratio:6.2f} {spread:14} {goal} {'met' if self.met else 'MISSED'}"

    def json(self) -> str:
        """The same for programs, as one line."""
        known = {"figure": self.figure, "ratio": self.ratio, "target": self.target, "met": self.met}
        goal = {"relation": "at most" if self.most else "at least"}
        spread = {"low": min(self.ratios), "high": max(self.ratios)} if self.ratios else {"missing": self.missing}
        return json.dumps(known | goal | spread)


LONGEST = 200
"""Of a reason, its end: that is where servers and tools say what was wrong."""
HEADING = f"{'figure':72} {'ratio':>6} {'(range)':14} target"


def measured(rows: Sequence[Row], measure: Callable[[], object]) -> Iterator[Row]:
    """Have `measure` fill the rows in; those that it leaves empty say why, whatever stands in its way."""
    reason = ""
    try:
        measure()
    except (Missing, UsbvfiodError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1][-LONGEST:]
    for row in rows:
        if not row.ratios and not row.missing:
            row.missing = reason or "nothing was measured"
        yield row


def alternating(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """The samples of each measure, taken in turn and in alternating order; a round before is not counted."""
    samples: list[list[float]] = [[] for _ in measures]
    for number in range(-1, rounds):
        order: Iterable[int] = range(len(measures))
        for index in order if number % 2 else reversed(range(len(measures))):
            sample = measures[index]()
            if number >= 0:
                samples[index].append(sample)
    return samples
