"""The corpora: for each target a file with an input a line, in base64. They are what the fuzzers have found worth
keeping, thinned out to a few kilobytes; `python -m tests.fuzz --keep` writes them anew."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

CORPUS = Path(__file__).parent / "inputs"
MOST = 6 << 10
"""Bytes of one file."""


def stored(name: str) -> list[bytes]:
    """The inputs of a target."""
    path = CORPUS / f"{name}.txt"
    return [b64decode(line) for line in path.read_text().split()] if path.exists() else []


def store(name: str, inputs: Iterable[bytes]) -> int:
    """Keep inputs, the first ones that there is room for; how many."""
    lines, size = [], 0
    for data in inputs:
        line = b64encode(data).decode()
        if size + len(line) < MOST:
            lines.append(line)
            size += len(line) + 1
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.txt").write_text(
        "".join(f"{line}\n" for line in sorted(lines, key=lambda each: (len(each), each)))
    )
    return len(lines)
