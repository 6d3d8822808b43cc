"""What the commands print: lines and tables for people, JSON for programs. All of it goes through here, because names
come from devices, guests and peers: nothing that is printed makes a line or acts on a terminal (see `visible`)."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..visible import visible, visible_json

VERSION = 1
"""Of the JSON that commands print; it grows when something in it changes its meaning or goes away."""


def print_json(kind: str, entries: list[dict[str, object]], **more: object) -> None:
    """Print `{"version": 1, kind: entries, ...}`."""
    click.echo(visible_json({"version": VERSION, kind: entries, **more}, indent=2))


def print_object(answer: dict[str, object]) -> None:
    """Print what a server answered, with the version."""
    click.echo(visible_json({"version": VERSION, **{k: v for k, v in answer.items() if k != "ok"}}, indent=2))


def print_one_line(answer: dict[str, object]) -> None:
    """The same on one line, without the version: one of many."""
    click.echo(visible_json({k: v for k, v in answer.items() if k != "ok"}))


def say(text: object = "", *, err: bool = False) -> None:
    """Print one line."""
    click.echo(visible(str(text)), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print lines that are ours, such as commands to paste."""
    for line in text.split("\n"):
        say(line, err=err)


def print_text(text: str) -> None:
    """Print lines in which all that is from outside has been made visible."""
    click.echo(text, nl=False)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> None:
    """Print rows under their titles; a column that is empty in every row is left out. `right`: columns of numbers."""
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    cells = [[visible(row[index]) for index in kept] for row in rows]
    heads = [titles[index] for index in kept]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(kept))]
    sides = [bool(right) and right[index] for index in kept]
    click.secho(_line(heads, widths, sides), bold=True)
    for line in cells:
        click.echo(_line(line, widths, sides))


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    sides = zip(cells, widths, right, strict=True)
    return "  ".join(cell.rjust(width) if at_right else cell.ljust(width) for cell, width, at_right in sides).rstrip()
