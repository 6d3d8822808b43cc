"""Numbers on a command line, with errors that say which are possible."""

from __future__ import annotations

import math
from typing import Any

import click


class WholeNumber(click.IntRange):
    """A whole number from `min` to `max`, either of them None for none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value} is not a whole number{_between(self)}.", param, ctx)


class Descriptor(WholeNumber):
    """The number of a file descriptor."""

    def __init__(self) -> None:
        super().__init__(0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number >= 1 << 31:  # an int of C
            self.fail(f"there is no descriptor {value}.", param, ctx)
        return number


class Number(click.FloatRange):
    """A number, with fractions, from `min` to `max`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = super().convert(value, param, ctx)
        except click.BadParameter:
            number = math.nan
        if math.isnan(number):  # also if that was given: it is neither below `min` nor above `max`
            self.fail(f"{value} is not a number{_between(self)}.", param, ctx)
        return number


SECONDS = Number(0, 86400, min_open=True)
"""How long to wait for something; more than a day is more than the system's calls take."""


def _between(range_: click.IntRange | click.FloatRange) -> str:
    low, high = (None if each is None else f"{each:.12g}" for each in (range_.min, range_.max))
    if low is None:
        return "" if high is None else f" up to {high}"
    if high is None:
        return f" from {low} up"
    return f" above {low}, up to {high}" if range_.min_open else f" from {low} to {high}"
