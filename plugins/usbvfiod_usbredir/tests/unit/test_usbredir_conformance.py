"""Any device behind usbredir keeps the contract of devices, and its data arrives whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redir_bench import WaitingHost, open_at_host
from redir_host import RedirHost, some
from usbvfiod_usbredir.backend import UsbredirBackend
from usbvfiod_usbredir.spec import ALL_CAPABILITIES, Capability

from usbvfiod_core import Device, Loop, Speed
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance
from usbvfiod_core.virtual.loopback import Loopback


class AtHost:
    """Devices of this suite have a host, which ends with its test."""

    speed = Speed.HIGH
    pattern = 0
    capabilities = ALL_CAPABILITIES
    control_limit = 0xFFFF

    @pytest.fixture(autouse=True)
    def hosts(self) -> Iterator[list[RedirHost]]:
        self._hosts: list[RedirHost] = []
        yield self._hosts
        for host in self._hosts:
            host.close()

    def make_device(self, loop: Loop) -> Device:
        device, host = open_at_host(
            loop, lambda own: Loopback(own, speed=self.speed, pattern=self.pattern), self.capabilities
        )
        self._hosts.append(host)
        return device

    def unplug(self, device: Device) -> None:
        host = self._hosts[-1]
        host.call(host.pull_out)
        host.close()


class TestDevice(AtHost, DeviceConformance):
    pass


class TestSuperSpeedDevice(AtHost, DeviceConformance):
    speed = Speed.SUPER


class TestOldHost(AtHost, DeviceConformance):
    capabilities = 0


class TestData(AtHost, SourceSinkConformance):
    pattern = 1


class TestDataOfOldHost(AtHost, SourceSinkConformance):
    pattern = 1
    capabilities = some(Capability.EP_INFO_MAX_PACKET_SIZE)


class TestBackend(BackendConformance):
    """Its device is one of a host that serves one after the other."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> Iterator[None]:
        with WaitingHost(tmp_path / "host.sock", lambda loop: Loopback(loop, speed=Speed.HIGH)) as host:
            self.address = f"unix={host.path}"
            yield

    def make_backend(self) -> UsbredirBackend:
        return UsbredirBackend()
