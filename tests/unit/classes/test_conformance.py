"""The devices that tests of the whole chain use keep to the contract of devices."""

from __future__ import annotations

from tests.classes.bluetooth import Bluetooth
from tests.classes.camera import Camera
from tests.classes.cp210x import Cp210x
from tests.classes.firmware import FIRST, Application, BootLoader
from tests.classes.ftdi import Ftdi
from tests.classes.headset import Headset
from tests.classes.phone import Accessory, Phone
from tests.classes.security_key import SecurityKey
from usbvfiod_core.testing.conformance import DeviceConformance
from usbvfiod_core.usb.device import Device, Loop


class TestBluetooth(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Bluetooth(loop)


class TestCamera(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Camera(loop)


class TestCp210x(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Cp210x(loop)


class TestFtdi(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Ftdi(loop)


class TestHeadset(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Headset(loop)


class TestSecurityKey(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return SecurityKey(loop)


class TestPhone(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Phone(loop)


class TestAccessory(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Accessory(loop, {0: "usbvfiod"})


class TestApplication(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return Application(loop)


class TestBootLoader(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return BootLoader(loop, FIRST)
