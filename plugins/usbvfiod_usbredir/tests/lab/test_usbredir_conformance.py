"""The backend under the suites that every backend has to pass, against Debian's usbredirect, which waits or comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from usbvfiod_usbredir.backend import UsbredirBackend
from usbvfiod_usbredir.options import UsbredirOptions

from tests.lab.conformance import GadgetZeroConformance, KeyboardConformance, OnGadget
from tests.lab.stock_redirect import Redirect
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core import Device, DeviceAway, Loop
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop

pytestmark = pytest.mark.long
"""Against a host in Python it is a test of every run: tests/unit/test_usbredir_conformance.py."""


class Redirected(OnGadget):
    """The gadget, with usbredirect for it, which waits or comes."""

    comes = False
    there: Redirect

    @classmethod
    @contextmanager
    def offered(cls, device: HostUsbDevice) -> Iterator[None]:
        with Redirect(device, comes=cls.comes) as cls.there:
            yield

    def make_device(self, loop: Loop) -> Device:
        assert isinstance(loop, StepLoop)
        backend = UsbredirBackend()
        stop = backend.watch(loop, lambda: None)
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                self.there.wait()  # it ends with each connection
                try:
                    return backend.open(self.there.address, UsbredirOptions(timeout=int(PATIENCE)), loop)
                except DeviceAway:
                    assert time.monotonic() < deadline
                    loop.run_until(lambda: False, 0.05)
        finally:
            stop()  # where it comes, nobody listens any more, until the next test does

    def unplug(self, device: Device) -> None:
        self.gadget.unbind()
        self.there.kill()  # it would stay, connected and without a device
        self.gadget.bind()


class TestKeyboard(Redirected, KeyboardConformance):
    # usbredirect clears a halt of an interrupt endpoint by itself (README); those of bulk endpoints are in TestData.
    test_a_halt_stalls_until_it_is_cleared = None  # type: ignore[assignment]


class TestKeyboardThatComes(TestKeyboard):
    comes = True


class TestData(Redirected, GadgetZeroConformance):
    pass


class TestSuperSpeedData(Redirected, GadgetZeroConformance):
    speed = "super"
