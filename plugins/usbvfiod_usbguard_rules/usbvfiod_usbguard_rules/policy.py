"""The rules of a server: read from files, asked one after the other, the first that applies decides."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from usbvfiod_core.errors import ConfigError

from .conditions import Moment
from .parser import ENCODING, RuleError, parse, parse_query
from .rules import Facts, Rule, Target


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided about a device; `rule` is None if none applied."""

    target: Target
    rule: Rule | None

    @property
    def allows(self) -> bool:
        """Whether the device may be attached."""
        return self.target is Target.ALLOW


class Policy:
    """The rules of some files, and which devices they have allowed that are there.

    Asked in threads. The files are read again when they have changed, so that a new rule holds for the next device.
    """

    def __init__(self, places: Sequence[Path], default: Target) -> None:
        """Read the rules. Raises ConfigError, which names file, line and column."""
        self._places = tuple(places)
        self._default = default
        self._lock = threading.Lock()
        self._allowed: dict[str, Facts] = {}
        self._present: set[str] = set()
        self._seen, self._rules = self._read()

    def decide(self, name: str, facts: Facts) -> Verdict:
        """What becomes of the device `name`. Raises ConfigError if the files have changed and cannot be read now."""
        with self._lock:
            if self._stamps() != self._seen:
                self._seen, self._rules = self._read()
            moment = Moment(datetime.now(), time.monotonic(), self._allowed_matches)
            rule = next((rule for rule in self._rules if rule.applies(facts, moment)), None)
            verdict = Verdict(self._default if rule is None else rule.target, rule)
            if verdict.target is Target.ALLOW:
                self._allowed[name] = facts
            else:
                self._allowed.pop(name, None)
            return verdict

    def plugged(self, name: str) -> None:
        """A device that was allowed is there; conditions may ask for it."""
        with self._lock:
            self._present.add(name)

    def unplugged(self, name: str) -> None:
        """It has gone."""
        with self._lock:
            self._present.discard(name)
            self._allowed.pop(name, None)

    def _allowed_matches(self, query: str) -> bool:
        rule = parse_query(query)
        return any(rule.matches(facts) for name, facts in self._allowed.items() if name in self._present)

    # -- files -------------------------------------------------------------------------------------------------------

    def _stamps(self) -> dict[Path, tuple[int, int, int]]:
        stamps = {}
        for path in self._files():
            try:
                status = os.stat(path)
            except OSError as error:
                raise ConfigError(f"rules cannot be read: {path}: {error.strerror}") from error
            stamps[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return stamps

    def _files(self) -> Iterable[Path]:
        """The files, those of a directory (`*.conf`) in the order of their names."""
        for place in self._places:
            if place.is_dir():
                yield from sorted(path for path in place.iterdir() if path.suffix == ".conf")
            else:
                yield place

    def _read(self) -> tuple[dict[Path, tuple[int, int, int]], list[Rule]]:
        stamps = self._stamps()
        return stamps, [rule for path in stamps for rule in _rules(path)]


def _rules(path: Path) -> list[Rule]:
    rules: list[Rule] = []
    try:
        text = path.read_bytes().decode(*ENCODING)
    except OSError as error:
        raise ConfigError(f"rules cannot be read: {path}: {error.strerror}") from error
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rule = parse(line, f"{path}:{number}")
        except RuleError as error:
            raise ConfigError(f"{path}:{number}:{error.column}: {error}") from error
        if rule is not None:
            rules.append(rule)
    return rules
