"""Taking measurements: time, processor time, and how to print them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter


@dataclass
class Figure:
    """One figure: samples in `unit`. A target is met if the median is at most it."""

    name: str
    unit: str
    samples: Sequence[float]
    target: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def met(self) -> bool:
        return self.target is None or self.median <= self.target

    def line(self) -> str:
        ordered = sorted(self.samples)
        spread = ""
        if len(ordered) > 1:
            low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 100]
            spread = f"   (p5 {number(low)}, p99 {number(high)})"
        return f"{self.name:58} {number(self.median):>9} {self.unit}{spread}{verdict(self.met, self.target, self.unit)}"


@dataclass
class Comparison:
    """A figure beside its reference, more is better. Rounds alternate; `ours[n]` and `reference[n]` are neighbours."""

    name: str
    unit: str
    target: float | None = None
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [mine / theirs for mine, theirs in zip(self.ours, self.reference, strict=True)]

    @property
    def met(self) -> bool:
        return self.target is None or statistics.median(self.ratios) >= self.target

    def line(self) -> str:
        ratios = self.ratios
        text = (
            f"{self.name:28} {number(statistics.median(self.ours)):>9} {number(statistics.median(self.reference)):>9}"
            f" {self.unit:8} ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
        return text + verdict(self.met, self.target, "", "at least")


def verdict(met: bool, target: float | None, unit: str, relation: str = "at most") -> str:
    """What the target is, and whether it is missed; empty without one."""
    if target is None:
        return ""
    return f"   {'ok' if met else 'MISSED'}: {relation} {number(target)} {unit}".rstrip()


def number(value: float) -> str:
    """Three digits that matter, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process, to the nanosecond (a tick of utime is ten milliseconds)."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread that has just ended
    return total / 1e9


def own_megabytes(pid: int) -> float:
    """Memory of a process: all that is resident but what it shares with others, in MB."""
    values = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            values[name] = int(value.split()[0]) / 1000
    return values["RssAnon"] + values["RssFile"]


def voluntary_switches(pid: int) -> int:
    """How often the process has gone to sleep."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no context switches")


def times(work: Callable[[], object], count: int) -> list[float]:
    """Microseconds that each of `count` calls took."""
    taken = []
    for _ in range(count):
        start = perf_counter()
        work()
        taken.append((perf_counter() - start) * 1e6)
    return taken
