"""What a program of the lab has made for the tests of a guest beside it, as long as they want it.

Where it is stands in a file of /exchange, which those tests read, and remove when they are done with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

LONGEST = 1800.0
"""Seconds after which nobody is waited for."""


def stand(file: Path, places: Sequence[str]) -> None:
    """Write `places` as a list into `file`, and return when that has been removed."""
    deadline = time.monotonic() + LONGEST
    written = file.with_suffix(".new")
    written.write_text(json.dumps(places))
    written.rename(file)
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
