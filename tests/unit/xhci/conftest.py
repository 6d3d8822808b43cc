"""Fixtures for the tests of the controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.xhci.hub import Hub
from tests.unit.xhci.kit import DirectBus, Rig


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tests of a module that says `CONTEXT_SIZES = (32, 64)` are run with contexts of each size."""
    if "context_size" in metafunc.fixturenames:
        metafunc.parametrize("context_size", getattr(metafunc.module, "CONTEXT_SIZES", (32,)))


@pytest.fixture
def bus(context_size: int) -> Iterator[DirectBus]:
    """A controller in this process, as after power-on."""
    bus = DirectBus(context_size=context_size)
    yield bus
    bus.close()


@pytest.fixture
def make_rig(context_size: int) -> Iterator[Callable[..., Rig]]:
    """Makes a `Rig` with options, closed at the end."""
    rigs: list[Rig] = []

    def make(*args: Any, **options: Any) -> Rig:
        options.setdefault("bus", DirectBus(context_size=context_size))
        rigs.append(Rig(*args, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """A running controller with one enumerated High Speed device."""
    return make_rig()


@pytest.fixture
def hub() -> Iterator[Callable[..., Hub]]:
    """Makes a `Hub`: `hub(speed, plugged=True, running=True)`."""
    hubs: list[Hub] = []

    def make_hub(*args: Any, **options: Any) -> Hub:
        hubs.append(Hub(*args, **options))
        return hubs[-1]

    yield make_hub
    for each in hubs:
        each.bus.close()
