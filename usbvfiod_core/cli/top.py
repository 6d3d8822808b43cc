"""`usbvfiod top`: what all servers of a user do now, refreshed in place, or line by line for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from ..errors import ConfigError
from .activity import VIEWS, Activity, Column, Row, cell, ordered
from .control import none_found
from .numbers import Number
from .output import print_one_line, print_table, say
from .servers import Find, Servers, servers_options
from .unreached import ServerUnreachable

ANSWERED_WITHIN = 2.0
"""Seconds for an answer, where there is no screen to show that one is late."""
_SORTS = tuple(dict.fromkeys(column.key for columns in VIEWS.values() for column in columns))


@click.command()
@click.option("--view", type=click.Choice(tuple(VIEWS)), default="devices", show_default=True, help="What to show.")
@click.option(
    "--sort",
    metavar="COLUMN",
    type=click.Choice(_SORTS),
    default="rate",
    show_default=True,
    help="Sort by this column, named as in JSON.",
)
@click.option(
    "--interval",
    metavar="SECONDS",
    type=Number(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Ask this often.",
)
@click.option("--once", is_flag=True, help="Print what was done in one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, one each interval.")
@servers_options
def top(view: str, sort: str, interval: float, once: bool, as_json: bool, find: Find) -> None:
    """Show what all servers of this user do now: rates, latencies, errors."""
    column = next((each for each in VIEWS[view] if each.key == sort), None)
    if column is None:
        raise click.UsageError(f"--view {view} has no {sort}; it has {', '.join(each.key for each in VIEWS[view])}")
    with Servers(find) as servers:
        try:
            if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
                _print(servers, view, column, interval, once=once, as_json=as_json)
            else:
                _screen()(servers, view, column.key, interval)
        except KeyboardInterrupt:
            return


def _print(servers: Servers, view: str, column: Column, interval: float, *, once: bool, as_json: bool) -> None:
    activity = Activity()
    due = time.monotonic()
    printed = 0
    while True:
        servers.ask()
        servers.wait(time.monotonic() + ANSWERED_WITHIN)
        first = not activity.names
        activity.take(servers.known)
        if not first or not servers.known:
            if once:
                _check_answers(activity)
            rows = ordered(activity.rows(view), column)
            if as_json:
                print_one_line({"time": round(time.time(), 3), "view": view, "rows": [_plain(row) for row in rows]})
            else:
                _print_rows(activity, view, rows, apart=printed > 0)
            printed += 1
            if once:
                return
        due = max(due + interval, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0))


def _print_rows(activity: Activity, view: str, rows: list[Row], *, apart: bool) -> None:
    if apart:
        say()
    for name, error in activity.errors.items():
        say(f"{name}: {error}", err=True)
    if not activity.names:
        say(none_found(), err=True)
    columns = VIEWS[view]
    if rows:
        texts = [[cell(row, column) for column in columns] for row in rows]
        print_table([column.title for column in columns], texts, right=[column.right for column in columns])
    elif activity.names and not activity.errors:
        say("no attachments", err=True)


def _check_answers(activity: Activity) -> None:
    """Raises ServerUnreachable if there is no server that answers."""
    if not activity.names:
        raise ServerUnreachable(none_found())
    if len(activity.errors) == len(activity.names):
        raise ServerUnreachable("; ".join(f"{name}: {error}" for name, error in activity.errors.items()))


def _plain(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "worse"}


def _screen() -> Callable[[Servers, str, str, float], None]:
    """What shows it on a terminal. Raises ConfigError where that is not possible."""
    try:
        from .screen import show
    except ImportError:
        raise ConfigError("this Python has no module curses for a screen; --once prints one table") from None
    return show
