"""A vfio-user server with a fake controller behind it, and raw clients that speak to it over a real socket."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient, open_fds
from usbvfiod_core.testing.limits import eventually


@pytest.fixture(autouse=True, scope="module")
def nothing_left_by_others() -> None:
    """What earlier tests have left in cycles of objects, memory files among it, would go at a time of its own."""
    gc.collect()


@pytest.fixture(autouse=True)
def no_descriptor_leaks(nothing_left_by_others: None) -> Iterator[None]:
    """Every test gives back all descriptors, whatever it did to the server."""
    before = open_fds()
    yield
    assert eventually(lambda: open_fds() == before), f"{open_fds() - before} descriptors leaked"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def serving(path: str, no_descriptor_leaks: None) -> Iterator[Serving]:
    serving = Serving(path=path)
    yield serving
    serving.close()


@pytest.fixture
def client(serving: Serving, path: str) -> Iterator[RawClient]:
    """A client that has said VERSION."""
    with RawClient(path) as client:
        yield client


@pytest.fixture
def memfd(no_descriptor_leaks: None) -> Iterator[int]:
    """One MiB of guest memory."""
    fd = os.memfd_create("protocol-test")
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)


@pytest.fixture
def eventfds(no_descriptor_leaks: None) -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(16)]
    yield fds
    for fd in fds:
        os.close(fd)
