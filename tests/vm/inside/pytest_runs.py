"""In the lab: runs pytest for each request that comes through a FIFO, a line of JSON with its arguments and a file for
what it prints, and answers through another with its exit status.

Each run is in a copy of this process, which has imported pytest, its plugins and what tests use: for that an emulated
processor takes longer than for many a file of tests.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import NoReturn

import pytest

USED = ("tests.lab.machine", "tests.lab.passing", "tests.lab.serving")


def main(requests: str, answers: str, *options: str) -> None:
    """Answer requests for ever. The options are of every run."""
    pytest.main([*options, "--version"])  # which imports the plugins as each run does, and ends there
    for name in USED:
        importlib.import_module(name)
    with open(requests, "r+b", buffering=0) as incoming, open(answers, "r+b", buffering=0) as outgoing:
        while True:
            arguments, log = json.loads(_line(incoming.fileno()))
            child = os.fork()
            if child == 0:
                incoming.close()
                outgoing.close()
                _run([*options, *arguments], log)
            _, status = os.waitpid(child, 0)
            outgoing.write(b"%d\n" % os.waitstatus_to_exitcode(status))


def _line(fifo: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fifo, 65536)
    return line


def _run(arguments: list[str], log: str) -> NoReturn:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = ["pytest", *arguments]
    sys.exit(pytest.main(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
