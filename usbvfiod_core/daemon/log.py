"""Logging of the daemon: one line a message, to stderr, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

LEVELS = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG, 2: logging.DEBUG}
"""Level by verbosity: -1 for -q, 1 for -v, 2 for -vv."""

OWN = ("usbvfiod_core", "usbvfiod")
"""The loggers that go with -v and -q, and all below them: the core's, and those of plugins that take such a name."""

LEVEL_NAMES = ("debug", "info", "warning", "error")


def set_up(verbosity: int, form: str) -> None:
    """Log to stderr from now on. `form` is "text" or "json". With -vv, Python's own loggers are heard as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    verbosity = max(min(verbosity, 2), -1)
    root.setLevel(logging.DEBUG if verbosity == 2 else logging.WARNING)
    for logger in OWN:
        logging.getLogger(logger).setLevel(LEVELS[verbosity])


def set_level(name: str) -> None:
    """Log what is at least a "debug", "info", "warning" or "error" of ours from now on."""
    for logger in OWN:
        logging.getLogger(logger).setLevel(getattr(logging, name.upper()))


class TextFormatter(logging.Formatter):
    """`usbvfiod: warning: text`; a traceback follows on lines of its own when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"usbvfiod: {level}{record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339), level, logger, message, and exception when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
