"""The backend under the suites that every backend has to pass, on the kernel's gadgets.

Isochronous and interrupt endpoints, which dummy_hcd does not have, are tried on a device over USB/IP in
test_libusb_transfers.py.
"""

from __future__ import annotations

import pytest
from usbvfiod_libusb.backend import LibusbBackend

from tests.lab.conformance import GadgetZeroConformance, HostBackendConformance, KeyboardConformance, OnGadget
from usbvfiod_core import Device, Loop
from usbvfiod_core.host.options import HostOptions


class Opened(OnGadget):
    """The gadget, by libusb."""

    def make_device(self, loop: Loop) -> Device:
        return LibusbBackend().open(str(self.plugged.node), HostOptions(), loop)


class TestKeyboard(Opened, KeyboardConformance):
    pass


class TestHighSpeed(Opened, GadgetZeroConformance):
    pass


@pytest.mark.long
class TestSuperSpeed(Opened, GadgetZeroConformance):
    speed = "super"


@pytest.mark.long
class TestFullSpeed(Opened, GadgetZeroConformance):
    speed = "full"


class TestBackend(HostBackendConformance):
    def make_backend(self) -> LibusbBackend:
        return LibusbBackend()
