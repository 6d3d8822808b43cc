"""The backend under the suites that every backend has to pass, on Linux's gadget zero."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from usbvfiod_libusb.backend import LibusbBackend

from usbvfiod_core import Device, Loop
from usbvfiod_core.host import sysfs
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance

GADGET = (0x0525, 0xA4A0)


def gadget_zero() -> sysfs.SysfsDevice:
    """The gadget, once the host has found it."""
    deadline = time.monotonic() + 10
    while True:
        found = [device for device in sysfs.scan() if (device.vendor_id, device.product_id) == GADGET]
        if found and found[0].configuration and found[0].node.exists():
            return found[0]
        if time.monotonic() >= deadline:
            pytest.fail("there is no gadget zero")
        time.sleep(0.05)


class TestDevice(DeviceConformance):
    can_halt = True

    def make_device(self, loop: Loop) -> Device:
        return LibusbBackend().open(str(gadget_zero().node), {}, loop)


class TestSourceSink(SourceSinkConformance):
    submit_limit = 1.0  # the kernel copies OUT data when it is submitted, and QEMU translates every instruction of that

    def make_device(self, loop: Loop) -> Device:
        return LibusbBackend().open(str(gadget_zero().node), {}, loop)

    def unplug(self, device: Device) -> None:
        for gadget in Path("/sys/kernel/config/usb_gadget").iterdir():
            udc = gadget / "UDC"
            name = udc.read_text()
            udc.write_text("\n")
            udc.write_text(name)


class TestBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def _address(self) -> None:
        self.address = str(gadget_zero().node)

    def make_backend(self) -> LibusbBackend:
        return LibusbBackend()
