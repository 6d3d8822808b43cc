"""What a program says of its own faults while it is watched: exceptions that it only logs, and those that nobody takes.

The record factory hears every record that is made, whatever becomes of handlers, propagation and levels of handlers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

OURS = ("usbvfiod", "asyncio")
"""Loggers of the project and its plugins; asyncio says of a callback's exception that nobody took it."""


IN_ONE_LINE = "usbvfiod_core.hooks"
"""Loggers that say an exception of a plugin's in one line, and its traceback for debugging. Other errors without a
traceback are about guests, devices and files, and no faults of the program."""


def is_fault(record: logging.LogRecord) -> bool:
    """Whether a record is about an exception. What is logged for debugging goes with a message of its own."""
    if not (isinstance(record.name, str) and record.name.startswith(OURS)):
        return False
    if record.exc_info and record.exc_info != (None, None, None):
        return record.levelno >= logging.WARNING
    return record.levelno >= logging.ERROR and record.name.startswith(IN_ONE_LINE)


def told(record: logging.LogRecord) -> str:
    """A record in one string, with its traceback."""
    return f"{record.name}: {logging.Formatter().format(record)}"


class Heard(AbstractContextManager["Heard"]):
    """Listens from `with` on. `faults` are the records that are faults, `lines` counts those for users (warnings and
    more). Not `unraisable`, it leaves exceptions that nobody takes to somebody else."""

    def __init__(self, *, unraisable: bool = True) -> None:
        self._unraisables = unraisable
        self.faults: list[logging.LogRecord] = []
        self.lines = 0

    def __enter__(self) -> Heard:
        self._factory = logging.getLogRecordFactory()
        self._hook = sys.unraisablehook
        logging.setLogRecordFactory(self._record)
        if self._unraisables:
            sys.unraisablehook = self._unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logging.setLogRecordFactory(self._factory)
        sys.unraisablehook = self._hook

    def loop_exception(self, loop: object, context: Mapping[str, Any]) -> None:
        """An asyncio exception handler."""
        error = context.get("exception")
        info = (type(error), error, error.__traceback__) if error is not None else None
        self.faults.append(logging.LogRecord("asyncio", logging.ERROR, "", 0, context.get("message"), None, info))

    def _record(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._factory(*args, **kwargs)
        self.lines += (record.levelno or 0) >= logging.WARNING  # None for one that is made of a dictionary
        if is_fault(record):
            self.faults.append(record)
        return record

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        kind, error, traceback = unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback
        said = f"{unraisable.err_msg or 'an exception that nobody took'}: {unraisable.object!r}"
        info = (kind, error or kind(), traceback)
        self.faults.append(logging.LogRecord("usbvfiod", logging.ERROR, "", 0, said, None, info))


def no_traceback(log: str) -> None:
    """Fail if a server has logged an exception: what a process says at the end of a test that does not expect one."""
    assert "Traceback" not in log, f"the server has logged an exception:\n{log}"
