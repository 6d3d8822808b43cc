"""Which programs have device nodes open, as far as this process may see it in procfs: root sees all, others their own.

It costs a system call for each descriptor of each process, so it is read once for each `Usage`, and only for a device
that has nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROCESSES: Final = 10_000
DESCRIPTORS: Final = 50_000
"""What is looked at, at most: some 100 ms."""

_PASSING: Final = ("systemd-udevd", "(udev-worker)", "udevd", "mdev")
"""Programs that open every new node for a moment, to find out what it is."""


def open_nodes(proc: Path) -> dict[str, list[str]]:
    """The programs that have a node open, "minicom (812)", by the node's path; without this process."""
    found: dict[str, list[str]] = {}
    for process, node in _descriptors(proc):
        programs = found.setdefault(node, [])
        name = f"{_name(proc / process)} ({process})"
        if name not in programs and not name.startswith(_PASSING):
            programs.append(name)
    return found


def _descriptors(proc: Path) -> Iterator[tuple[str, str]]:
    """Process and node of each descriptor of a node."""
    left = DESCRIPTORS
    own = str(os.getpid())
    for process in [name for name in _names(proc) if name.isdigit() and name != own][:PROCESSES]:
        directory = proc / process / "fd"
        for number in _names(directory)[:left]:
            left -= 1
            try:
                node = os.readlink(directory / number)
            except OSError:
                continue
            if node.startswith("/dev/"):
                yield process, node


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_bytes().decode(errors="replace").strip()
    except OSError:
        return "a program"


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
