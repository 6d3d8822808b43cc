"""Fixtures of the tests that run in the lab."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.machine import Machine


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """QEMU, to plug its devices in and out."""
    with Machine() as machine:
        yield machine
