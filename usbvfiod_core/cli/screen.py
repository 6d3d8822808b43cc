"""The screen of `usbvfiod top`: a table that fits the terminal and follows the keys.

It is drawn with curses: that is in the standard library and takes keys, sizes and terminals of all kinds, where rich
reads no keys and textual is larger than all of usbvfiod.
"""

from __future__ import annotations

import curses
import os
import signal
import sys
import time
import unicodedata
from select import select
from typing import Any

import click

from ..errors import ConfigError
from ..visible import visible
from .activity import VIEWS, Activity, Column, Row, cell, ordered
from .control import none_found
from .quantities import size
from .servers import Servers

HELP = "Tab view  n b t 5 9 e m u sort  r reverse  arrows scroll  q quit"
_SORTS = {
    "n": "server",
    "b": "rate",
    "t": "transfers",
    "5": "p50",
    "9": "p99",
    "e": "errors",
    "m": "missed",
    "u": "queued",
    "c": "cpu",
    "l": "late",
}
"""Keys, and the columns by which they sort."""
_MAX_KEYS = 64
"""Keys in one turn."""
_LABEL = 24
"""Columns of the terminal for a text."""


def show(servers: Servers, view: str, sort: str, interval: float) -> None:
    """Show servers until somebody wants no more. Raises ConfigError if the terminal is not fit for it."""
    try:
        curses.setupterm()
        if not curses.tigetstr("cup"):
            raise curses.error("the cursor cannot be moved")
    except curses.error:
        name = os.environ.get("TERM", "")
        raise ConfigError(f"the terminal (TERM={name!r}) is not fit for a screen; --once prints one table") from None
    os.environ.setdefault("ESCDELAY", "25")
    curses.wrapper(lambda window: Screen(window, view, sort).run(servers, interval))


