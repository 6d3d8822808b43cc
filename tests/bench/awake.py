"""Processors that never sleep, for figures of programs alone: in a virtual machine a processor that halts and is woken
takes as long as some of what is measured.

    python -m tests.bench.awake PROCESSOR PARENT       takes what nobody else wants of a processor
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

LOOKS = 10_000_000
"""Turns of a loop between two looks at whether the parent is still there, some tenths of a second."""


@contextmanager
def awake() -> Iterator[list[int]]:
    """Meanwhile each processor that this process may use has one of the class SCHED_IDLE, which gives way to any other
    at once; their process IDs."""
    with ExitStack() as stack:
        pids = []
        for processor in sorted(os.sched_getaffinity(0)):
            command = [sys.executable, "-m", __name__, str(processor), str(os.getpid())]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            stack.callback(process.kill)
            pids.append(process.pid)
        yield pids


def _spin(processor: int, parent: int) -> None:
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while os.getppid() == parent:
        for _ in range(LOOKS):
            pass


if __name__ == "__main__":
    _spin(int(sys.argv[1]), int(sys.argv[2]))
