"""The backend under the suites that every backend has to pass, against the kernel's usbip-host and Debian's usbipd, in
networks that are near, far, and lose packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbip.options import UsbipOptions

from tests.lab.conformance import GadgetZeroConformance, KeyboardConformance, OnGadget
from tests.lab.exporting import Exported, Host
from tests.lab.far import NETWORKS
from tests.lab.gadgets import Gadget, keyboard
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core import Device, Loop
from usbvfiod_core.testing.conformance import BackendConformance

pytestmark = pytest.mark.long
"""Against a server in Python it is a test of every run: tests/unit/test_usbip_conformance.py."""


class Exporting(OnGadget):
    """The gadget, exported at the other end of each network."""

    network: str
    exported: Exported

    @classmethod
    @contextmanager
    def offered(cls, device: HostUsbDevice) -> Iterator[None]:
        with Host() as host, host.network(*NETWORKS[cls.network]), host.export(device) as cls.exported:
            yield

    @pytest.fixture(scope="class", autouse=True, params=NETWORKS)
    @classmethod
    def _plugged(cls, request: pytest.FixtureRequest) -> Iterator[None]:
        cls.network = request.param
        with cls.make_gadget() as cls.gadget, cls.offered(cls.gadget.bind()):
            yield

    def make_device(self, loop: Loop) -> Device:
        self.exported.wait_free()  # the one before may still be on its way back
        return UsbipBackend().open(self.exported.address, UsbipOptions(), loop)

    def unplug(self, device: Device) -> None:
        super().unplug(device)
        self.exported.bind()


class TestKeyboard(Exporting, KeyboardConformance):
    pass


class TestData(Exporting, GadgetZeroConformance):
    pass


class TestSuperSpeedData(Exporting, GadgetZeroConformance):
    speed = "super"


class TestBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def _exported(self) -> Iterator[None]:
        with Host() as host, Gadget([keyboard()]) as gadget, host.export(gadget.bind()) as exported:
            self.address = exported.address
            yield

    def make_backend(self) -> UsbipBackend:
        return UsbipBackend()
