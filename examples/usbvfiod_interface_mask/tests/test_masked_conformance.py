"""A masked device keeps the contract of devices, and what is seen of it moves data as before."""

from __future__ import annotations

from usbvfiod_interface_mask import InterfaceMask, Options

from usbvfiod_core import Device, Loop, Speed
from usbvfiod_core.testing.conformance import DeviceConformance, SourceSinkConformance
from usbvfiod_core.testing.interception import intercepted
from usbvfiod_core.virtual.keyboard import Keyboard
from usbvfiod_core.virtual.loopback import Loopback


class TestKeyboard(DeviceConformance):
    """All of its interfaces are to be seen."""

    def make_device(self, loop: Loop) -> Device:
        return intercepted(Keyboard(loop), InterfaceMask(Options(show=(0,))), loop)


class TestHiddenKeyboard(DeviceConformance):
    """The one interface is hidden; what is left is a device all the same."""

    def make_device(self, loop: Loop) -> Device:
        return intercepted(Keyboard(loop), InterfaceMask(Options(hide=(0,))), loop)


class TestData(SourceSinkConformance):
    pattern = 1
    control_limit = 0xFFFF

    def make_device(self, loop: Loop) -> Device:
        loopback = Loopback(loop, pattern=1, speed=Speed.HIGH)
        return intercepted(loopback, InterfaceMask(Options(hide=(7,))), loop)
