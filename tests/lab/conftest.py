"""Fixtures of the tests that run in the lab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import Machine
from tests.lab.passing import BACKENDS, Pass, Passed
from tests.lab.usb_device import HostUsbDevice


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make long tests of those that are long with their backend."""
    for item in items:
        marker, call = item.get_closest_marker("long_with"), getattr(item, "callspec", None)
        if marker is not None and call is not None and call.params.get("backend") in marker.args:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """QEMU, to plug its devices in and out."""
    with Machine() as machine:
        yield machine


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend, each in turn."""
    name: str = request.param
    return name


@pytest.fixture
def passed(backend: str, tmp_path: Path) -> Iterator[Pass]:
    """Pass a device through: `passed(device)`; afterwards the host's drivers must have it back."""
    made: list[tuple[Passed, HostUsbDevice, dict[int, str]]] = []

    def give(device: HostUsbDevice, *options: str) -> Passed:
        drivers = device.drivers
        given = Passed(backend, device, tmp_path, *options)
        made.append((given, device, drivers))
        assert set(device.drivers.values()) == {"usbfs"}
        return given

    yield give
    for given, device, drivers in reversed(made):
        given.__exit__(None, None, None)
        if device.present():
            assert device.drivers == drivers
