"""A kernel and a loop for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_usbfs import FakeKernel

from usbvfiod_core.testing.loop import StepLoop


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    made = FakeKernel()
    yield made
    made.close()


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    made = StepLoop()
    yield made
    made.close()
