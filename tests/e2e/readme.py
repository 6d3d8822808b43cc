"""The ways of installing that README has."""

from __future__ import annotations

import re

from tests.e2e.venv import ROOT


def install_commands(having: str) -> list[str]:
    """The commands of the way of installing that has this one, in their order."""
    section = (ROOT / "README.md").read_text().partition("\n## Install\n")[2].partition("\n## ")[0]
    ways = [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)]
    way: list[str]
    (way,) = [lines for lines in ways if having in lines]
    return way
