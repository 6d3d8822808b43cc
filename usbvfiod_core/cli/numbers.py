"""Numbers on a command line, with errors that say which are possible."""

from __future__ import annotations

from typing import Any

import click


class WholeNumber(click.IntRange):
    """A whole number from `min` to `max`, either of them None for none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value} is not a whole number{_between(self)}.", param, ctx)


class Number(click.FloatRange):
    """A number, with fractions, from `min` to `max`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value} is not a number{_between(self)}.", param, ctx)


def _between(range_: click.IntRange | click.FloatRange) -> str:
    low, high = range_.min, range_.max
    if low is None:
        return "" if high is None else f" up to {high:g}"
    if high is not None:
        return f" from {low:g} to {high:g}"
    return f" above {low:g}" if range_.min_open else f" from {low:g} up"