class Screen:
    """One terminal."""

    def __init__(self, window: Any, view: str, sort: str) -> None:
        self._window = window
        self._view = view
        self._sort = sort
        self._reverse = False
        self._first = 0
        self._rows = 0
        self._activity = Activity()
        self._ended = False
        self._bad = curses.A_BOLD
        context = click.get_current_context(silent=True)
        if curses.has_colors() and (context is None or context.color is not False):
            curses.use_default_colors()
            curses.init_pair(1, curses.COLOR_RED, -1)
            self._bad |= curses.color_pair(1)
        window.nodelay(True)
        try:
            curses.curs_set(0)
        except curses.error:
            pass  # a terminal that always shows it

    def run(self, servers: Servers, interval: float) -> None:
        """Ask, draw and hear keys, until it is ended."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)
        # A change of size wakes the wait for keys and answers.
        before = signal.signal(signal.SIGWINCH, lambda number, frame: None)
        wake = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            due = time.monotonic()
            while not self._ended:
                if time.monotonic() >= due:
                    servers.ask()
                    due = max(due + interval, time.monotonic() + interval / 2)
                servers.wait(due, sys.stdin.fileno(), reader)
                if self._woken(reader):
                    curses.resizeterm(*reversed(os.get_terminal_size(sys.stdout.fileno())))
                    self._window.clear()
                if not self._hear() and select([sys.stdin], [], [], 0)[0]:
                    return  # nobody is at the terminal any more
                self._activity.take(servers.known)
                self._draw()
        finally:
            signal.set_wakeup_fd(wake)
            signal.signal(signal.SIGWINCH, before)
            os.close(reader)
            os.close(writer)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _woken(self, reader: int) -> bool:
        try:
            return bool(os.read(reader, 4096))
        except BlockingIOError:
            return False

    def _hear(self) -> bool:
        """Do what keys say; whether there were any."""
        for count in range(_MAX_KEYS):
            try:
                key = self._window.get_wch()
            except curses.error:
                return count > 0
            self._do(key)
        return True

    def _do(self, key: str | int) -> None:
        names = tuple(VIEWS)
        page = max(self._window.getmaxyx()[0] - 4, 1)
        if key in ("q", "Q", "\x1b", "\x04"):
            self._ended = True
        elif key in ("\t", "v"):
            self._view = names[(names.index(self._view) + 1) % len(names)]
            self._first = 0
        elif key == "r":
            self._reverse = not self._reverse
        elif isinstance(key, str) and key in _SORTS:
            self._sort, self._reverse = _SORTS[key], False
        elif key in (curses.KEY_DOWN, "j"):
            self._first += 1
        elif key in (curses.KEY_UP, "k"):
            self._first -= 1
        elif key == curses.KEY_NPAGE:
            self._first += page
        elif key == curses.KEY_PPAGE:
            self._first -= page
        elif key == curses.KEY_HOME:
            self._first = 0
        elif key == curses.KEY_END:
            self._first = self._rows

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        columns = VIEWS[self._view]
        sort = next((each for each in columns if each.key == self._sort), columns[0])
        rows = ordered(self._activity.rows(self._view), sort, reverse=self._reverse)
        self._rows = len(rows)
        self._window.erase()
        lines = [(self._summary(), curses.A_BOLD)]
        lines += [(f"{name}: {error}", self._bad) for name, error in list(self._activity.errors.items())[:3]]
        if not self._activity.names:
            lines.append((none_found(), curses.A_NORMAL))
        for number, (text, attribute) in enumerate(lines):
            self._put(number, 0, fit(visible(text), width), attribute)
        top = len(lines)
        room = max(height - top - 2, 0)
        self._first = max(min(self._first, len(rows) - room), 0)
        shown = rows[self._first : self._first + room]
        texts = [[visible(cell(row, column)) for column in columns] for row in shown]
        widths = _widths(columns, texts, width)
        if rows:
            self._line(top, columns, [column.title for column in columns], widths, sort, None)
        for number, (row, cells) in enumerate(zip(shown, texts, strict=True), top + 1):
            self._line(number, columns, cells, widths, sort, row)
        if height > top + 1:
            more = f"{self._first + 1}-{self._first + len(shown)} of {len(rows)}  " if len(shown) < len(rows) else ""
            self._put(height - 1, 0, fit(f"{more}{self._view}  {HELP}", width), curses.A_DIM)
        self._window.refresh()

    def _summary(self) -> str:
        devices = self._activity.rows("devices")
        rate = sum(row["rate"] or 0 for row in devices)
        transfers = sum(row["transfers"] or 0 for row in devices)
        plugged = sum(row["state"] == "plugged" for row in devices)
        count = len(self._activity.names)
        servers = "1 server" if count == 1 else f"{count} servers"
        return (
            f"{time.strftime('%H:%M:%S')}  {servers}, {plugged} of {len(devices)} devices plugged in, "
            f"{size(rate)}/s, {transfers:.0f} transfers/s"
        )

    def _line(
        self,
        number: int,
        columns: tuple[Column, ...],
        cells: list[str],
        widths: list[int],
        sort: Column,
        row: Row | None,
    ) -> None:
        """A line of the table; its head without a `row`."""
        at = 0
        for column, text, width in zip(columns, cells, widths, strict=True):
            if not width:
                continue
            attribute = curses.A_REVERSE if row is None else curses.A_NORMAL
            if column is sort:
                attribute |= curses.A_BOLD
            if row is not None and row.get("worse") and column.key in ("errors", "missed", "vm"):
                attribute |= self._bad
            self._put(number, at, fit(text, width, right=column.right), attribute)
            if row is None:
                self._put(number, at + width, "  ", attribute & ~curses.A_BOLD)
            at += width + 2

    def _put(self, line: int, column: int, text: str, attribute: int) -> None:
        height, width = self._window.getmaxyx()
        if line >= height or column >= width:
            return
        try:
            self._window.addstr(line, column, fit(text, width - column).rstrip("\0"), attribute)
        except curses.error:
            pass  # the last cell of the screen, behind which the cursor cannot go


def _widths(columns: tuple[Column, ...], texts: list[list[str]], width: int) -> list[int]:
    """How wide each column is; 0 for those for which there is no room."""
    widths = []
    left = width
    for index, column in enumerate(columns):
        longest = max([column.width, len(column.title), *(cells(each[index]) for each in texts)])
        wanted = min(longest, _LABEL)
        if left < wanted and index > 1:
            break
        widths.append(min(wanted, max(left, 0)))
        left -= wanted + 2
    return widths + [0] * (len(columns) - len(widths))


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(_cells_of(char) for char in text)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` columns: cut, or filled up."""
    room = width - cells(text)
    if room >= 0:
        return " " * room + text if right else text + " " * room
    kept, used = "", 0
    for char in text:
        if used + _cells_of(char) > max(width - 1, 0):
            break
        kept += char
        used += _cells_of(char)
    return kept + ("~" + " " * (width - 1 - used) if width > 0 else "")


def _cells_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
