"""Fixtures of the tests that run the real process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.process import COMMAND, ServerProcess
from usbvfiod_core.testing.limits import PATIENCE

Run = Callable[..., subprocess.CompletedProcess[str]]
Serve = Callable[..., ServerProcess]


@pytest.fixture
def run() -> Run:
    """Run `usbvfiod` with arguments to its end; stdout and stderr are text."""

    def run(
        *arguments: str | Path, timeout: float = PATIENCE, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )

    return run


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server; it is serving when this returns. All are ended after the test."""
    with ExitStack() as stack:
        count = 0

        def serve(*arguments: str | Path, **options: object) -> ServerProcess:
            nonlocal count
            directory = tmp_path / f"server{count}"
            directory.mkdir()
            count += 1
            return stack.enter_context(ServerProcess(directory, arguments, **options)).wait_ready()  # type: ignore[arg-type]

        yield serve


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A drive's image of 8 MiB, of which each block says its number."""
    path = tmp_path / "drive.img"
    path.write_bytes(b"".join(number.to_bytes(8, "little") * 64 for number in range(8 * 2048)))
    return path
