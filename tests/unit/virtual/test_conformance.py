"""The virtual devices and their backend under the suite that every backend's devices are tested with."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance
from usbvfiod_core.usb.backend import Backend
from usbvfiod_core.usb.device import Device, Loop
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.audio import Audio
from usbvfiod_core.virtual.faults import parse_faults
from usbvfiod_core.virtual.faulty import FaultyDevice
from usbvfiod_core.virtual.flash import Flash
from usbvfiod_core.virtual.frames import Stream
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.keyboard import Keyboard
from usbvfiod_core.virtual.line import Terminal
from usbvfiod_core.virtual.loopback import Loopback
from usbvfiod_core.virtual.network import Network
from usbvfiod_core.virtual.pointer import Mouse, Pointer, Tablet
from usbvfiod_core.virtual.serial import Serial
from usbvfiod_core.virtual.uas_flash import UasFlash


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH, Speed.SUPER])
class TestFlash(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _image(self, image: Path, speed: Speed) -> None:
        self.path, self.speed = str(image), speed

    def make_device(self, loop: Loop) -> Device:
        return Flash(Image(self.path), loop, speed=self.speed)


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH])
class TestKeyboard(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _speed(self, speed: Speed) -> None:
        self.speed = speed

    def make_device(self, loop: Loop) -> Device:
        return Keyboard(loop, speed=self.speed)


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH, Speed.SUPER])
class TestLoopback(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _speed(self, speed: Speed) -> None:
        self.speed = speed

    def make_device(self, loop: Loop) -> Device:
        return Loopback(loop, speed=self.speed)


@pytest.mark.parametrize("pattern", [0, 1, 2])
@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH, Speed.SUPER])
class TestSourceSink(SourceSinkConformance):
    control_limit = 0xFFFF

    @pytest.fixture(autouse=True)
    def _options(self, speed: Speed, pattern: int) -> None:
        self.speed, self.pattern = speed, pattern

    def make_device(self, loop: Loop) -> Device:
        return Loopback(loop, speed=self.speed, pattern=self.pattern)


FAR_AWAY = "error@in:99999999M,error@out:99999999M,stall@control#99999999"
"""Faults for which every transfer is looked at, and that never happen."""


class TestSourceSinkWithFaults(SourceSinkConformance):
    pattern = 1
    control_limit = 0xFFFF

    def make_device(self, loop: Loop) -> Device:
        return FaultyDevice(Loopback(loop, speed=Speed.HIGH, pattern=1), parse_faults(FAR_AWAY), loop)

    def unplug(self, device: Device) -> None:
        assert isinstance(device, FaultyDevice)
        device.disconnect()


class TestLoopbackWithFaults(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return FaultyDevice(Loopback(loop, speed=Speed.SUPER), parse_faults(FAR_AWAY), loop)

    def unplug(self, device: Device) -> None:
        assert isinstance(device, FaultyDevice)
        device.disconnect()


@pytest.mark.parametrize("speed", [Speed.HIGH, Speed.SUPER])
class TestUasFlash(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _image(self, image: Path, speed: Speed) -> None:
        self.path, self.speed = str(image), speed

    def make_device(self, loop: Loop) -> Device:
        return UasFlash(Image(self.path), loop, speed=self.speed)


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH])
class TestAudio(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _speed(self, speed: Speed) -> None:
        self.speed = speed

    def make_device(self, loop: Loop) -> Device:
        return Audio(loop, speed=self.speed)


@pytest.mark.parametrize("kind", [Mouse, Tablet])
@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH])
class TestPointer(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _kind(self, speed: Speed, kind: type[Pointer]) -> None:
        self.speed, self.kind = speed, kind

    def make_device(self, loop: Loop) -> Device:
        return self.kind(loop, speed=self.speed)


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH])
class TestSerial(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _speed(self, speed: Speed) -> None:
        self.speed = speed

    def make_device(self, loop: Loop) -> Device:
        return Serial(loop, Terminal(), speed=self.speed)


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH, Speed.SUPER])
class TestNetwork(DeviceConformance):
    @pytest.fixture(autouse=True)
    def _program(self, tmp_path: Path, speed: Speed) -> Iterator[None]:
        """A program at the other end of the cable, which says nothing."""
        self.speed, self.path = speed, str(tmp_path / "cable")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen()
            yield

    def make_device(self, loop: Loop) -> Device:
        return Network(loop, Stream(self.path), bytes.fromhex("020000000001"), speed=self.speed)


class TestBackend(BackendConformance):
    address = "loopback"
    options = MappingProxyType({"pattern": "1", "speed": "high"})

    def make_backend(self) -> Backend:
        return VirtualBackend()


class TestFlashBackend(BackendConformance):
    address = "flash"

    @pytest.fixture(autouse=True)
    def _image(self, image: Path) -> None:
        self.options = {"image": str(image)}

    def make_backend(self) -> Backend:
        return VirtualBackend()
