"""The backend under the suites that every backend has to pass, on the kernel's gadgets."""

from __future__ import annotations

from usbvfiod_usbfs.backend import UsbfsBackend

from tests.lab.conformance import GadgetZeroConformance, HostBackendConformance, KeyboardConformance, OnGadget
from usbvfiod_core import Device, Loop
from usbvfiod_core.host.options import HostOptions


class Opened(OnGadget):
    """The gadget, by usbfs."""

    def make_device(self, loop: Loop) -> Device:
        return UsbfsBackend().open(str(self.plugged.node), HostOptions(), loop)


class TestKeyboard(Opened, KeyboardConformance):
    pass


class TestHighSpeed(Opened, GadgetZeroConformance):
    pass


class TestSuperSpeed(Opened, GadgetZeroConformance):
    speed = "super"


class TestBackend(HostBackendConformance):
    def make_backend(self) -> UsbfsBackend:
        return UsbfsBackend()
