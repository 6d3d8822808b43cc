"""The table of `make bench-against` as a picture, for docs.

A bar for each figure: how near the ratio is to its target, on a logarithmic scale, so that twice as good and half as
good are as far from the line. What is not measured has no bar.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

WIDTH, LABELS, LINE, HALF = 960, 500, 26, 160
"""Pixels: of the picture, for the names, of a row, and for a factor of four."""
MET, MISSED, TEXT = "#2e7d32", "#c62828", "#333"


def picture(figures: Iterable[dict[str, Any]]) -> str:
    """An SVG image of objects as `bench-against` prints them."""
    rows = list(figures)
    middle, height = LABELS + HALF + 20, LINE * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(middle, 18, "target", "middle"),
        _text(middle - HALF, 18, "a quarter as good", "middle"),
        _text(middle + HALF, 18, "four times as good", "middle"),
        f'<path d="M{middle} {LINE}V{height - 8}" stroke="{TEXT}"/>',
    ]
    for number, row in enumerate(rows, 1):
        y = LINE * number + 17
        parts.append(_text(LABELS, y, row["figure"], "end"))
        if row["ratio"] is None:
            parts.append(_text(middle + 6, y, "not measured", "start"))
            continue
        length = round(goodness(row) * HALF)
        start = min(middle, middle + length)
        colour = MET if row["met"] else MISSED
        parts.append(f'<rect x="{start}" y="{y - 13}" width="{abs(length)}" height="17" fill="{colour}"/>')
        sign = "≤" if row["relation"] == "at most" else "≥"
        said = f"{row['ratio']:.2f} ({sign} {row['target']:g})"
        parts.append(_text(middle + 6 if length < 0 else middle - 6, y, said, "start" if length < 0 else "end"))
    return "\n".join([*parts, "</svg>\n"])


def goodness(row: dict[str, Any]) -> float:
    """0 at the target, 1 where it is four times as good, -1 where a quarter; no more than that."""
    factor = row["ratio"] / row["target"]
    if row["relation"] == "at most":
        factor = 1 / factor if factor else 4.0
    return max(-1.0, min(1.0, math.log(factor, 4) if factor else -1.0))


def _text(x: int, y: int, words: str, anchor: str) -> str:
    place = f'x="{x}" y="{y}" text-anchor="{anchor}"'
    return f'<text {place} fill="{TEXT}" font-family="sans-serif">{html.escape(words)}</text>'
