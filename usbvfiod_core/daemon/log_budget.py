"""How much may be logged: whoever makes the server say something makes it say little.

A source is a place in the code together with what the message begins with, which is the name of a device or of a
client where there is one. Each source has some messages at once and then one at a pace, and so has each place, because
names can be made up. What is left out is counted, and told with the next message of the source, or after a while.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Final

from ..bucket import Bucket
from ..xhci.journal import TRACE

BURST: Final = 20
PACE: Final = 30.0
"""Messages of a source at once, and seconds from then on for each one more."""
PLACE_BURST: Final = 200
PLACE_PACE: Final = 10.0
"""The same for a place."""
DEBUG_FACTOR: Final = 20
"""So much more is allowed below logging.INFO, which somebody has asked for."""
TRACEBACK: Final = 5
"""What a message with a traceback counts."""
SOURCES: Final = 1000
"""Sources that are remembered; those behind the last ones begin anew."""
TOLD_AFTER: Final = 60.0
"""Seconds after which a count is told without another message."""
_KEY_LENGTH = 100

_Key = tuple[str, int, str]


class _Source:
    """A source, with what was left out of it since `since`, and the first of that."""

    __slots__ = ("bucket", "example", "left_out", "since")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.left_out = 0
        self.since = 0.0
        self.example: logging.LogRecord | None = None


class Budget(logging.Filter):
    """The filter of a handler. With `-vv` and at the level `trace`, nothing below INFO is left out.

    `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = Lock()
        self._places: dict[tuple[str, int, bool], Bucket] = {}
        self._sources: OrderedDict[_Key, _Source] = OrderedDict()
        self._looked = clock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message may be logged; it gets what was left out before it as `left_out`."""
        asked_for = record.levelno < logging.INFO
        if asked_for and logging.getLogger(record.name).isEnabledFor(TRACE):
            return True
        now = self._clock()
        cost = TRACEBACK if record.exc_info else 1
        with self._lock:
            source = self._source(record, asked_for, now)
            place = self._place(record, asked_for, now)
            source.bucket.refill(now)
            if source.bucket.left >= cost and place.left >= cost:
                source.bucket.left -= cost
                place.left -= cost
                record.left_out = source.left_out
                source.left_out, source.example = 0, None
                return True
            if not source.left_out:
                source.since, source.example = now, record
            source.left_out += 1
            return False

    def due(self, *, all_of_them: bool = False) -> list[logging.LogRecord]:
        """Messages that tell what has been left out, one for a place; unless `all_of_them` are wanted now, none twice
        in TOLD_AFTER seconds. Call it often."""
        now = self._clock()
        with self._lock:
            if now - self._looked < TOLD_AFTER and not all_of_them:
                return []
            self._looked = now
            places: dict[tuple[str, int], _Source] = {}
            for (name, line, _), source in self._sources.items():
                if source.left_out:
                    there = places.setdefault((name, line), source)
                    if there is not source:
                        there.left_out += source.left_out
                        source.left_out, source.example = 0, None
            told = [_summary(source, now) for source in places.values()]
            for source in places.values():
                source.left_out, source.example = 0, None
            return told

    # -- own ---------------------------------------------------------------------------------------------------------

    def _source(self, record: logging.LogRecord, asked_for: bool, now: float) -> _Source:
        key = (record.name, record.lineno, _begins_with(record))
        source = self._sources.get(key)
        if source is None:
            factor = DEBUG_FACTOR if asked_for else 1
            source = self._sources[key] = _Source(Bucket(BURST * factor, PACE / factor, now))
            if len(self._sources) > SOURCES:
                _, oldest = self._sources.popitem(last=False)
                source.left_out += oldest.left_out
                source.since, source.example = oldest.since, oldest.example
        else:
            self._sources.move_to_end(key)
        return source

    def _place(self, record: logging.LogRecord, asked_for: bool, now: float) -> Bucket:
        key = (record.name, record.lineno, asked_for)
        place = self._places.get(key)
        if place is None:
            factor = DEBUG_FACTOR if asked_for else 1
            place = self._places[key] = Bucket(PLACE_BURST * factor, PLACE_PACE / factor, now)
        place.refill(now)
        return place


def _begins_with(record: logging.LogRecord) -> str:
    arguments = record.args
    if isinstance(arguments, tuple) and arguments and isinstance(arguments[0], str | Exception):
        return str(arguments[0])[:_KEY_LENGTH]
    return ""


def _summary(source: _Source, now: float) -> logging.LogRecord:
    example = source.example
    assert example is not None
    fields = {"name": example.name, "levelno": example.levelno, "levelname": example.levelname}
    told = logging.makeLogRecord(fields)
    told.msg = "%d messages in %d s were left out, the first of them: %s"
    told.args = (source.left_out, round(now - source.since), _text(example))
    return told


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit the message
        return str(record.msg)
