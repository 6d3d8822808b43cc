"""What all stories of drivers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.counted_time import counted_time


@pytest.fixture(autouse=True)
def _counted_time() -> Iterator[None]:
    """Hypothesis plays a story again, and wants the same one."""
    with counted_time():
        yield
