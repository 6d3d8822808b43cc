"""The benches' programs in C, compiled where there is a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.rows import Missing
from usbvfiod_core.testing.limits import PATIENCE

SOURCES = Path(__file__).parent
FREESTANDING = ("-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie", "-s")


def compiled(name: str, directory: Path, *options: str) -> Path:
    """The program of `NAME.c`. Raises Missing where it cannot be made."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Missing("no C compiler")
    program = directory / name
    command = [compiler, "-O2", *options, "-o", str(program), str(SOURCES / f"{name}.c")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Missing(f"{name}.c does not compile: {(result.stderr.strip() or 'no reason given').splitlines()[0]}")
    return program


@contextmanager
def serving(command: list[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program of somebody else's that serves on `socket`. Raises Missing if it does not."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as it:
        try:
            deadline = time.monotonic() + PATIENCE
            while not socket.is_socket():
                if it.poll() is not None or time.monotonic() > deadline:
                    raise Missing(f"{Path(command[0]).name} does not serve")
                time.sleep(0.005)
            yield it
        finally:
            it.kill()
