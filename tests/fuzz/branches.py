"""Which inputs reach a branch that no other reaches, by coverage.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.fuzz.engine import INSTRUMENTED
from tests.fuzz.inputs import Actions
from tests.fuzz.watch import Watch

MANY = 10.0
"""Seconds of a turn: tracing costs a lot."""


def thinned(play: Callable[[Actions, Watch], None], inputs: Iterable[bytes]) -> list[bytes]:
    """The inputs that reach branches which those before them do not."""
    import coverage

    known: set[tuple[str, int, int]] = set()
    kept = []
    for data in inputs:
        tracer = coverage.Coverage(data_file=None, branch=True, source_pkgs=INSTRUMENTED)
        with tracer.collect(), Watch(MANY) as watch:
            play(Actions(data), watch)
        found = tracer.get_data()
        reached = {(file, *arc) for file in found.measured_files() for arc in found.arcs(file) or ()}
        if not reached <= known:
            known |= reached
            kept.append(data)
    return kept
