"""Where Python looks for modules, without the places that nobody has chosen.

Python puts the current directory (`python -m`) or the program's own in front of all others, and the current one in the
place of an empty entry of PYTHONPATH. Whoever can write there could have a plugin loaded that nobody has installed.
`-m` in such a directory is not safe all the same: Python itself has looked there before this runs; `python -P -m` is.
"""

from __future__ import annotations

import os
import sys


def clean() -> None:
    """Take those places out of `sys.path`, but for the one that this package itself was found in."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path and sys.path:
        first = sys.path[0]
        if os.path.abspath(first) != ours and (os.path.isdir(first) or not first) and not _is_named(first):
            del sys.path[0]
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if len(named) > 1 and "" in named and not sys.flags.ignore_environment:
        here = _here()
        if here != ours and not _is_named(here):
            sys.path[:] = [each for each in sys.path if each not in ("", here)]


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return ""


def _is_named(place: str) -> bool:
    """Whether the user has named a place in PYTHONPATH."""
    if sys.flags.ignore_environment:
        return False
    named = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.path.abspath(place) in map(os.path.abspath, named)
