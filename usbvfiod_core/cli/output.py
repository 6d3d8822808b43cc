"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

VERSION = 1
"""Of the JSON that commands print; it grows when something in it changes its meaning or goes away."""


def print_json(kind: str, entries: list[dict[str, object]], **more: object) -> None:
    """Print `{"version": 1, kind: entries, ...}`."""
    click.echo(json.dumps({"version": VERSION, kind: entries, **more}, indent=2, ensure_ascii=False))


def print_object(answer: dict[str, object]) -> None:
    """Print what a server answered, with the version."""
    click.echo(json.dumps({"version": VERSION, **{k: v for k, v in answer.items() if k != "ok"}}, indent=2))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their titles; a column that is empty in every row is left out. Control characters are not
    printed: names come from devices."""
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    cells = [[printable(row[index]) for index in kept] for row in rows]
    heads = [titles[index] for index in kept]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(kept))]
    click.secho(_line(heads, widths), bold=True)
    for line in cells:
        click.echo(_line(line, widths))


def printable(text: str) -> str:
    """`text` with what would act on a terminal replaced."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
