"""How long tests wait: limits that are generous on any machine, and longer with one variable.

A limit ends a wait for something that does not come. It costs nothing while everything is well, so it has room for a
machine whose processors are taken; where that is still too little (an emulated processor, say), USBVFIOD_TIME_SCALE in
the environment, 1 if it is not set, multiplies all of them. This module is the only one that reads it.

Where a number of seconds ends a real wait, write `PATIENCE` or `scaled(seconds)`; functions that are given a limit take
it as it is. A time that something must not exceed is no limit but a budget, which only an idle machine can keep: it
belongs into a benchmark. A time after which something must happen is given to the code under test, in virtual time
(`StepLoop`) if it is more than a moment.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

VARIABLE = "USBVFIOD_TIME_SCALE"


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"{VARIABLE} is a number above 0, such as 2.5, not {text!r}")
    return scale


SCALE = _scale(os.environ.get(VARIABLE) or "1")
"""What all limits are multiplied with."""


def scaled(seconds: float) -> float:
    """A limit of so many seconds, as long as this machine needs it. Say what an overloaded machine may take."""
    return seconds * SCALE


PATIENCE = scaled(30.0)
"""Seconds for what takes milliseconds on an idle machine: the limit to use where nothing speaks for another."""


def eventually(condition: Callable[[], object], seconds: float = PATIENCE, *, pace: float = 0.005) -> bool:
    """Whether `condition()` becomes true within so many seconds; it is asked every `pace` seconds, and once more at
    the end."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return bool(condition())
        time.sleep(pace)
    return True


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    seconds: float = PATIENCE,
    *,
    pace: float = 0.005,
) -> None:
    """Wait until `condition()` is true. Raises TimeoutError with `what` has not happened, or what that returns then."""
    if not eventually(condition, seconds, pace=pace):
        raise TimeoutError(f"{what if isinstance(what, str) else what()} (waited for {seconds:.0f} s)")
