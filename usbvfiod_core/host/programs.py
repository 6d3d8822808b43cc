"""Which programs have device nodes open, as far as this process may see it in procfs: root sees all, others their own.

It costs a system call for each descriptor of each process, so it is read once for each `Usage`, and only for a device
that has nodes. A server in its sandbox sees no other process: it has somebody outside who looks (`look_by`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

Opened = tuple[str, str, str]
"""The number of a process, its name, and a node that it has open."""

PROCESSES: Final = 10_000
DESCRIPTORS: Final = 50_000
"""What is looked at, at most: some 100 ms."""

_PASSING: Final = ("systemd-udevd", "(udev-worker)", "udevd", "mdev")
"""Programs that open every new node for a moment, to find out what it is."""


_outside: Callable[[], Iterable[Opened]] | None = None


def look_by(look: Callable[[], Iterable[Opened]] | None) -> None:
    """From now on `look` says what processes have open; None to look into procfs."""
    global _outside
    _outside = look


def open_nodes(proc: Path) -> dict[str, list[str]]:
    """The programs that have a node open, "minicom (812)", by the node's path; without this process."""
    own = str(os.getpid())
    found: dict[str, list[str]] = {}
    for process, called, node in _seen(proc) if _outside is None else _outside():
        programs = found.setdefault(node, [])
        name = f"{called} ({process})"
        if process != own and name not in programs and not name.startswith(_PASSING):
            programs.append(name)
    return {node: programs for node, programs in found.items() if programs}


def _seen(proc: Path) -> Iterator[Opened]:
    for process, node in _descriptors(proc):
        yield process, _name(proc / process), node


def _descriptors(proc: Path) -> Iterator[tuple[str, str]]:
    """Process and node of each descriptor of a node."""
    left = DESCRIPTORS
    for process in [name for name in _names(proc) if name.isdigit()][:PROCESSES]:
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
