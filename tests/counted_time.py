"""The controller's time counted in its looks at the clock: a story of a guest is the same one on any machine, however
busy, and whether a share of a turn is over does not depend on who else runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from unittest.mock import patch

from usbvfiod_core.xhci import engine, turns

PACE = turns.RUN_NS // 20
"""Nanoseconds from one look to the next: what an idle machine needs for a TD or less."""


@contextmanager
def counted_time(pace: int = PACE) -> Iterator[None]:
    """Inside, each look at the clock is `pace` nanoseconds after the last."""
    clock = count(0, pace).__next__
    with patch.object(engine, "monotonic_ns", clock), patch.object(turns, "monotonic_ns", clock):
        yield
