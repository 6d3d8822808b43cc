"""The tutorial as a sequence of what its reader does: commands to type, and files to write."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.e2e.venv import ROOT

PAGE = ROOT / "docs/tutorial.md"

_STEP = re.compile(
    r"(?:`(?P<file>[\w/.-]+)` with\s+this:\n\n)?^```(?P<language>sh|py|toml)\n(?P<text>.*?)^```$", re.M | re.S
)


def steps() -> Iterator[tuple[str, str]]:
    """Each step: ("sh", commands), ("toml", text), or the path of a file and its content."""
    for match in _STEP.finditer(PAGE.read_text()):
        if match["language"] == "py":
            assert match["file"], "the tutorial does not say which file this is:\n" + match["text"]
            yield match["file"], match["text"]
        else:
            yield match["language"], match["text"]


def files() -> dict[str, str]:
    """The files that the reader writes, by path."""
    return {what: text for what, text in steps() if what not in ("sh", "toml")}
