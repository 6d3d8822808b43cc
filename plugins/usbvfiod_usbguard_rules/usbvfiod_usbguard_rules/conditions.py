"""Conditions of rules (usbguard-rules.conf(5), "Conditions"): `if !localtime(08:00-18:00)`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Moment:
    """What conditions look at."""

    now: datetime
    """Local time."""
    monotonic: float
    """Seconds, of a clock that is never set."""
    allowed_matches: Callable[[str], bool]
    """Whether a device that matches this query is allowed and there now."""


Check = Callable[[Moment, Sequence[float], Sequence[float]], bool]
"""Called with the moment, and with when the rule was last evaluated and last applied: nothing, or one time."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, as it was written and as it is decided."""

    text: str
    negated: bool
    check: Check

    def met(self, moment: Moment, evaluated: Sequence[float], applied: Sequence[float]) -> bool:
        return self.check(moment, evaluated, applied) is not self.negated


def condition(
    text: str, name: str, argument: str | None, *, negated: bool, query: Callable[[str], object]
) -> Condition:
    """The condition `name(argument)`. `query` checks the argument of allowed-matches. Raises ValueError."""
    make = _CONDITIONS.get(name)
    if make is None:
        raise ValueError(f"there is no condition {name!r}; there are {', '.join(_CONDITIONS)}")
    if argument == "":
        raise ValueError(f"the parentheses of condition {name!r} are empty")
    if name == "allowed-matches":
        query(argument or "")
    return Condition(text, negated, make(argument))


def _fixed(value: bool) -> Callable[[str | None], Check]:
    return lambda argument: lambda moment, evaluated, applied: value


def _localtime(argument: str | None) -> Check:
    begin, dash, end = (argument or "").partition("-")
    first = _seconds(begin, least=2)
    last = _seconds(end, least=2) if dash else first
    if first > last:
        raise ValueError(f"the time {argument!r} ends before it begins; write two rules for a time across midnight")

    def check(moment: Moment, evaluated: Sequence[float], applied: Sequence[float]) -> bool:
        clock = moment.now.time()
        return first <= clock.hour * 3600 + clock.minute * 60 + clock.second <= last

    return check


def _random(argument: str | None) -> Check:
    try:
        probability = 0.5 if argument is None else float(argument)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"random takes a probability from 0 to 1, not {argument!r}")
    return lambda moment, evaluated, applied: random.random() < probability


def _allowed_matches(argument: str | None) -> Check:
    query = argument or ""
    return lambda moment, evaluated, applied: moment.allowed_matches(query)


def _rule(which: int) -> Callable[[str | None], Check]:
    def make(argument: str | None) -> Check:
        within = None if argument is None else _seconds(argument, least=1)

        def check(moment: Moment, *last: Sequence[float]) -> bool:
            times = last[which]
            return bool(times) and (within is None or moment.monotonic - times[0] <= within)

        return check

    return make


def _seconds(text: str, *, least: int) -> int:
    """`HH:MM:SS` or `HH:MM`, and where `least` is 1 also `SS`, in seconds."""
    parts = text.split(":")
    if not least <= len(parts) <= 3 or not all(re.fullmatch(r"[0-9]{1,2}", part) for part in parts):
        raise ValueError(f"{text!r} is not a time, {'SS, ' if least == 1 else ''}HH:MM or HH:MM:SS")
    numbers = [int(part) for part in parts]
    hours, minutes, seconds = (0, 0, *numbers) if len(numbers) == 1 else (*numbers, 0)[:3]
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError(f"{text!r} is not a time of the day")
    return hours * 3600 + minutes * 60 + seconds


_CONDITIONS: dict[str, Callable[[str | None], Check]] = {
    "allowed-matches": _allowed_matches,
    "localtime": _localtime,
    "random": _random,
    "rule-applied": _rule(1),
    "rule-evaluated": _rule(0),
    "true": _fixed(True),
    "false": _fixed(False),
}
