"""How long a guest waits while its server is replaced: `python -m tests.bench.upgrade [UPGRADES]`.

A guest reads a register, and in a second run 4 KiB of a drive, again and again; what counts is the longest time that
one takes during each upgrade. Beside it: how long a server needs from its start until it serves, measured in turns with
the upgrades, and the pause as a part of that; at most 1.5 is wanted.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.e2e.upgrade_rig import GuestAtWork, Upgradable
from usbvfiod_core.testing.limits import PATIENCE


def longest_waits(rig: Upgradable, step: Callable[[], object], upgrades: int) -> list[float]:
    """Seconds of the longest step during each upgrade."""
    found = []
    for _ in range(upgrades):
        thread = threading.Thread(target=rig.upgrade)
        longest = 0.0
        thread.start()
        while thread.is_alive():
            begun = time.perf_counter()
            step()
            longest = max(longest, time.perf_counter() - begun)
        thread.join(PATIENCE)
        found.append(longest)
    return found


WANTED: Final = 1.5
"""The pause of an upgrade as a part of a start, at most."""


def start_seconds() -> float:
    """How long a server of the same devices needs until it serves."""
    with tempfile.TemporaryDirectory() as directory, Upgradable(Path(directory)) as rig:
        return time.monotonic() - rig.server.started


def row(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p99 = ordered[min(round(len(ordered) * 0.99), len(ordered) - 1)]
    print(f"{name:24} p50 {statistics.median(ordered) * 1e3:7.1f} ms  p99 {p99 * 1e3:7.1f} ms  ({len(ordered)})")


def main(upgrades: int) -> None:
    """Measure, and print."""
    starts, pauses = [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        Upgradable(Path(directory)) as rig,
        closing(GuestAtWork(rig)) as guest,
    ):
        # In turns, so that both have the same of whatever else the machine does.
        for _ in range(upgrades):
            starts.append(start_seconds())
            pauses += longest_waits(rig, guest.read_register, 1)
        row("start of a server", starts)
        row("a register", pauses)
        ratio = statistics.median(pauses) / statistics.median(starts)
        print(f"{'pause / start':24} p50 {ratio:7.2f}     (at most {WANTED} is wanted)")
        row("4 KiB of a drive", longest_waits(rig, lambda: guest.bot.read(0, 8), upgrades))
        row("writes, reads, UAS, keys", longest_waits(rig, guest.step, upgrades))
        guest.check()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
