"""For all tests: which are collected here, and that they leave logging as they found it.

Tests in directories named `lab` need the lab (tests/vm/lab.py): Linux with USB devices that may be broken. Elsewhere
they are not even collected; tests/vm/test_lab.py runs them there, as part of the whole suite.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

IN_LAB = "usbvfiod.lab" in Path("/proc/cmdline").read_text().split()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the directories out where this is not the lab."""
    return True if collection_path.name == "lab" and collection_path.is_dir() and not IN_LAB else None


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that is run in the test's own process sets up logging; the next test finds it as this one did."""
    root = logging.getLogger()
    loggers = [root, logging.getLogger("usbvfiod_core"), logging.getLogger("usbvfiod")]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
