"""Logging of the daemon: one line a message, to stderr, for people or as JSON."""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Lock, Thread
from typing import TextIO

from ..visible import visible, visible_json
from ..xhci.journal import TRACE
from .log_budget import TOLD_AFTER, Budget

LEVELS = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG, 2: TRACE}
"""Level by verbosity: -1 for -q, 1 for -v, 2 for -vv."""

OWN = ("usbvfiod_core", "usbvfiod")
"""The loggers that go with -v and -q, and all below them, beside those of the packages of plugins."""

LEVEL_NAMES = ("trace", "debug", "info", "warning", "error")

KEPT = 1000
"""Messages that wait for a reader of stderr; what is logged beyond that is lost, and that is said."""
MESSAGE_MAX = 2000
TRACEBACK_MAX = 50
"""Characters of a message, and lines of a traceback, of which the last are kept."""
_LAST_WORDS = 1.0
"""Seconds in which what waits must be read when serving ends."""


_following: tuple[str, ...] = OWN
"""The loggers that `set_level` is about. Global, as everything of logging is."""


def set_up(verbosity: int, form: str, plugins: Iterable[str] = ()) -> None:
    """Log to stderr from now on. `form` is "text" or "json".

    `plugins` names the modules of plugins: a plugin's loggers are those of its package, and go with -v and -q as ours
    do. With -vv, those of everybody else are heard as well.
    """
    global _following
    _following = tuple(dict.fromkeys([*OWN, *(re.split("[.:]", module)[0] for module in plugins if module)]))
    logging.addLevelName(TRACE, "TRACE")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(Budget())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    verbosity = max(min(verbosity, 2), -1)
    root.setLevel(logging.DEBUG if verbosity == 2 else logging.WARNING)
    _set(LEVELS[verbosity])


def set_level(name: str) -> None:
    """Log what is at least of this level, one of LEVEL_NAMES, from now on, of ours and of plugins."""
    _set(TRACE if name == "trace" else getattr(logging, name.upper()))


def _set(level: int) -> None:
    for logger in _following:
        logging.getLogger(logger).setLevel(level)


@contextmanager
def never_waiting() -> Iterator[Callable[[], None]]:
    """While a guest is served: whoever reads stderr may be slow, or have stopped (a full pipe, Ctrl-S on a terminal).
    Messages are written by a thread, which may wait for that; it is started by what this yields, or at the end."""
    root = logging.getLogger()
    before = root.handlers[:]
    asides = [_Aside(each) for each in before if type(each) is logging.StreamHandler]
    root.handlers[:] = [*asides, *(each for each in before if type(each) is not logging.StreamHandler)]

    def begin() -> None:
        for each in asides:
            each.begin()

    try:
        yield begin
    finally:
        root.handlers[:] = before
        for each in asides:
            each.close()


class _Aside(logging.Handler):
    """Formats messages at once, and lets a thread write them where `handler` does."""

    def __init__(self, handler: logging.StreamHandler[TextIO]) -> None:
        super().__init__()
        self.setFormatter(handler.formatter)
        for each in handler.filters:
            self.addFilter(each)
        self._budgets = [each for each in handler.filters if isinstance(each, Budget)]
        self._handler = handler
        self._lines: Queue[str | None] = Queue(KEPT)
        self._lost = 0
        self._counting = Lock()
        self._thread = Thread(target=self._write, name="usbvfiod-log", daemon=True)

    def begin(self) -> None:
        """Write from now on, what has been said already, too."""
        if self._thread.ident is None:
            self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # arguments that do not fit the message; logging's own way is to write to stderr at once
            line = f"--- Logging error ---\n{traceback.format_exc()}Message: {record.msg!r}, from {record.name}"
        try:
            self._lines.put_nowait(line)
        except Full:
            with self._counting:
                self._lost += 1

    def close(self) -> None:
        self.begin()
        try:
            self._lines.put(None, timeout=_LAST_WORDS)
            self._thread.join(_LAST_WORDS)
        except Full:
            pass  # nobody reads, and nobody will
        super().close()

    def _write(self) -> None:
        while True:
            try:
                line = self._lines.get(timeout=TOLD_AFTER)
            except Empty:
                self._tell_left_out(all_of_them=False)
                continue
            if line is None:
                self._tell_left_out(all_of_them=True)
                return
            with self._counting:
                lost, self._lost = self._lost, 0
            if lost:
                message = f"{lost} messages were lost because nobody read them in time"
                fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
                line += f"\n{self.format(logging.makeLogRecord(fields))}"
            self._put(line)
            self._tell_left_out(all_of_them=False)

    def _put(self, line: str) -> None:
        stream = self._handler.stream
        try:
            stream.write(f"{line}\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody is there any more

    def _tell_left_out(self, *, all_of_them: bool) -> None:
        for budget in self._budgets:
            for record in budget.due(all_of_them=all_of_them):
                self._put(self.format(record))


class TextFormatter(logging.Formatter):
    """`usbvfiod: warning: text`; a traceback follows on lines of its own, indented, when there is one.

    Names in messages come from devices, guests and peers: see `visible`.
    """

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        lines = [f"usbvfiod: {level}{visible(_message(record))}"]
        if record.exc_info:
            lines += [f"    {visible(line)}" for line in _traceback(self.formatException(record.exc_info))]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339), level, logger, message, and exception when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{day}.{int(record.created % 1 * 1000):03}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            entry["exception"] = "\n".join(_traceback(self.formatException(record.exc_info)))
        return visible_json(entry)


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if len(text) > MESSAGE_MAX:
        text = f"{text[:MESSAGE_MAX]} ... ({len(text) - MESSAGE_MAX} characters more)"
    left_out = getattr(record, "left_out", 0)
    more = f" (and {left_out} like it before, which were left out)" if left_out else ""
    return text + more


def _traceback(text: str) -> list[str]:
    lines = text.split("\n")
    if len(lines) > TRACEBACK_MAX:
        lines = [f"... ({len(lines) - TRACEBACK_MAX} lines more)", *lines[-TRACEBACK_MAX:]]
    return [line[:MESSAGE_MAX] for line in lines]
