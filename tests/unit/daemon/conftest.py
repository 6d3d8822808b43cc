"""A loop, and a descriptor for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from usbvfiod_core.daemon.loop import ServerLoop


@pytest.fixture
def loop() -> Iterator[ServerLoop]:
    loop = ServerLoop()
    yield loop
    loop.close()


@pytest.fixture
def ready(loop: ServerLoop) -> Iterator[int]:
    """A descriptor that can be read and written until the test is over."""
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    yield fd
    loop.remove_reader(fd)
    loop.remove_writer(fd)
    os.close(fd)
