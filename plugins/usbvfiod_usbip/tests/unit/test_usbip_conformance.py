"""Devices over USB/IP under the suites that every backend has to pass, with a server in Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbip.options import UsbipOptions

from tests.lab.usbip_exporter import Exporter, virtual_keyboard, virtual_loopback
from usbvfiod_core import Device, Loop, Speed
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance


class Served:
    """A device at a server, made anew for each import."""

    exporter: Exporter

    def make_device(self, loop: Loop) -> Device:
        return UsbipBackend().open(f"{self.exporter.host}/1-1", UsbipOptions(), loop)

    def unplug(self, device: Device) -> None:
        self.exporter.server.disconnect()


@pytest.mark.parametrize("speed", [Speed.HIGH, Speed.SUPER])
class TestSourceSink(Served, SourceSinkConformance):
    control_limit = 0xFFFF

    @pytest.fixture(autouse=True)
    def _exported(self, speed: Speed) -> Iterator[None]:
        with Exporter({"1-1": virtual_loopback(speed)}) as self.exporter:
            yield


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH])
class TestLoopback(Served, DeviceConformance):
    @pytest.fixture(autouse=True)
    def _exported(self, speed: Speed) -> Iterator[None]:
        with Exporter({"1-1": virtual_loopback(speed)}) as self.exporter:
            yield

    test_streams_wait_and_are_cancelled_one_by_one = None  # type: ignore[assignment]


class TestBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def _exported(self) -> Iterator[None]:
        with Exporter({"1-1": virtual_keyboard}) as exporter:
            self.address = f"{exporter.host}/1-1"
            yield

    def make_backend(self) -> UsbipBackend:
        return UsbipBackend()
