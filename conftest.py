"""Tests in directories named `lab` need the lab (tests/vm/lab.py): Linux with USB devices that may be broken. Elsewhere
they are not even collected; tests/vm/test_lab.py runs them there, as part of the whole suite."""

from __future__ import annotations

from pathlib import Path

IN_LAB = "usbvfiod.lab" in Path("/proc/cmdline").read_text().split()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the directories out where this is not the lab."""
    return True if collection_path.name == "lab" and collection_path.is_dir() and not IN_LAB else None
