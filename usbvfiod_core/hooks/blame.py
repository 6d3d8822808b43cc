"""Whose fault it is, for the log: a plugin's code that raises or keeps the loop waiting, by its name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

log = logging.getLogger(__name__)

SLOW = 0.1
"""Seconds after which code that keeps the loop waiting is named in the log."""


class Blame:
    """Says in the log what an interceptor does wrong: the 1st, 2nd, 4th, 8th ... time that a method does."""

    def __init__(self, plugin: str, name: str) -> None:
        self.name = f"plugin {plugin}: {name}"
        self._times: dict[str, int] = {}

    def __call__(self, method: str, error: BaseException, consequence: str = "the transfer fails") -> None:
        """`method` has raised `error`."""
        text = " ".join(str(error).split())
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        self._say(method, logging.ERROR, f"failed, {consequence}: {text}", error)

    def slow(self, method: str, seconds: float) -> None:
        """`method` has kept the loop waiting."""
        self._say(method, logging.WARNING, f"took {seconds * 1000:.0f} ms, and the whole server waited", None)

    def _say(self, method: str, level: int, what: str, error: BaseException | None) -> None:
        times = self._times[method] = self._times.get(method, 0) + 1
        if not times & times - 1:
            log.log(level, "%s.%s %s%s", self.name, method, what, f" ({times} times)" if times > 1 else "")
        log.debug("%s.%s", self.name, method, exc_info=error)

    def isolated(self, call: Callable[..., object], *args: Any) -> None:
        """Call something of the plugin's that decides nothing."""
        name = getattr(call, "__name__", repr(call))
        started = perf_counter()
        try:
            call(*args)
        except Exception as error:
            self(name, error, "which changes nothing")
        if perf_counter() - started > SLOW:
            self.slow(name, perf_counter() - started)
